//! Parse, dispatch, exit.

use std::process::ExitCode;

use clap::Parser;
use pgcm::{cli::Cli, command};

fn main() -> ExitCode {
    command::dispatch(Cli::parse())
}
