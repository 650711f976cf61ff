//! `pgcm completions`

use clap::CommandFactory;

use crate::{cli::Cli, exit::Exit};

pub(super) fn run(shell: clap_complete::Shell) -> Exit {
    clap_complete::generate(shell, &mut Cli::command(), "pgcm", &mut std::io::stdout());
    Exit::Done
}
