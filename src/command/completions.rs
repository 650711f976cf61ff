//! `pgcm completions`

use clap::CommandFactory;

use super::say;
use crate::{cli::Cli, exit::Exit};

pub(super) fn run(shell: clap_complete::Shell) -> Exit {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "pgcm", &mut script);
    say(String::from_utf8_lossy(&script), Exit::Done)
}
