//! `start`: always as a standby, and only where the history allows it.

use slog::info;

use super::{
    context::{Agent, Failure},
    data, rejoin, rewind, shutdown, validate_all,
};
use crate::{
    edge::command::Run,
    model::agent::{
        claim::{DataStatus, Status},
        code::OcfCode,
        condition::Condition,
        control_data::ControlData,
        election::{OwnFiles, StartScore, start_score},
    },
};

/// Starts the server as a standby of the current primary, if there is one, and waits until it
/// accepts connections.
pub(super) async fn run<R: Run + Clone>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    validate_all::owned(&agent.parameters, &agent.postmaster.user)?;
    let address = agent.own_address().await?.to_string();
    match agent.condition_from_files().await?.0 {
        Condition::Stopped => {}
        Condition::Orphaned => shutdown::end_orphans(agent).await?,
        // It accepts connections, though all may be taken: a busy server is not a dead one.
        Condition::Primary | Condition::Standby => {
            publish_address(agent, &address).await;
            return Ok(OcfCode::Success);
        }
        _ => {
            publish_address(agent, &address).await;
            agent.connect_when_ready(agent.left()).await?;
            return Ok(OcfCode::Success);
        }
    }
    let cib = agent.attributes.query().await?;
    let primary = cib.primary_other_than(&agent.node, agent.names());
    let upstream = primary.and_then(|node| node.address(agent.names()));
    let control = data::control(agent, upstream).await?;
    agent.postmaster.remove_stale_locks()?;
    let files = own_files(agent, &control);
    let rewound = rewind::resume(agent, &control, upstream).await?;
    if let (Some(address), false) = (upstream, rewound) {
        rejoin::before_start(agent, &control, address).await?;
    }
    validate_all::configured(&agent.parameters, &agent.postmaster.user)?;
    agent.postmaster.write_settings(&agent.standby_settings(primary))?;
    agent.postmaster.write_standby_signal()?;
    let scored = start_score(&cib, &agent.node, agent.names(), files);
    info!(agent.log, "starting as a standby"; "event" => "agent.start.begin",
        "primary" => primary.map_or("none", |node| node.name.as_str()),
        "score" => %scored.score, "virgin_cluster" => scored.claim_latest);
    agent.postmaster.start(agent.left()).await?;
    let (ready, attributes) =
        tokio::join!(agent.connect_when_ready(agent.left()), announce(agent, &address, scored));
    ready?;
    attributes?;
    Ok(OcfCode::Success)
}

fn own_files<R: Run + Clone>(agent: &Agent<R>, control: &ControlData) -> OwnFiles {
    OwnFiles {
        standby_signal: agent.postmaster.has("standby.signal") || control.was_standby(),
        fresh_backup: agent.postmaster.has("backup_label"),
    }
}

async fn publish_address<R: Run + Clone>(agent: &Agent<R>, address: &str) {
    let set = agent.attributes.set(&agent.node, &agent.names().address, address).await;
    agent.tolerate("address", set);
}

/// Sets this node's attributes. The score counts: without it nobody would ever be promoted.
async fn announce<R: Run + Clone>(
    agent: &Agent<R>,
    address: &str,
    scored: StartScore,
) -> Result<(), Failure> {
    if scored.claim_latest {
        let claim = [(agent.node.clone(), DataStatus::Latest)];
        agent.attributes.set_data_statuses(&claim).await?;
    }
    let names = agent.names();
    let (score, status, address) = tokio::join!(
        agent.attributes.set_score(&agent.node, scored.score),
        agent.attributes.set(&agent.node, &names.status, Status::Alone.as_str()),
        agent.attributes.set(&agent.node, &names.address, address),
    );
    agent.tolerate("status", status);
    score?;
    address?;
    Ok(())
}
