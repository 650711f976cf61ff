//! `pgcm with-lock`

use std::{error::Error, io::IsTerminal, path::Path, process::ExitCode};

use slog::Logger;
use tokio::signal::unix::{SignalKind, signal};

use super::parts;
use crate::{
    cli,
    config::{Config, load},
    edge::{signals::Hangup, streams},
    error::chain,
    exit::Exit,
    model::attempt::Attempt,
    telemetry::log,
    work::{
        shutdown::Stop,
        with_lock::{self, Ended, WithLockOptions},
    },
};

/// Whatever goes wrong with pgcm itself: another code could be the command's own.
const ERROR: u8 = 1;

pub(super) fn run(path: &Path, args: cli::WithLock) -> ExitCode {
    let config = match load::load(path) {
        Ok(config) => config,
        Err(error) => return complain(&error),
    };
    let log = log::logger(streams::stderr(), parts::log_format(&config), parts::log_level(&config));
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&error),
    };
    let code = runtime.block_on(hold(&config, args, log));
    runtime.shutdown_background();
    code
}

async fn hold(config: &Config, args: cli::WithLock, log: Logger) -> ExitCode {
    let etcd = match parts::etcd(config) {
        Ok(etcd) => etcd,
        Err(error) => return complain(&error),
    };
    let (stop, interrupt) = match signals() {
        Ok(signals) => signals,
        Err(error) => return complain(&error),
    };
    let mut words = args.command.into_iter();
    let section = &config.failover;
    let host = parts::node_name(config).unwrap_or_else(|_| "unknown".to_owned());
    let options = WithLockOptions {
        program: words.next().unwrap_or_default(),
        args: words.collect(),
        holder: format!("{host}, process {}", std::process::id()),
        lock_timeout: args.lock_timeout.unwrap_or(section.lock_timeout).get(),
        lock_lease: section.lock_lease.get(),
        watch_interval: section.watch_interval.get(),
        kill_after: args.kill_after.get(),
        on_terminal: std::io::stdin().is_terminal(),
    };
    match with_lock::run(options, etcd, stop, interrupt, log).await {
        Ok(Ended::Command(status)) => ExitCode::from(u8::try_from(status).unwrap_or(ERROR)),
        Ok(Ended::Locked(Attempt { holder, purpose, started_at, .. })) => {
            streams::aside(format_args!(
                "pgcm: {holder} holds the lock for `{purpose}` since {started_at}"
            ));
            Exit::Locked.into()
        }
        Err(error) => complain(&error),
    }
}

/// A stop for SIGTERM and SIGHUP, and one for SIGINT.
fn signals() -> std::io::Result<(Stop, Stop)> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = Hangup::listen()?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop_switch, stop) = Stop::new();
    let (interrupt_switch, interrupted) = Stop::new();
    tokio::spawn(async move {
        loop {
            let switch = tokio::select! {
                _ = terminate.recv() => &stop_switch,
                () = hangup.recv() => &stop_switch,
                _ = interrupt.recv() => &interrupt_switch,
            };
            let _ = switch.send(true);
        }
    });
    Ok((stop, interrupted))
}

fn complain(error: &dyn Error) -> ExitCode {
    streams::aside(format_args!("pgcm: {}", chain(error)));
    ERROR.into()
}
