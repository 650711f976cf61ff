//! `promote`: this standby becomes the primary, after the claims of all others have ended.

use std::time::Duration;

use slog::{error, info, warn};
use tokio::time::{Instant, sleep};

use super::{
    context::{Agent, Failure},
    election,
};
use crate::{
    edge::{
        agent_sql::{Local, State},
        command::Run,
    },
    error::chain,
    model::agent::{
        cib::{Cib, Node},
        claim::{DataStatus, Score, Status},
        code::OcfCode,
        condition::Condition,
        election::{Right, revocation, right, score_refusal, shutdown_refusal},
        lsn::Lsn,
    },
};

/// How often the server is asked whether it has left recovery: clients are waiting.
const POLL: Duration = Duration::from_millis(3);

/// Promotes the local server and returns once it accepts writes.
pub(super) async fn run<R: Run + Clone + 'static>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    let found = agent.condition_from_files().await?.0;
    if matches!(found, Condition::Stopped | Condition::Orphaned) {
        return Err(Failure::new(OcfCode::NotRunning, "Postgres does not run, cannot be promoted"));
    }
    let server = async {
        let local = agent.connect_when_ready(agent.left() / 2).await?;
        let state = local.state().await?;
        Ok::<_, Failure>((local, state))
    };
    let cib = async { agent.attributes.query().await.map_err(Failure::from) };
    let ((local, state), cib) = match tokio::try_join!(server, cib) {
        Err(error) if found == Condition::Primary => return Ok(promoted_already(agent, &error)),
        joined => joined?,
    };
    if !state.in_recovery {
        announce(agent, &cib, state.position).await;
        agent.poke();
        return Ok(OcfCode::Success);
    }
    refuse_if_unfit(agent, &local, &cib, &state).await?;
    let cib = match right(&cib, &agent.node, agent.names()) {
        Right::Complete => cib,
        // The election took a while.
        _ => agent.attributes.query().await?,
    };
    end_claims_of_others(agent, &cib).await?;
    info!(agent.log, "promoting"; "event" => "agent.promote.begin", "from" => %state.replayed);
    local.promote().await?;
    let (promoted, ()) =
        tokio::join!(until_writable(agent, &local), announce(agent, &cib, state.replayed));
    promoted?;
    agent.poke();
    Ok(OcfCode::Success)
}

/// A primary that is too busy to answer is one all the same; its next monitor sets what is missing.
fn promoted_already<R: Run + Clone>(agent: &Agent<R>, error: &Failure) -> OcfCode {
    info!(agent.log, "the server is the primary already, though it does not answer";
        "event" => "agent.promote.busy", "error" => &error.reason);
    agent.poke();
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

/// Takes the newest data's claim over and ends the others' right to be promoted, in the CIB, before
/// the first write: from then on their data is old.
async fn end_claims_of_others<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> Result<(), Failure> {
    let ends = revocation(cib, &agent.node, agent.names());
    let lost = ends.data_statuses.into_iter().map(|node| (node, DataStatus::Disconnected));
    let lost: Vec<_> = lost.collect();
    let scores = async {
        for node in &ends.scores {
            agent.attributes.set_score(node, Score::NEVER).await?;
        }
        if !ends.scores.is_empty() {
            let limit = agent.share(3, Duration::from_secs(10));
            agent.attributes.confirm_unpromotable(&ends.scores, limit).await?;
        }
        Ok(())
    };
    let quorums = async {
        for node in &ends.quorums {
            agent.attributes.set_quorum_claim(node, None).await?;
        }
        Ok(())
    };
    // Until the promotion begins all claims are true, so that their order does not matter.
    tokio::try_join!(
        agent.attributes.set_data_status(&agent.node, DataStatus::Latest),
        agent.attributes.set_data_statuses(&lost),
        quorums,
        scores
    )?;
    Ok(())
}

async fn until_writable<R: Run + Clone>(agent: &Agent<R>, local: &Local) -> Result<(), Failure> {
    let begun = Instant::now();
    while local.in_recovery().await? {
        if agent.left().is_zero() {
            let reason = format!("Postgres is still in recovery after {:?}", begun.elapsed());
            return Err(Failure::new(OcfCode::Generic, reason));
        }
        sleep(POLL).await;
    }
    Ok(())
}

/// Sets what operators and the other nodes read; what fails here is repaired by the next monitor.
async fn announce<R: Run + Clone>(agent: &Agent<R>, cib: &Cib, baseline: Lsn) {
    let (names, attributes, node) = (agent.names(), &agent.attributes, &agent.node);
    let baseline = baseline.baseline();
    let (score, status, baseline, (), ()) = tokio::join!(
        attributes.set_score(node, Score::PRIMARY),
        attributes.set(node, &names.status, Status::Primary.as_str()),
        attributes.set(node, &names.baseline, &baseline),
        unseat(agent, cib),
        forget_stopped(agent, cib),
    );
    for (what, result) in
        [("promotion score", score), ("status", status), ("master baseline", baseline)]
    {
        agent.tolerate(what, result);
    }
}

/// Ends the old primary's status. It does not do so itself: while it is demoted, a changed attribute
/// would make Pacemaker think again before it promotes.
async fn unseat<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) {
    let names = agent.names();
    let old = |node: &&Node| node.name != agent.node && node.status(names) == Some(Status::Primary);
    for node in cib.nodes.values().filter(old) {
        let set = agent.attributes.set(&node.name, &names.status, Status::Alone.as_str()).await;
        agent.tolerate("status of the old primary", set);
    }
}

/// Deletes the marks of stopped primaries: one election's must not leak into the next.
async fn forget_stopped<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) {
    let name = &agent.names().shutdown_lsn;
    for node in cib.nodes.values().filter(|node| node.transient.contains_key(name)) {
        if let Err(error) = agent.attributes.delete(&node.name, name).await {
            error!(agent.log, "cannot delete the mark of a stopped primary";
                "event" => "agent.promote.mark", "node" => &node.name, "error" => %chain(&error));
        }
    }
}
