//! The ordered steps that keep the synchronous standbys, and everybody's attributes true.
//!
//! Order is everything: a standby is unpromotable in the CIB *before* the primary stops waiting for
//! it, and promotable only *after* it is in sync again.

use super::{
    cib::{Cib, Names, Node},
    claim::{DataStatus, Score, Status},
    lsn::Lsn,
    parameters::ReplicationMode,
    quorum::{Quorum, QuorumClaim},
    quorum_plan,
    settings::SyncName,
};

/// One standby, as the primary's `pg_stat_replication` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The standby's `application_name`: its node's name.
    pub name: String,
    pub streaming: bool,
    /// `sync_state` is `sync` or `quorum`.
    pub is_sync: bool,
    pub flushed: Lsn,
}

/// All that the plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub own: &'a str,
    pub cib: &'a Cib,
    pub names: &'a Names,
    pub mode: ReplicationMode,
    /// How many standbys a commit waits for in quorum mode.
    pub quorum_standbys: usize,
    pub strict: bool,
    /// The primary's own.
    pub timeline: Option<u32>,
    /// Whom the running server waits for; `None` when the setting is not one of ours.
    pub waits_for: Option<&'a SyncName>,
    pub rows: &'a [Row],
}

/// One thing to do. A step that fails ends the plan: what follows relies on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Score {
        node: String,
        score: Score,
    },
    Status {
        node: String,
        status: Status,
    },
    /// Written into the CIB; there when the step is done.
    DataStatus(Vec<(String, DataStatus)>),
    /// Waits until the CIB shows that none of these nodes may be promoted.
    ConfirmUnpromotable(Vec<String>),
    /// Changes whom commits wait for, and reloads.
    WaitFor(SyncName),
    /// Waits until the node is synchronous and holds every commit acknowledged so far.
    AwaitSync(String),
    /// Waits until so many of the members hold every commit acknowledged so far.
    AwaitQuorum(Quorum),
    /// Writes the claim of a quorum to this node in the CIB, or removes it; done when the step is.
    Claim(Option<QuorumClaim>),
}

/// Plans the steps from what is to what should be; empty when all is well.
pub fn plan(view: View<'_>) -> Vec<Step> {
    if view.mode == ReplicationMode::Quorum {
        return quorum_plan::plan(view);
    }
    let chosen = choose(view);
    let keeps = view.waits_for == Some(&chosen);
    let revoked: Vec<&Node> = others(view)
        .filter(|node| claims(view, node) && !(keeps && chosen.names(&node.name)))
        .filter(|node| !entitled_without_sync(view, node))
        .collect();
    let mut steps = own_steps(view);
    if stored_claim(view).is_some() {
        // Left by quorum mode: before commits wait for others, nobody may be elected by it any more.
        steps.push(Step::Claim(None));
    }
    steps.extend(
        revoked
            .iter()
            .filter(|node| may_be_promoted(view, node))
            .map(|node| Step::Score { node: node.name.clone(), score: Score::NEVER }),
    );
    let data: Vec<_> = others(view)
        .filter(|node| !(keeps && chosen.names(&node.name)))
        .filter_map(|node| {
            let wanted = unclaimed_data_status(view, node);
            (node.data_status(view.names) != Some(wanted)).then(|| (node.name.clone(), wanted))
        })
        .collect();
    if !data.is_empty() {
        steps.push(Step::DataStatus(data));
    }
    if !keeps {
        let unpromotable: Vec<_> = revoked.iter().map(|node| node.name.clone()).collect();
        if !unpromotable.is_empty() {
            steps.push(Step::ConfirmUnpromotable(unpromotable));
        }
        steps.push(Step::WaitFor(chosen.clone()));
    }
    for node in others(view).filter(|node| node.online && streams(view, &node.name)) {
        if chosen.names(&node.name) {
            steps.extend(grant(view, node, keeps));
        } else {
            steps.extend(follower_steps(view, node));
        }
    }
    steps
}

/// Whether the plan takes from a node the right to be promoted because it is not streaming; such a
/// plan deserves a second look, since a walreceiver that reconnects is away for a moment only.
pub fn loses_standby(view: View<'_>) -> bool {
    let named = |node: &Node| view.waits_for.is_some_and(|name| name.names(&node.name));
    let lost = |node: &Node| node.online && !leaves(view, node) && !streams(view, &node.name);
    others(view).any(|node| named(node) && lost(node))
}

