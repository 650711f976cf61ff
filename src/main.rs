//! Parse, dispatch, exit.

use std::process::ExitCode;

use clap::Parser;
use pgcm::{cli::Cli, command, edge::streams};

fn main() -> ExitCode {
    let exit = command::dispatch(Cli::parse());
    streams::stderr().last_words();
    exit
}
