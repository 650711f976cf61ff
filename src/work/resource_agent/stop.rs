//! `stop`: nothing of the data directory runs any more.

use std::time::Duration;

use slog::info;
use tokio::time::{Instant, sleep};

use super::{
    context::{Agent, Failure},
    shutdown,
};
use crate::{
    edge::{attributes::AttributeError, command::Run, poke::Urgency},
    error::chain,
    model::agent::{
        claim::{DataStatus, Status},
        code::OcfCode,
        condition::Condition,
        settings::SyncName,
    },
};

/// How often the primary is asked whether it still waits for a standby that wants to stop.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Stops the server, whatever it is, and gives up the right to be promoted.
///
/// What the data is worth stays in the CIB: a primary that was stopped still has the newest data.
pub(super) async fn run<R: Run + Clone>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    let (condition, pid) = agent.condition_from_files().await?;
    if condition == Condition::Standby {
        agent.tolerate("status", take_leave(agent).await);
    }
    let ended = async {
        match pid {
            Some(pid) => shutdown::end(agent, pid, agent.left() * 2 / 3).await,
            None => shutdown::end_orphans(agent).await,
        }
    };
    let attributes = async {
        let names = agent.names();
        let (score, status) = tokio::join!(
            agent.attributes.delete(&agent.node, &names.score),
            agent.attributes.set(&agent.node, &names.status, Status::Stopped.as_str()),
        );
        agent.tolerate("promotion score", score);
        agent.tolerate("status", status);
    };
    let (ended, ()) = tokio::join!(ended, attributes);
    ended?;
    let alone = agent.alone_file();
    // A count of lonely monitors belongs to one run of the server.
    let _ = std::fs::remove_file(alone);
    agent.poke(Urgency::Soon);
    Ok(OcfCode::Success)
}

/// Lets the primary stop waiting for this standby before it is gone; otherwise commits would wait for it
/// until the primary's next monitor. Best effort, within a part of the budget.
async fn take_leave<R: Run + Clone>(agent: &Agent<R>) -> Result<(), AttributeError> {
    let names = agent.names();
    let cib = agent.attributes.query().await?;
    let data = cib.node(&agent.node).and_then(|own| own.data_status(names));
    let primary = cib.primary_other_than(&agent.node, names);
    let Some(address) = primary.and_then(|node| node.address(names)) else { return Ok(()) };
    if !matches!(data, Some(DataStatus::Sync | DataStatus::Quorum)) {
        return Ok(());
    }
    let status = Status::Stopped.as_str();
    agent.attributes.set(&agent.node, &names.status, status).await?;
    let limit = agent.share(4, Duration::from_secs(5));
    let deadline = Instant::now() + limit;
    let remote = agent.remote(address, limit);
    loop {
        match remote.sync_names().await {
            Ok(setting) if waits_for(&setting, &agent.node) => {}
            Ok(_) => break,
            Err(error) => {
                info!(agent.log, "the primary does not say whether it waits for this standby";
                    "event" => "agent.stop.unheard", "error" => %chain(&error));
                break;
            }
        }
        if Instant::now() >= deadline {
            info!(agent.log, "the primary still waits for this standby, stopping all the same";
                "event" => "agent.stop.awaited", "limit_ms" => limit.as_millis());
            break;
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn waits_for(setting: &str, node: &str) -> bool {
    SyncName::parse(setting).is_some_and(|name| name.names(node))
}
