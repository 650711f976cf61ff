//! `pgcm poke`

use std::path::Path;

use super::complain;
use crate::{edge::poke, exit::Exit};

pub(super) fn run() -> Exit {
    match poke::poke(Path::new(poke::SOCKET)) {
        Ok(()) => Exit::Done,
        Err(error) => complain(&error, Exit::Unreachable),
    }
}
