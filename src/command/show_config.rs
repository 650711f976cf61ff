//! `pgcm show-config`

use super::say;
use crate::{
    config::{Config, render::render},
    exit::Exit,
};

pub(super) fn run() -> Exit {
    say(render(&Config::default()), Exit::Done)
}
