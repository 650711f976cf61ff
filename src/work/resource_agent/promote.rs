//! `promote`: this standby becomes the primary, after the claims of all others have ended.

use std::time::Duration;

use slog::{info, warn};
use tokio::time::{Instant, sleep};

use super::{
    context::{Agent, Failure},
    election,
};
use crate::{
    edge::{
        agent_sql::{Local, State},
        attributes::AttributeError,
        command::Run,
        poke::Urgency,
    },
    model::agent::{
        cib::{Cib, Node},
        claim::{DataStatus, Score, Status},
        code::OcfCode,
        condition::{Condition, Process},
        election::{Revocation, Right, revocation, right, score_refusal, shutdown_refusal},
        lsn::Lsn,
    },
};

/// How often the server is asked whether it has left recovery: clients are waiting.
const POLL: Duration = Duration::from_millis(3);

/// How often a process that copies logical slots is looked for, which may hold the promotion up.
const SLOT_SYNC: Duration = Duration::from_millis(50);

/// Promotes the local server and returns once it accepts writes.
///
/// What else the CIB should say of a primary is left to its first monitor, which Pacemaker runs at once:
/// here clients wait. Until then others may have a higher promotion score. Nothing rests on scores: should
/// Pacemaker think of promoting one of them, its promotion goes by the claims.
pub(super) async fn run<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    is_notified: bool,
) -> Result<OcfCode, Failure> {
    let (process, _) = agent.postmaster.process()?;
    if matches!(process, Process::Gone | Process::Orphans) {
        return Err(Failure::new(OcfCode::NotRunning, "Postgres does not run, cannot be promoted"));
    }
    let server = async {
        let local = agent.connect_when_ready(agent.left() / 2).await?;
        let state = local.state().await?;
        Ok::<_, Failure>((local, state))
    };
    let cib = async { agent.attributes.query().await.map_err(Failure::from) };
    let ((local, state), cib) = match tokio::try_join!(server, cib) {
        Err(error) if agent.condition_from_files().await?.0 == Condition::Primary => {
            return Ok(promoted_already(agent, &error));
        }
        joined => joined?,
    };
    if !state.in_recovery {
        return already_writes(agent, &cib);
    }
    refuse_if_unfit(agent, &local, &cib, &state).await?;
    let cib = match right(&cib, &agent.node, agent.names()) {
        Right::Complete => cib,
        // The election took a while.
        _ => agent.attributes.query().await?,
    };
    // Reading what Pacemaker says takes supervise about as long as the rest takes here.
    agent.poke(Urgency::Now);
    let ends = revocation(&cib, &agent.node, agent.names());
    take_over_claims(agent, &cib, &ends).await?;
    info!(agent.log, "promoting"; "event" => "agent.promote.begin", "from" => %state.replayed);
    local.promote().await?;
    let told = async {
        if is_notified {
            tell_status(agent).await;
        }
    };
    let (promoted, ()) = tokio::join!(until_writable(agent, &local), told);
    promoted?;
    agent.poke(Urgency::Now);
    Ok(OcfCode::Success)
}

/// Nothing is left to do for a primary. A server that was promoted past Pacemaker may lack what others hold: once it is
/// ended, `start` judges it.
fn already_writes<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> Result<OcfCode, Failure> {
    if right(cib, &agent.node, agent.names()) != Right::Complete {
        let reason = "this server takes writes without having been promoted by Pacemaker, and may lack commits";
        return Err(Failure::new(OcfCode::Generic, reason));
    }
    agent.poke(Urgency::Now);
    Ok(OcfCode::Success)
}

/// A primary that is too busy to answer is one all the same; its next monitor sets what is missing.
fn promoted_already<R: Run + Clone>(agent: &Agent<R>, error: &Failure) -> OcfCode {
    info!(agent.log, "the server is the primary already, though it does not answer";
        "event" => "agent.promote.busy", "error" => &error.reason);
    agent.poke(Urgency::Now);
    OcfCode::Success
}

/// Refuses when this node may lack what was acknowledged, or what another node stopped with.
async fn refuse_if_unfit<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    local: &Local,
    cib: &Cib,
    state: &State,
) -> Result<(), Failure> {
    if let Some(why) = score_refusal(cib, &agent.node, agent.names()) {
        return Err(Failure::new(OcfCode::Generic, why));
    }
    let received = election::hold(agent, local, cib, state).await?;
    let Some(why) = shutdown_refusal(cib, &agent.node, agent.names(), received) else {
        return Ok(());
    };
    if let Right::Election(_) = right(cib, &agent.node, agent.names()) {
        // Nothing of it was acknowledged without being on a member that was seen.
        warn!(agent.log, "a node stopped with WAL of its own, and cannot be reached to get it";
            "event" => "agent.promote.without", "why" => why);
        return Ok(());
    }
    let revoked = agent.attributes.set_score(&agent.node, Score::NEVER).await;
    agent.tolerate("promotion score", revoked);
    Err(Failure::new(OcfCode::Generic, why))
}

