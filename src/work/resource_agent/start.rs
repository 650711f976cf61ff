//! `start`: always as a standby, and only where the history allows it.

use std::time::Duration;

use slog::{info, warn};
use tokio::time::{Instant, sleep, timeout};

use super::{
    context::{Agent, Failure},
    data, election, rejoin, rewind, shutdown, validate_all,
};
use crate::{
    edge::{agent_sql::State, command::Run},
    model::agent::{
        cib::Cib,
        claim::{DataStatus, Status},
        code::OcfCode,
        condition::Condition,
        control_data::ControlData,
        election::{OwnFiles, start_score},
        parameters::ReplicationMode,
    },
};

/// Starts the server as a standby of the current primary, if there is one, and waits until it
/// accepts connections.
pub(super) async fn run<R: Run + Clone + 'static>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    validate_all::owned(&agent.parameters, &agent.postmaster.user)?;
    let address = agent.own_address().await?.to_string();
    match agent.condition_from_files().await? {
        (Condition::Stopped, _) => {}
        (Condition::Orphaned, _) => shutdown::end_orphans(agent).await?,
        (Condition::Primary, Some(pid)) if is_stale(agent).await? => {
            shutdown::end(agent, pid, agent.left() / 3).await?;
        }
        // It accepts connections, though all may be taken: a busy server is not a dead one.
        (Condition::Primary | Condition::Standby, _) => {
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
    refuse_recovery(agent)?;
    agent.postmaster.remove_stale_locks()?;
    let files = own_files(agent, &control);
    let rewound = rewind::resume(agent, &control, upstream).await?;
    // Before all that recovers, or takes a segment's presence for its content.
    agent.set_hollow_aside()?;
    if let (Some(address), false) = (upstream, rewound) {
        rejoin::before_start(agent, &control, address).await?;
    }
    validate_all::configured(agent).await?;
    agent.postmaster.write_settings(&agent.standby_settings(primary))?;
    agent.postmaster.write_standby_signal()?;
    info!(agent.log, "starting as a standby"; "event" => "agent.start.begin",
        "primary" => primary.map_or("none", |node| node.name.as_str()));
    agent.launch().await?;
    let (ready, attributes) = tokio::join!(ready(agent), announce(agent, &address, files));
    let (ready, ()) = (ready?, attributes?);
    // After the score of a start is told, which would replace the one that an election gives.
    if let Some(state) = ready {
        show_end(agent, &state).await?;
    }
    Ok(OcfCode::Success)
}

/// A standby that ended its replay at a target would be promoted without what it received beyond. A target that a restore
/// left behind is switched off; where an operator recovers to one now, nothing is touched.
fn refuse_recovery<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    let Some(target) = agent.postmaster.recovery_target()? else { return Ok(()) };
    if agent.postmaster.has("recovery.signal") {
        let reason = format!(
            "recovery.signal and `{target}` are there: end that recovery without Pacemaker, or remove recovery.signal"
        );
        return Err(Failure::new(OcfCode::Generic, reason));
    }
    warn!(agent.log, "a recovery target that was left behind is switched off";
        "event" => "agent.start.target", "line" => target);
    Ok(())
}

/// Whether the server that runs here as a primary was started past Pacemaker: it comes back as what its history allows.
async fn is_stale<R: Run + Clone>(agent: &Agent<R>) -> Result<bool, Failure> {
    let cib = agent.attributes.query().await?;
    let Some(primary) = cib.primary_instead_of(&agent.node, agent.names()) else {
        return Ok(false);
    };
    warn!(agent.log, "a server that nobody promoted takes writes here, ending it";
        "event" => "agent.start.stale", "primary" => &primary.name);
    Ok(true)
}

