//! `demote`: the primary stops, proves that its heir has everything, and comes back as a standby.

use std::time::Duration;

use slog::{Logger, info, warn};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    context::{Agent, Failure},
    data, shutdown,
};
use crate::{
    edge::{agent_sql::Remote, attributes::AttributeError, command::Run, poke::Urgency},
    error::chain,
    model::agent::{
        cib::{Cib, Node},
        claim::{DataStatus, Score, Status},
        code::OcfCode,
        condition::Condition,
        control_data::ControlData,
        election::{holds_shutdown, standbys_go_ahead},
        lsn::Position,
        parameters::ReplicationMode,
    },
};

/// The least that a question to an heir gets, when its time is nearly over.
const LEAST: Duration = Duration::from_millis(500);

/// Shuts the primary down and starts it as a standby of the node that is to be promoted.
///
/// That node is asked whether it received the shutdown checkpoint. If it did not, it loses the right
/// to be promoted and this node gets it back, so that Pacemaker promotes this node again. Where several
/// nodes share the highest score, any of them may be promoted: then all must have received it, or the
/// position is published, and whoever is promoted gets up to there first.
pub(super) async fn run<R: Run + Clone + 'static>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    let pid = match agent.condition_from_files().await? {
        (Condition::Standby | Condition::StartingStandby, _) => return Ok(OcfCode::Success),
        (_, Some(pid)) => pid,
        (_, None) => return after_a_crash(agent).await,
    };
    let (ended, is_known) = watch::channel(None);
    let shutdown = async {
        shutdown::end(agent, pid, agent.left() * 2 / 3).await?;
        // Before anything starts again, and with it changes what the file says.
        let control = agent.postmaster.control_data(agent.share(4, Duration::from_secs(5))).await;
        control.map_err(Failure::from)
    };
    // No attribute changes on the straight way: each would make Pacemaker think again while
    // clients wait.
    let meet_heirs = async {
        let cib = look_for_heirs(agent).await.unwrap_or_else(|error| {
            warn!(agent.log, "cannot read who is to be promoted";
                "event" => "agent.demote.blind", "error" => %chain(&error));
            Cib::default()
        });
        let asked = ask(agent, &cib.promotable_other_than(&agent.node, agent.names()), is_known);
        (cib, asked)
    };
    let (control, (cib, asked)) = tokio::join!(shutdown, meet_heirs);
    let control = control?;
    if let Some(primary) = cib.primary_instead_of(&agent.node, agent.names()) {
        warn!(agent.log, "this server was none that Pacemaker promoted, and hands nothing over; `start` decides how it \
            comes back"; "event" => "agent.demote.stale", "primary" => &primary.name);
        return Ok(OcfCode::Success);
    }
    let end = end_of(agent, &control);
    ended.send_replace(end);
    let heirs = cib.promotable_other_than(&agent.node, agent.names());
    let (proven, started) = tokio::join!(
        hand_over(agent, &heirs, end, asked),
        start_standby(agent, heirs.last().copied())
    );
    proven?;
    started?;
    agent.mark_demoted();
    agent.poke(Urgency::Soon);
    Ok(OcfCode::Success)
}

/// Reads who may be promoted. The controller of an heir may have died, and its address in the CIB with it: such an
/// heir could not be asked, and this node would go on for no good reason.
async fn look_for_heirs<R: Run + Clone>(agent: &Agent<R>) -> Result<Cib, AttributeError> {
    let names = agent.names();
    let told = |cib: &Cib| {
        let heirs = cib.promotable_other_than(&agent.node, names);
        heirs.iter().all(|heir| heir.address(names).is_some())
    };
    let cib = agent.attributes.query().await?;
    if told(&cib) {
        return Ok(cib);
    }
    agent.tolerate("address of an heir", agent.attributes.resend().await);
    agent.attributes.query_until(agent.share(6, Duration::from_secs(1)), told).await
}

/// Where this primary ended, and until when heirs may take to show that they got there.
#[derive(Clone, Copy)]
struct End {
    stopped: Position,
    until: Instant,
}

/// None when the primary did not stop cleanly: then nothing can be proven by position.
fn end_of<R: Run + Clone>(agent: &Agent<R>, control: &ControlData) -> Option<End> {
    if !control.cleanly_stopped_primary() {
        warn!(agent.log, "the primary did not stop cleanly, nothing can be proven by position";
            "event" => "agent.demote.unclean");
        return None;
    }
    let stopped = Position { timeline: control.checkpoint_timeline, lsn: control.checkpoint };
    Some(End { stopped, until: Instant::now() + agent.share(3, Duration::from_secs(5)) })
}

/// Demotes a primary that has died: it is none any more, and lets its synchronous standbys go ahead:
/// they hold every acknowledged commit and need no crash recovery.
///
/// With none that can, this node has to go on: its server is started again, as a standby, so that it
/// can be promoted. Otherwise the next monitor reports it as stopped, and `start` decides how it may
/// come back.
async fn after_a_crash<R: Run + Clone>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    shutdown::end_orphans(agent).await?;
    let farewell = async {
        let cib = agent.attributes.query().await?;
        if standbys_go_ahead(&cib, &agent.node, agent.names()) {
            step_back(agent).await?;
            return Ok(false);
        }
        Ok::<_, AttributeError>(cib.primary_other_than(&agent.node, agent.names()).is_none())
    };
    let goes_on = farewell.await.unwrap_or_else(|error| {
        agent.tolerate("promotion score", Err(error));
        false
    });
    if goes_on && data::crashed_whole(agent).await {
        if agent.parameters.mode == ReplicationMode::Quorum {
            // Until it has replayed its own WAL, no election may count on what it says.
            let name = &agent.names().status;
            agent.attributes.set(&agent.node, name, Status::Stopped.as_str()).await?;
        }
        start_standby(agent, None).await?;
    }
    Ok(OcfCode::Success)
}