/// Ends the claims of the others in the CIB before the first write, which makes their data old.
///
/// A synchronous standby's own claim is as good as that to the newest data, which its first monitor
/// takes: each write takes tens of milliseconds in which clients wait.
async fn take_over_claims<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    ends: &Revocation,
) -> Result<(), Failure> {
    let own = cib.node(&agent.node).and_then(|node| node.data_status(agent.names()));
    if !own.is_some_and(DataStatus::is_complete) {
        // First: should this node die on the way, somebody has a claim all the time.
        agent.attributes.set_data_status(&agent.node, DataStatus::Latest).await?;
    }
    let lost = ends.data_statuses.iter().map(|node| (node.clone(), DataStatus::Disconnected));
    let lost: Vec<_> = lost.collect();
    let quorums = async {
        for node in &ends.quorums {
            agent.attributes.set_quorum_claim(node, None).await?;
        }
        Ok(())
    };
    // Until the promotion begins all claims are true, so that the order of these does not matter.
    tokio::try_join!(agent.attributes.set_data_statuses(&lost), quorums)?;
    Ok(())
}

/// Lets the standbys that are notified of this promotion find their primary. Others find it after the first
/// monitor.
async fn tell_status<R: Run + Clone>(agent: &Agent<R>) {
    let name = &agent.names().status;
    let told = agent.attributes.set(&agent.node, name, Status::Primary.as_str()).await;
    agent.tolerate("status", told);
}

async fn until_writable<R: Run + Clone>(agent: &Agent<R>, local: &Local) -> Result<(), Failure> {
    let begun = Instant::now();
    let mut slot_sync_ends = begun;
    loop {
        match local.in_recovery().await {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            // It may be published, and clients at work: being too busy to answer is no reason to demote it.
            Err(error) => match agent.condition_from_files().await?.0 {
                Condition::Primary => return Ok(()),
                Condition::Standby => {}
                _ => return Err(error.into()),
            },
        }
        if agent.left().is_zero() {
            let reason = format!("Postgres is still in recovery after {:?}", begun.elapsed());
            return Err(Failure::new(OcfCode::Generic, reason));
        }
        if Instant::now() >= slot_sync_ends {
            // Tried again soon, and without it the server waits a little longer.
            let _ = local.end_slot_sync().await;
            slot_sync_ends = Instant::now() + SLOT_SYNC;
        }
        sleep(POLL).await;
    }
}

/// Tells what the CIB does not have yet after a promotion, but for this node's own score: where its
/// timeline began, that the old primary is none any more, and that the marks of stopped primaries have
/// done their work.
///
/// # Errors
/// When the old primary or a mark stays: then the score is not set either, and the next monitor comes
/// here again.
pub(super) async fn announce<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    state: &State,
) -> Result<(), Failure> {
    let (baseline, unseated, forgotten) = tokio::join!(
        tell_baseline(agent, cib, state),
        unseat(agent, cib),
        forget_stopped(agent, cib),
    );
    agent.tolerate("master baseline", baseline);
    unseated.and(forgotten).map_err(Failure::from)
}

/// Whether a monitor has completed what the promotion began: the score comes last.
pub(super) fn is_settled<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> bool {
    let own = cib.node(&agent.node);
    own.is_none_or(|own| own.score(agent.names()) == Some(Score::PRIMARY))
}

async fn tell_baseline<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    state: &State,
) -> Result<(), AttributeError> {
    let name = &agent.names().baseline;
    let began = state.timeline.and_then(|timeline| agent.postmaster.timeline_began(timeline));
    let Some(baseline) = began.map(Lsn::baseline) else { return Ok(()) };
    let told = cib.node(&agent.node).and_then(|own| own.transient.get(name));
    if told == Some(&baseline) {
        return Ok(());
    }
    agent.attributes.set(&agent.node, name, &baseline).await
}

/// Ends the old primary's status in the first monitor after a promotion. The old one does not do so
/// itself: while it is demoted, a changed attribute would make Pacemaker think again before it
/// promotes.
async fn unseat<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> Result<(), AttributeError> {
    let names = agent.names();
    if is_settled(agent, cib) {
        return Ok(());
    }
    let is_primary = |node: &Node| node.status(names) == Some(Status::Primary);
    for node in cib.nodes.values().filter(|node| node.name != agent.node && is_primary(node)) {
        agent.attributes.set(&node.name, &names.status, Status::Alone.as_str()).await?;
    }
    Ok(())
}

/// Deletes the marks of stopped primaries: one election's must not leak into the next.
async fn forget_stopped<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> Result<(), AttributeError> {
    let name = &agent.names().shutdown_lsn;
    for node in cib.nodes.values().filter(|node| node.transient.contains_key(name)) {
        agent.attributes.delete(&node.name, name).await?;
    }
    Ok(())
}
