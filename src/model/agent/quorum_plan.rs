//! The ordered steps that keep a quorum of synchronous standbys.
//!
//! Two things move: whom the running server waits for, and the claim in the CIB that says who may be
//! elected. At every moment each acknowledged commit is on at least so many of the claim's members
//! as the claim says. So the claim first becomes one that holds before and after ([`joint`]), then the
//! server waits for others, then those catch up, and only then the claim becomes what is aimed at.

use std::collections::BTreeSet;

use super::{
    cib::Node,
    claim::{DataStatus, Score, Status},
    quorum::{Quorum, QuorumClaim, is_plain, joint},
    settings::SyncName,
    sync_plan::{Step, View, others, own_steps, score_step, status_step, stored_claim, streams},
};

/// What the plan aims at.
struct Aim {
    waits_for: SyncName,
    /// Writes wait until enough standbys are back: nobody loses anything meanwhile.
    blocked: bool,
    /// What the claim is on the way there.
    on_the_way: Option<Quorum>,
    /// What it is in the end.
    claim: Option<Quorum>,
}

impl Aim {
    fn of(view: View<'_>) -> Self {
        let (waits_for, blocked) = choose(view);
        let on_the_way = joint(held(view).as_ref(), view.waits_for, &waits_for);
        let claim = match &waits_for {
            SyncName::Quorum(quorum) if !blocked => Some(quorum.clone()),
            _ if blocked => on_the_way.clone(),
            _ => None,
        };
        Self { waits_for, blocked, on_the_way, claim }
    }

    /// Whether `node` keeps, from beginning to end, the right to be elected.
    fn keeps(&self, node: &Node) -> bool {
        let held = self.on_the_way.as_ref().is_some_and(|quorum| quorum.contains(&node.name));
        held && (self.blocked || self.waits_for.names(&node.name))
    }
}

/// Plans the steps from what is to what should be; empty when all is well.
pub(super) fn plan(view: View<'_>) -> Vec<Step> {
    // On a primary the timeline is always known; without it a claim would be worth nothing.
    let Some(timeline) = view.timeline else { return own_steps(view) };
    let aim = Aim::of(view);
    let revoked: Vec<_> =
        others(view).filter(|node| claims(view, node) && !aim.keeps(node)).collect();
    let mut steps = own_steps(view);
    steps.extend(
        revoked
            .iter()
            .filter(|node| node.score(view.names).is_some_and(Score::allows_promotion))
            .map(|node| Step::Score { node: node.name.clone(), score: Score::NEVER }),
    );
    let claim =
        |quorum: &Option<Quorum>| quorum.clone().map(|quorum| QuorumClaim { quorum, timeline });
    let on_the_way = claim(&aim.on_the_way);
    if stored_claim(view) != on_the_way.as_ref().map(ToString::to_string).as_deref() {
        steps.push(Step::Claim(on_the_way));
    }
    steps.extend(data_statuses(view, |node| meanwhile(view, &aim, node)));
    if view.waits_for != Some(&aim.waits_for) {
        if !revoked.is_empty() {
            let revoked = revoked.iter().map(|node| node.name.clone()).collect();
            steps.push(Step::ConfirmUnpromotable(revoked));
        }
        steps.push(Step::WaitFor(aim.waits_for.clone()));
    }
    if let Some(quorum) = aim.claim.as_ref().filter(|_| aim.claim != aim.on_the_way) {
        steps.push(Step::AwaitQuorum(quorum.clone()));
        steps.push(Step::Claim(claim(&aim.claim)));
        let gained = |node: &Node| quorum.contains(&node.name) && !aim.keeps(node);
        let gained: Vec<_> = others(view)
            .filter(|node| gained(node))
            .map(|node| (node.name.clone(), DataStatus::Quorum))
            .collect();
        steps.extend((!gained.is_empty()).then_some(Step::DataStatus(gained)));
    }
    steps.extend(grants(view, &aim));
    steps
}

/// Whom the primary should wait for, and whether that means that writes wait.
fn choose(view: View<'_>) -> (SyncName, bool) {
    let wanted = view.quorum_standbys;
    let named = |node: &Node| view.waits_for.is_some_and(|name| name.names(&node.name));
    let members: BTreeSet<String> = others(view)
        .filter(|node| streams(view, &node.name) && (node.online || named(node)))
        .filter(|node| is_plain(&node.name))
        .map(|node| node.name.clone())
        .collect();
    if view.strict && members.len() < wanted {
        return match view.waits_for {
            Some(SyncName::Quorum(kept)) if kept.needed() >= wanted => {
                (SyncName::Quorum(kept.clone()), true)
            }
            _ => (SyncName::Block, true),
        };
    }
    let needed = wanted.min(members.len());
    (Quorum::new(needed, members).map_or(SyncName::None, SyncName::Quorum), false)
}

/// The claim that holds now: what is written down for this primary, or what a synchronous standby's
/// own claim amounts to.
fn held(view: View<'_>) -> Option<Quorum> {
    let own = view.cib.node(view.own)?;
    if let Some(claim) = own.quorum_claim(view.names)
        && Some(claim.timeline) == view.timeline
    {
        return Some(claim.quorum);
    }
    let SyncName::Node(name) = view.waits_for? else { return None };
    let complete = view.cib.node(name)?.data_status(view.names) == Some(DataStatus::Sync);
    if complete { Quorum::new(1, BTreeSet::from([name.clone()])) } else { None }
}

/// What a node's data is worth until the plan's claim holds.
fn meanwhile(view: View<'_>, aim: &Aim, node: &Node) -> DataStatus {
    if aim.keeps(node) {
        DataStatus::Quorum
    } else if streams(view, &node.name) {
        DataStatus::Potential
    } else {
        DataStatus::Disconnected
    }
}

fn data_statuses(view: View<'_>, wanted: impl Fn(&Node) -> DataStatus) -> Option<Step> {
    let changes: Vec<_> = others(view)
        .map(|node| (node, wanted(node)))
        .filter(|(node, wanted)| node.data_status(view.names) != Some(*wanted))
        .map(|(node, wanted)| (node.name.clone(), wanted))
        .collect();
    (!changes.is_empty()).then_some(Step::DataStatus(changes))
}

/// Scores and statuses of those that stream, at the plan's end. The score only makes a node a
/// candidate: being promoted takes an election.
fn grants(view: View<'_>, aim: &Aim) -> Vec<Step> {
    let member = |node: &Node| aim.claim.as_ref().is_some_and(|quorum| quorum.contains(&node.name));
    let mut steps = Vec::new();
    for node in others(view).filter(|node| streams(view, &node.name)) {
        if member(node) {
            let kept = aim.keeps(node) && node.score(view.names) == Some(Score::SYNC);
            steps.extend(
                (!kept).then(|| Step::Score { node: node.name.clone(), score: Score::SYNC }),
            );
            steps.extend(status_step(view, node, Status::Quorum));
        } else {
            let revoked = node.score(view.names).is_some_and(Score::allows_promotion);
            steps.extend(score_step(view, node, Score::NEVER).filter(|_| !revoked));
            steps.extend(status_step(view, node, Status::Potential));
        }
    }
    steps
}

fn claims(view: View<'_>, node: &Node) -> bool {
    let data = node.data_status(view.names);
    node.score(view.names).is_some_and(Score::allows_promotion)
        || data.is_some_and(DataStatus::is_complete)
        || matches!(data, Some(DataStatus::Quorum | DataStatus::Async))
}

#[cfg(test)]
#[path = "quorum_plan_tests.rs"]
mod tests;