/// Waits until the server accepts connections, and in quorum mode until it knows where its WAL ends; returns its
/// state then.
async fn ready<R: Run + Clone>(agent: &Agent<R>) -> Result<Option<State>, Failure> {
    let local = agent.connect_when_ready(agent.left()).await?;
    if agent.parameters.mode != ReplicationMode::Quorum {
        return Ok(None);
    }
    let deadline = Instant::now() + agent.left() / 2;
    let mut state = local.state().await?;
    while !state.exhausted {
        if Instant::now() >= deadline {
            // It goes on replaying; its monitor says when it is done.
            return Ok(None);
        }
        sleep(Duration::from_millis(20)).await;
        state = local.state().await?;
    }
    Ok(Some(state))
}

/// Says that this member of a quorum knows where its WAL ends, so that others count it as seen, and stands for
/// election where there is no primary.
async fn show_end<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    state: &State,
) -> Result<(), Failure> {
    let name = &agent.names().status;
    let set = agent.attributes.set(&agent.node, name, Status::Alone.as_str()).await;
    agent.tolerate("status", set);
    let cib = agent.attributes.query().await?;
    if cib.primary_other_than(&agent.node, agent.names()).is_none() {
        election::candidacy(agent, &cib, state).await?;
    }
    Ok(())
}

fn own_files<R: Run + Clone>(agent: &Agent<R>, control: &ControlData) -> OwnFiles {
    OwnFiles {
        standby_signal: agent.postmaster.has("standby.signal") || control.was_standby(),
        fresh_backup: agent.postmaster.has("backup_label"),
    }
}

/// Gives the CIB this node's transient attributes back when it lost them: without its address no switchover can
/// be proven, and no standby finds its primary.
///
/// When Pacemaker is restarted in maintenance mode, nobody knows them any more, and the address has to be told anew;
/// when only its controller died, Pacemaker's attribute daemon has them all.
pub(super) async fn restore_attributes<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) {
    if cib.node(&agent.node).is_none_or(|own| own.address(agent.names()).is_some()) {
        return;
    }
    restore_address(agent).await;
    agent.tolerate("attributes", agent.attributes.resend().await);
}

async fn restore_address<R: Run + Clone>(agent: &Agent<R>) {
    // Names may have to be looked up, for longer than a monitor may take.
    let limit = agent.share(6, Duration::from_secs(1));
    let error = match timeout(limit, agent.own_address()).await {
        Ok(Ok(address)) => return publish_address(agent, &address.to_string()).await,
        Ok(Err(failure)) => failure.reason,
        Err(_) => format!("its name was not resolved within {limit:?}"),
    };
    warn!(agent.log, "cannot tell this node's address";
        "event" => "agent.monitor.address", "error" => error);
}

async fn publish_address<R: Run + Clone>(agent: &Agent<R>, address: &str) {
    let set = agent.attributes.set(&agent.node, &agent.names().address, address).await;
    agent.tolerate("address", set);
}

/// Sets this node's attributes. The score counts: without it nobody would ever be promoted.
///
/// It is judged anew at the last moment, because another node may have been promoted meanwhile. One that
/// is too late even so does no harm: a promotion asks the claims that last.
async fn announce<R: Run + Clone>(
    agent: &Agent<R>,
    address: &str,
    files: OwnFiles,
) -> Result<(), Failure> {
    let cib = agent.attributes.query().await?;
    let scored = start_score(&cib, &agent.node, agent.names(), files);
    if scored.claim_latest {
        let claim = [(agent.node.clone(), DataStatus::Latest)];
        agent.attributes.set_data_statuses(&claim).await?;
    }
    let names = agent.names();
    let status = async {
        if agent.parameters.mode == ReplicationMode::Quorum {
            return Ok(());
        }
        agent.attributes.set(&agent.node, &names.status, Status::Alone.as_str()).await
    };
    let (score, status, address) = tokio::join!(
        agent.attributes.set_score(&agent.node, scored.score),
        status,
        agent.attributes.set(&agent.node, &names.address, address),
    );
    info!(agent.log, "announced a standby"; "event" => "agent.start.announce",
        "score" => %scored.score, "virgin_cluster" => scored.claim_latest);
    agent.tolerate("status", status);
    score?;
    address?;
    Ok(())
}
