//! The bounded shutdown that stop and demote share.

use std::time::Duration;

use nix::sys::signal::Signal;
use slog::warn;

use super::context::{Agent, Failure};
use crate::{edge::command::Run, model::agent::code::OcfCode};

/// How long a walreceiver may take to end before it counts as one that does not listen.
const RECEIVER_ENDS: Duration = Duration::from_secs(3);

/// Ends the postmaster `pid` and all its processes.
///
/// A fast shutdown first; an immediate one when `patience` has passed, and SIGKILL when that does not
/// help either. Clients' commits are decided by WAL alone, so no escalation loses any.
///
/// A standby's walreceiver that waits for a primary to get further does not hear that it shall end, and
/// while it lives the server does not even begin with the restartpoint that makes a fast shutdown worth
/// waiting for. That is not waited out.
///
/// # Errors
/// When processes outlive even SIGKILL for the rest of the budget.
pub(super) async fn end<R: Run + Clone>(
    agent: &Agent<R>,
    pid: u32,
    patience: Duration,
) -> Result<(), Failure> {
    agent.postmaster.signal(pid, Signal::SIGINT)?;
    let first = patience.min(RECEIVER_ENDS);
    if agent.postmaster.gone(pid, first).await? {
        return end_orphans(agent).await;
    }
    let receiver = agent.postmaster.walreceiver()?;
    if receiver.is_none() && agent.postmaster.gone(pid, patience - first).await? {
        return end_orphans(agent).await;
    }
    warn!(agent.log, "the fast shutdown takes too long, going on with an immediate one";
        "event" => "agent.shutdown.escalate", "patience_ms" => patience.as_millis(),
        "walreceiver" => receiver);
    agent.postmaster.signal(pid, Signal::SIGQUIT)?;
    if !agent.postmaster.gone(pid, agent.left() / 2).await? {
        agent.postmaster.signal(pid, Signal::SIGKILL)?;
        agent.postmaster.gone(pid, agent.left() / 2).await?;
    }
    end_orphans(agent).await
}

/// Ends backends whose postmaster is gone: they hold the shared memory, and could still commit.
pub(super) async fn end_orphans<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
        let orphans = agent.postmaster.orphans()?;
        for &pid in &orphans {
            agent.postmaster.signal(pid, signal)?;
        }
        for &pid in &orphans {
            agent.postmaster.gone(pid, agent.left() / 2).await?;
        }
    }
    match agent.postmaster.orphans()?.as_slice() {
        [] => Ok(()),
        [pid, ..] => Err(Failure::new(
            OcfCode::Generic,
            format!("process {pid} of the data directory does not end, not even by SIGKILL"),
        )),
    }
}
