//! `pgcm poke`

use std::path::Path;

use super::complain;
use crate::{
    edge::poke::{self, Urgency},
    exit::Exit,
};

pub(super) fn run() -> Exit {
    match poke::poke(Path::new(poke::SOCKET), Urgency::Soon) {
        Ok(()) => Exit::Done,
        Err(error) => complain(&error, Exit::Unreachable),
    }
}
