//! `pgcm check-config`

use std::path::Path;

use super::{complain, parts, say};
use crate::{config::load, exit::Exit};

pub(super) fn run(path: &Path) -> Exit {
    let config = match load::load(path) {
        Ok(config) => config,
        Err(error) => return complain(&error, Exit::Usage),
    };
    match parts::etcd(&config).and_then(|_| Ok(parts::token(&config)?)) {
        Ok(_) => say(format_args!("{} is fine\n", path.display()), Exit::Done),
        Err(error) => complain(&error, Exit::Usage),
    }
}
