//! `pgcm failover`

use std::{io::IsTerminal, sync::Arc};

use slog::Logger;

use super::{complain, live::Live, parts, say, say_json};
use crate::{
    cli::{self, Output},
    config::{Config, check, section::Span},
    edge::streams,
    exit::Exit,
    model::finding::OVERRIDABLE,
    work::{
        failover::{
            self, FailoverOptions,
            progress::{Logged, Progress},
            report::Report,
        },
        shutdown::{Stop, signalled},
    },
};

pub(super) async fn run(config: Config, args: cli::Failover, log: Logger) -> Exit {
    let config = match overridden(config, &args) {
        Ok(config) => config,
        Err(problems) => {
            let problems = problems.join("; ");
            streams::aside(format_args!("pgcm: flags and configuration together: {problems}"));
            return Exit::Usage;
        }
    };
    let problems = refused(&config, &args);
    if !problems.is_empty() {
        streams::aside(format_args!("pgcm: {}", problems.join("; ")));
        return Exit::Usage;
    }
    let connected = parts::etcd(&config).and_then(|etcd| Ok((etcd, parts::token(&config)?)));
    let (etcd, token) = match connected {
        Ok(connected) => connected,
        Err(error) => return complain(&error, Exit::Usage),
    };
    let live = args.output == Output::Text && std::io::stderr().is_terminal();
    let live = live.then(|| Live::start(args.dry_run));
    let (progress, log): (Arc<dyn Progress>, Logger) = match &live {
        Some(live) => (live.clone(), crate::telemetry::log::discard()),
        None => (Arc::new(Logged(log.clone())), log),
    };
    let (switch, stop) = Stop::new();
    tokio::spawn(async move {
        if signalled().await.is_ok() {
            let _ = switch.send(true);
            match live {
                Some(live) => live.stopping(),
                None => streams::aside("pgcm: stopping, and undoing what was begun"),
            }
            // A second signal must not end the undo.
            std::future::pending::<()>().await;
        }
    });
    let report = failover::run(options(&config, &args), etcd, token, progress, stop, log);
    let report = report.await;
    let said = show(&report, args.output);
    // What was done counts, also when nobody can be told in full: a retry would move the primary back.
    if args.dry_run { said } else { report.exit }
}

fn show(report: &Report, output: Output) -> Exit {
    match output {
        Output::Text => say(report, report.exit),
        Output::Json => say_json(report, report.exit),
    }
}

/// The configuration with what the flags say put into it, if that can work.
fn overridden(mut config: Config, args: &cli::Failover) -> Result<Config, Vec<String>> {
    let section = &mut config.failover;
    let flags: [(&mut Span, Option<Span>); 6] = [
        (&mut section.health_check_timeout, args.health_check_timeout),
        (&mut section.lock_timeout, args.lock_timeout),
        (&mut section.pause_timeout, args.pause_timeout),
        (&mut section.pause_expiry, args.pause_expiry),
        (&mut section.resume_timeout, args.resume_timeout),
        (&mut section.pacemaker_timeout, args.pacemaker_timeout),
    ];
    for (setting, flag) in flags {
        *setting = flag.unwrap_or(*setting);
    }
    let problems = check::problems(&config);
    if problems.is_empty() { Ok(config) } else { Err(problems) }
}

/// What in the flags asks for what cannot be.
fn refused(config: &Config, args: &cli::Failover) -> Vec<String> {
    let unknown = args.overrides.iter().filter(|name| !OVERRIDABLE.contains(&name.as_str()));
    let mut problems: Vec<String> = unknown
        .map(|name| {
            format!(
                "the check `{name}` cannot be overridden; these can: {}",
                OVERRIDABLE.join(", ")
            )
        })
        .collect();
    let limit = config.failover.pause_timeout;
    if let Some(after) = args.terminate_blockers_after.filter(|after| *after >= limit) {
        problems.push(format!(
            "--terminate-blockers-after is {after}; it must be less than the pause timeout ({limit})"
        ));
    }
    problems
}

fn options(config: &Config, args: &cli::Failover) -> FailoverOptions {
    let section = &config.failover;
    let host = parts::node_name(config).unwrap_or_else(|_| "unknown".to_owned());
    FailoverOptions {
        holder: format!("{host}, process {}", std::process::id()),
        endpoints: section.endpoints.clone(),
        target: args.target.clone(),
        dry_run: args.dry_run,
        overrides: args.overrides.clone(),
        expected_agents: section.expected_agents.clone(),
        attempts: args.attempts,
        attempt_backoff: section.attempt_backoff.get(),
        terminate_after: args.terminate_blockers_after.map(Span::get),
        health_check_timeout: section.health_check_timeout.get(),
        lock_timeout: section.lock_timeout.get(),
        lock_lease: section.lock_lease.get(),
        prepare_timeout: section.prepare_timeout.get(),
        pause_timeout: section.pause_timeout.get(),
        pause_expiry: section.pause_expiry.get(),
        resume_timeout: section.resume_timeout.get(),
        pacemaker_timeout: section.pacemaker_timeout.get(),
        verify_timeout: section.verify_timeout.get(),
        watch_interval: section.watch_interval.get(),
        constraint_lifetime: config.pacemaker.constraint_lifetime.get(),
    }
}
