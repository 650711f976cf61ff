//! Wiring: configuration becomes narrow options, errors become exit codes. One file per subcommand.

mod check_config;
mod completions;
mod daemon;
mod failover;
mod history;
mod live;
mod parts;
mod poke;
mod proxy;
mod resource_agent;
mod show_config;
mod status;
mod supervise;
mod watch;
mod with_lock;

use std::{fmt::Display, future::Future, io, path::Path, process::ExitCode};

use serde::Serialize;
use slog::Logger;

use crate::{
    cli::{Cli, Command},
    config::{Config, load},
    edge::streams,
    error::chain,
    exit::Exit,
    telemetry::log,
};

/// Runs what the command line asks for.
pub fn dispatch(cli: Cli) -> ExitCode {
    let path = cli.config_file;
    match cli.command {
        Command::Supervise => {
            configured(&path, |config, log| block_on(supervise::run(config, log)))
        }
        Command::Proxy => configured(&path, |config, log| block_on(proxy::run(config, log))),
        Command::Failover(args) => {
            configured(&path, |config, log| block_on(failover::run(config, args, log)))
        }
        Command::Status(args) => {
            configured(&path, |config, log| block_on(status::run(config, args, log)))
        }
        Command::History(args) => {
            configured(&path, |config, _| block_on(history::run(config, args)))
        }
        Command::WithLock(args) => with_lock::run(&path, args),
        Command::ShowConfig => show_config::run().into(),
        Command::CheckConfig => check_config::run(&path).into(),
        Command::Completions { shell } => completions::run(shell).into(),
        Command::Poke => poke::run().into(),
        Command::ResourceAgent { action } => resource_agent::run(&action),
    }
}

/// Loads the configuration for `run`; one that cannot work ends the command before it begins.
fn configured(path: &Path, run: impl FnOnce(Config, Logger) -> Exit) -> ExitCode {
    let exit = match load::load(path) {
        Ok(config) => {
            let log = log::logger(
                streams::stderr(),
                parts::log_format(&config),
                parts::log_level(&config),
            );
            run(config, log)
        }
        Err(error) => complain(&error, Exit::Usage),
    };
    exit.into()
}

/// Tells a person why the command ends, and returns `exit`.
fn complain(error: &dyn std::error::Error, exit: Exit) -> Exit {
    streams::aside(format_args!("pgcm: {}", chain(error)));
    exit
}

/// As [`say`], for programs.
fn say_json(value: &impl Serialize, exit: Exit) -> Exit {
    match serde_json::to_string_pretty(value) {
        Ok(json) => say(format_args!("{json}\n"), exit),
        Err(error) => complain(&error, Exit::NeedsHands),
    }
}

/// Prints the answer of a command that ends with `exit`.
fn say(text: impl Display, exit: Exit) -> Exit {
    streams::out(text).map_or_else(|error| unsaid(&error, exit), |()| exit)
}

/// What a command ends with whose answer, which would have ended it with `exit`, could not be printed.
fn unsaid(error: &io::Error, exit: Exit) -> Exit {
    if error.kind() == io::ErrorKind::BrokenPipe {
        // The reader has seen enough.
        return exit;
    }
    streams::aside(format_args!("pgcm: cannot write to stdout: {error}"));
    if exit == Exit::Done { Exit::Unreachable } else { exit }
}

fn block_on(work: impl Future<Output = Exit>) -> Exit {
    // One of them may hang in a file; what ends a pause runs on another, on a single processor as well.
    let workers = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    match runtime.worker_threads(workers).enable_all().build() {
        Ok(runtime) => {
            let exit = runtime.block_on(work);
            // What is still blocked must not keep the process.
            runtime.shutdown_background();
            exit
        }
        Err(error) => complain(&error, Exit::Unreachable),
    }
}
