//! `pgcm show-config`

use crate::{
    config::{Config, render::render},
    exit::Exit,
};

pub(super) fn run() -> Exit {
    print!("{}", render(&Config::default()));
    Exit::Done
}