/// Gives up this node's promotion score; the claim to the newest data stays until another node takes it
/// over, and so does the status: clients wait, and each change costs all nodes a write of the CIB.
///
/// Returns when Pacemaker knows. Otherwise it goes on with what it had in mind: it promotes this node
/// again, or finds it stopped and starts it first, and clients wait seconds longer.
async fn step_back<R: Run + Clone>(agent: &Agent<R>) -> Result<(), AttributeError> {
    agent.attributes.set_score(&agent.node, Score::NEVER).await?;
    let own = [agent.node.clone()];
    agent.attributes.confirm_unpromotable(&own, agent.share(4, Duration::from_secs(2))).await
}

async fn start_standby<R: Run + Clone>(
    agent: &Agent<R>,
    heir: Option<&Node>,
) -> Result<(), Failure> {
    agent.postmaster.write_settings(&agent.standby_settings(heir))?;
    agent.postmaster.write_standby_signal()?;
    agent.launch().await?;
    Ok(())
}

/// Lets the heirs prove that they have everything up to where this primary stopped; otherwise publishes
/// that position, and takes the role back from the one heir.
async fn hand_over<R: Run + Clone>(
    agent: &Agent<R>,
    heirs: &[&Node],
    end: Option<End>,
    asked: Option<JoinSet<bool>>,
) -> Result<(), Failure> {
    let Some(End { stopped, .. }) = end else { return Ok(()) };
    if all_hold(asked).await {
        return Ok(());
    }
    let name = &agent.names().shutdown_lsn;
    let published = agent.attributes.set(&agent.node, name, &stopped.to_string()).await;
    match heirs {
        [heir] => {
            agent.tolerate("shutdown position", published);
            take_back(agent, heir, stopped).await
        }
        // Nothing but this mark keeps an heir that lacks the end from being promoted without it.
        [_, _, ..] => published.map_err(Failure::from),
        [] => {
            agent.tolerate("shutdown position", published);
            Ok(())
        }
    }
}

/// Connects to the heirs while the primary still ends; each is asked once `end` is known. None when
/// there is nobody to ask, or the address of one is not known.
fn ask<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    heirs: &[&Node],
    end: watch::Receiver<Option<End>>,
) -> Option<JoinSet<bool>> {
    let limit = agent.share(3, Duration::from_secs(5));
    let mut asked = JoinSet::new();
    for heir in heirs {
        let Some(address) = heir.address(agent.names()) else {
            warn!(agent.log, "a standby has told no address, and so cannot be asked";
                "event" => "agent.demote.unasked", "standby" => &heir.name);
            return None;
        };
        let remote = agent.remote(address, limit);
        asked.spawn(holds(remote, end.clone(), agent.log.clone()));
    }
    (!asked.is_empty()).then_some(asked)
}

/// Whether there are heirs, and all of them hold the shutdown checkpoint.
async fn all_hold(asked: Option<JoinSet<bool>>) -> bool {
    let Some(mut asked) = asked else { return false };
    let mut proven = true;
    while let Some(answer) = asked.join_next().await {
        proven &= answer.unwrap_or(false);
    }
    proven
}

/// Asks an heir until it has received the shutdown checkpoint, or its time is over.
async fn holds<R: Run>(
    mut remote: Remote<R>,
    mut end: watch::Receiver<Option<End>>,
    log: Logger,
) -> bool {
    let mut known = end.clone();
    let go = async {
        let end = known.wait_for(Option::is_some).await.ok().and_then(|end| *end);
        let left = end.map(|end| end.until.saturating_duration_since(Instant::now()));
        // A connection that has died since leaves time for another.
        left.unwrap_or_default() / 2
    };
    let mut answer = remote.identify_when(go).await;
    // Whoever could not even connect waits here.
    let Some(End { stopped, until }) =
        end.wait_for(Option::is_some).await.ok().and_then(|end| *end)
    else {
        return false;
    };
    loop {
        let address = &remote.address;
        match &answer {
            Ok((_, received)) if holds_shutdown(*received, stopped) => {
                info!(log, "the standby holds the shutdown checkpoint";
                    "event" => "agent.demote.proven", "address" => address,
                    "stopped" => %stopped, "received" => %received);
                return true;
            }
            _ if Instant::now() >= until => {
                let said = match answer {
                    Ok((_, received)) => format!("received {received}"),
                    Err(error) => chain(&error).to_string(),
                };
                warn!(log, "the standby does not hold the shutdown checkpoint";
                    "event" => "agent.demote.unproven", "address" => address,
                    "stopped" => %stopped, "standby" => said);
                return false;
            }
            _ => sleep(Duration::from_millis(10)).await,
        }
        remote.limit = until.saturating_duration_since(Instant::now()).max(LEAST);
        answer = remote.identify().await;
    }
}

/// Lets Pacemaker promote this node again: the heir lacks what this node wrote last.
async fn take_back<R: Run + Clone>(
    agent: &Agent<R>,
    heir: &Node,
    stopped: Position,
) -> Result<(), Failure> {
    warn!(agent.log, "this node goes on as the primary"; "event" => "agent.demote.undo",
        "standby" => &heir.name, "stopped" => %stopped);
    agent.attributes.set_score(&heir.name, Score::NEVER).await?;
    let nodes = [heir.name.clone()];
    agent.attributes.confirm_unpromotable(&nodes, agent.share(2, Duration::from_secs(5))).await?;
    let data = [(heir.name.clone(), DataStatus::Disconnected)];
    agent.attributes.set_data_statuses(&data).await?;
    agent.attributes.set_score(&agent.node, Score::PRIMARY).await?;
    Ok(())
}