/// Whom the primary should wait for.
fn choose(view: View<'_>) -> SyncName {
    if view.mode == ReplicationMode::Async {
        return SyncName::None;
    }
    if let Some(SyncName::Node(name)) = view.waits_for
        && view.cib.node(name).is_some_and(|node| node.name != view.own)
        && streams(view, name)
    {
        return SyncName::Node(name.clone());
    }
    let best = others(view).filter(|node| node.online).filter_map(|node| {
        let row = row(view, &node.name)?;
        let held_all = node.data_status(view.names) == Some(DataStatus::Sync);
        Some(((held_all, row.flushed, std::cmp::Reverse(&node.name)), node))
    });
    match (best.max_by_key(|(rank, _)| *rank), view.waits_for) {
        (Some((_, node)), _) => SyncName::Node(node.name.clone()),
        // Strict: going on to wait for the lost standby keeps it promotable, and writes blocked.
        (None, Some(lost @ SyncName::Node(_))) if view.strict => lost.clone(),
        (None, _) if view.strict => SyncName::Block,
        (None, _) => SyncName::None,
    }
}

/// What the primary says of itself, where it differs.
pub(super) fn own_steps(view: View<'_>) -> Vec<Step> {
    let Some(node) = view.cib.node(view.own) else { return Vec::new() };
    let mut steps = Vec::new();
    if node.data_status(view.names) != Some(DataStatus::Latest) {
        steps.push(Step::DataStatus(vec![(node.name.clone(), DataStatus::Latest)]));
    }
    steps.extend(score_step(view, node, Score::PRIMARY));
    steps.extend(status_step(view, node, Status::Primary));
    steps
}

/// Makes the named standby promotable, once it is proven to be in sync.
fn grant(view: View<'_>, node: &Node, keeps: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    let complete = keeps && node.data_status(view.names) == Some(DataStatus::Sync);
    let promotable = keeps && node.score(view.names) == Some(Score::SYNC);
    if !complete || !promotable {
        steps.push(Step::AwaitSync(node.name.clone()));
    }
    if !complete {
        steps.push(Step::DataStatus(vec![(node.name.clone(), DataStatus::Sync)]));
    }
    if !promotable {
        steps.push(Step::Score { node: node.name.clone(), score: Score::SYNC });
    }
    steps.extend(status_step(view, node, Status::Sync));
    steps
}

/// What a streaming standby that nobody waits for is worth.
fn follower_steps(view: View<'_>, node: &Node) -> Vec<Step> {
    let (score, status) = match view.mode {
        ReplicationMode::Async => (Score::SYNC, Status::Async),
        ReplicationMode::Sync | ReplicationMode::Quorum => (Score::NEVER, Status::Potential),
    };
    // A revocation is in the plan already.
    let revoked = score == Score::NEVER && may_be_promoted(view, node);
    let mut steps: Vec<_> =
        score_step(view, node, score).into_iter().filter(|_| !revoked).collect();
    steps.extend(status_step(view, node, status));
    steps
}

fn unclaimed_data_status(view: View<'_>, node: &Node) -> DataStatus {
    match (streams(view, &node.name), view.mode) {
        (false, _) => DataStatus::Disconnected,
        (true, ReplicationMode::Async) => DataStatus::Async,
        (true, ReplicationMode::Sync | ReplicationMode::Quorum) => DataStatus::Potential,
    }
}

pub(super) fn score_step(view: View<'_>, node: &Node, score: Score) -> Option<Step> {
    let differs = node.score(view.names) != Some(score);
    differs.then(|| Step::Score { node: node.name.clone(), score })
}

pub(super) fn status_step(view: View<'_>, node: &Node, status: Status) -> Option<Step> {
    let differs = node.status(view.names) != Some(status);
    differs.then(|| Step::Status { node: node.name.clone(), status })
}

pub(super) fn others(view: View<'_>) -> impl Iterator<Item = &Node> {
    view.cib.nodes.values().filter(move |node| node.name != view.own)
}

/// The row of a standby that streams, and means to go on.
fn row<'a>(view: View<'a>, name: &str) -> Option<&'a Row> {
    let stays = view.cib.node(name).is_none_or(|node| !leaves(view, node));
    view.rows.iter().find(|row| row.name == name && row.streaming && stays)
}

/// A standby that is about to be stopped says so before it stops.
fn leaves(view: View<'_>, node: &Node) -> bool {
    node.status(view.names) == Some(Status::Stopped)
}

/// What is written down of a quorum on the primary's node, whether or not it can be read.
pub(super) fn stored_claim<'a>(view: View<'a>) -> Option<&'a str> {
    view.cib.node(view.own)?.permanent.get(&view.names.quorum).map(String::as_str)
}

pub(super) fn streams(view: View<'_>, name: &str) -> bool {
    row(view, name).is_some()
}

fn may_be_promoted(view: View<'_>, node: &Node) -> bool {
    node.score(view.names).is_some_and(Score::allows_promotion)
}

fn claims(view: View<'_>, node: &Node) -> bool {
    may_be_promoted(view, node) || node.data_status(view.names).is_some_and(DataStatus::is_complete)
}

/// In asynchronous mode a standby that streams may be promoted: operators chose so.
fn entitled_without_sync(view: View<'_>, node: &Node) -> bool {
    view.mode == ReplicationMode::Async && streams(view, &node.name)
}

#[cfg(test)]
#[path = "sync_plan_tests.rs"]
mod tests;
