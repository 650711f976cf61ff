//! Before a start with a primary at hand: may this node follow it as it is?

use std::time::Duration;

use slog::{info, warn};

use super::context::{Agent, Failure};
use crate::{
    edge::{
        command::{CommandError, Run},
        postmaster::PostmasterError,
    },
    error::chain,
    model::{
        agent::{
            backup::Method,
            code::OcfCode,
            control_data::ControlData,
            rejoin::{Local, Verdict, verdict},
        },
        span::millis,
    },
};

/// Judges a stopped node against the primary at `address`, and rewinds it where that is allowed.
///
/// A primary that does not answer is no reason to stay away: Postgres itself refuses to follow a
/// history that is not its own, and the monitor looks again.
pub(super) async fn before_start<R: Run + Clone>(
    agent: &Agent<R>,
    control: &ControlData,
    address: &str,
) -> Result<(), Failure> {
    let remote = agent.remote(address, agent.share(6, Duration::from_secs(5)));
    let primary = match remote.describe().await {
        Ok(primary) => primary,
        Err(error) => {
            warn!(agent.log, "cannot compare this node with the primary, starting as it is";
                "event" => "agent.rejoin.unknown", "primary" => address,
                "error" => %chain(&error));
            return Ok(());
        }
    };
    match verdict(control, local(agent, control).await?, &primary) {
        Verdict::Follow => agent.set_tail_aside(control, &primary),
        Verdict::Foreign { why } => Err(Failure::new(
            OcfCode::Generic,
            format!("this is no copy of {address}, needs pg_basebackup: {why}"),
        )
        .with(agent.replace_commands(Some(address)))),
        Verdict::Diverged { why } if agent.parameters.rewind => {
            info!(agent.log, "rewinding to the history of the primary";
                "event" => "agent.rejoin.rewind", "primary" => address, "why" => why);
            agent.rewind(control, &primary, address).await
        }
        Verdict::Diverged { why } => Err(diverged(agent, address, &why)),
    }
}

fn diverged<R: Run + Clone>(agent: &Agent<R>, address: &str, why: &str) -> Failure {
    let rewind = format!(
        "runuser -u {user} -- {rewind} -D {data} --source-server=\"{source} dbname=postgres\"",
        user = agent.parameters.pgdba,
        rewind = agent.postmaster.program("pg_rewind"),
        data = agent.parameters.pgdata.display(),
        source = agent.conninfo(address),
    );
    Failure::new(
        OcfCode::Generic,
        format!("diverged from {address}, pg_rewind gives up what only this node has, see `pgcm status`: {why}"),
    )
    .with(vec![rewind, agent.cleanup_command()])
}

async fn local<R: Run + Clone>(agent: &Agent<R>, control: &ControlData) -> Result<Local, Failure> {
    let label = agent.postmaster.label();
    let timeline = agent.postmaster.wal_timeline().max(control.timeline());
    let was_standby = control.was_standby() || label.is_some();
    if control.cleanly_stopped_primary() {
        let last_record = Some(control.checkpoint);
        return Ok(Local { timeline: control.checkpoint_timeline, last_record, was_standby });
    }
    // An exclusive backup leaves its label in the primary's own directory, with WAL of its own.
    if label.is_some_and(|method| method != Method::Exclusive) {
        return Ok(Local { timeline, last_record: None, was_standby });
    }
    // What a standby has not replayed can be long, and Postgres itself refuses one that cannot follow.
    let limit = if control.was_standby() {
        agent.share(3, Duration::from_secs(60))
    } else {
        agent.left() * 2 / 3
    };
    let start = control.read_from();
    let last_record = match agent.postmaster.last_record(timeline, start, limit).await {
        Err(PostmasterError::Command(CommandError::TimedOut { .. })) if control.was_standby() => {
            warn!(agent.log, "there is too much WAL to find its end in time, going by the timelines alone";
                "event" => "agent.rejoin.long", "limit_ms" => millis(limit));
            None
        }
        read => read?,
    };
    Ok(Local { timeline, last_record, was_standby })
}
