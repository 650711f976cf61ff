//! Replication slots: what they are called, and the steps from the slots that are to those that
//! should be.
//!
//! Every node keeps one physical slot for each other node. On the primary the standby itself moves
//! its slot by streaming; on a standby the agent moves it, never beyond what the slot's node holds.

use std::collections::BTreeMap;

use super::{
    cib::{Cib, Names, Node},
    claim::Score,
    lsn::Lsn,
    sync_plan::Row,
};

/// What the names of the agent's slots begin with; every other slot is somebody else's.
pub const PREFIX: &str = "pgcm_";

/// Postgres cuts longer names, or refuses them.
const NAME_LIMIT: usize = 63;

/// WAL is kept and removed in files of this size, or of less if `initdb` was told so: a smaller step frees little.
const SEGMENT: u64 = 16 * 1024 * 1024;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the slot of node {node} would be called `{slot}`; expected at most {NAME_LIMIT} characters: \
     give the node a shorter name"
)]
pub struct NameTooLong {
    pub node: String,
    pub slot: String,
}

/// The name of the slot that is kept for `node`; no two nodes share one.
///
/// Lower case letters and digits stay; every other byte becomes `_` and its two hex digits.
pub fn slot_name(node: &str) -> Result<String, NameTooLong> {
    let mut slot = PREFIX.to_owned();
    for byte in node.bytes() {
        match byte {
            b'a'..=b'z' | b'0'..=b'9' => slot.push(char::from(byte)),
            other => slot.push_str(&format!("_{other:02x}")),
        }
    }
    if slot.len() > NAME_LIMIT {
        return Err(NameTooLong { node: node.to_owned(), slot });
    }
    Ok(slot)
}

/// One slot, as `pg_replication_slots` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Slot {
    pub name: String,
    pub physical: bool,
    pub active: bool,
    pub temporary: bool,
    /// Invalidated: the WAL that it kept is gone.
    pub lost: bool,
    /// From where on it keeps WAL; `None` while it keeps none.
    pub restart: Option<Lsn>,
    /// Keeps old versions of rows as well, for a standby that gave feedback.
    pub keeps_rows: bool,
    /// Logical, and to be synchronised to standbys (Postgres 17).
    pub failover: bool,
    /// Copied from the primary by the server itself.
    pub synced: bool,
}

/// All that the plan is made from.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    pub own: &'a str,
    /// The names of all nodes of the cluster.
    pub nodes: &'a [String],
    /// Whether slots are wanted at all.
    pub enabled: bool,
    pub in_recovery: bool,
    pub slots: &'a [Slot],
    /// On a standby: how far this node has replayed.
    pub replayed: Lsn,
    /// On a standby: where its last checkpoint begins, from where on a new slot keeps WAL.
    pub redo: Lsn,
    /// On a standby: how far other nodes said just now that they hold WAL of this node's timeline.
    pub held: &'a BTreeMap<String, Lsn>,
}

/// Why a slot goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Why {
    /// No node of the cluster has a slot of that name.
    NodeLeft,
    /// A node keeps no slot for itself.
    Own,
    /// It keeps no WAL, or none any more; another takes its place.
    Useless,
    /// It was used on this node while that was the primary, and keeps the versions of rows that
    /// its standby needed then: nobody moves that horizon any more, and through this standby's own
    /// feedback it would keep the primary from cleaning up.
    KeepsRows,
    /// It is useless, and the node that it belongs to lost its WAL by that.
    Lost { node: String },
    /// Slots are not wanted any more.
    Off,
}

/// One thing to do; each stands alone, so that one that fails does not stop the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// With `reserve` the slot keeps WAL at once, else from its first use on.
    Create {
        slot: String,
        reserve: bool,
    },
    Advance {
        slot: String,
        to: Lsn,
    },
    Drop {
        slot: String,
        why: Why,
    },
}

/// Plans the steps on this node; empty when all is well.
pub fn plan(view: View<'_>) -> Vec<Step> {
    if !view.nodes.iter().any(|node| node == view.own) {
        // A cluster without this node is not a cluster to judge by.
        return Vec::new();
    }
    if !view.enabled {
        return others(view)
            .filter_map(|(_, name)| find(view, &name).map(|_| name))
            .filter(|name| may_drop(view, name))
            .map(|slot| Step::Drop { slot, why: Why::Off })
            .collect();
    }
    let mut steps = leftovers(view);
    for (node, name) in others(view) {
        steps.extend(if view.in_recovery {
            on_standby(view, node, name)
        } else {
            on_primary(view, node, name)
        });
    }
    steps
}

/// The nodes whose position a standby needs to know now, because a slot could move by it.
pub fn to_ask(view: View<'_>) -> Vec<&str> {
    if !view.enabled || !view.in_recovery {
        return Vec::new();
    }
    let due = |name: &str| match find(view, name) {
        None => true,
        Some(slot) if slot.active || !slot.physical => false,
        Some(slot) if slot.lost || slot.keeps_rows => true,
        Some(slot) => slot.restart.is_none_or(|at| gains(at, view.replayed)),
    };
    others(view).filter(|(_, name)| due(name)).map(|(node, _)| node).collect()
}

/// Logical slots that were this node's own when it was the primary, and that keep the server from
/// copying those of the same name from the new primary, which has taken them over.
pub fn stale_failover_slots(slots: &[Slot], of_primary: &[String]) -> Vec<String> {
    let stale = slots.iter().filter(|slot| is_stale(slot) && of_primary.contains(&slot.name));
    stale.map(|slot| slot.name.clone()).collect()
}

/// Whether a standby has a logical slot that the server did not copy from the primary.
pub fn has_stale_candidates(slots: &[Slot]) -> bool {
    slots.iter().any(is_stale)
}

/// The slots that consumers of logical failover slots must not overtake, on the primary: of every
/// node that may be promoted, or that streams and so may soon be. A node that is lost would hold the
/// consumers up; it is left out once it may not be promoted any more.
pub fn ahead_of_logical(
    own: &str,
    cib: &Cib,
    names: &Names,
    rows: &[Row],
    slots: &[Slot],
) -> Vec<String> {
    let streams = |node: &Node| rows.iter().any(|row| row.streaming && row.name == node.name);
    let may_be_promoted = |node: &Node| node.score(names).is_some_and(Score::allows_promotion);
    let others = cib.nodes.values().filter(|node| node.name != own);
    let ahead = others.filter_map(|node| {
        let name = slot_name(&node.name).ok()?;
        let slot = slots.iter().find(|slot| slot.name == name)?;
        let used = slot.restart.is_some() && !slot.lost;
        let named = (slot.active && streams(node)) || may_be_promoted(node);
        (used && named).then_some(name)
    });
    ahead.collect()
}

fn is_stale(slot: &Slot) -> bool {
    !slot.physical && slot.failover && !slot.synced && !slot.active && !slot.temporary
}

fn on_primary(view: View<'_>, node: &str, name: String) -> Vec<Step> {
    match find(view, &name) {
        // It keeps nothing before its node has come: nobody knows whether it ever will.
        None => vec![Step::Create { slot: name, reserve: false }],
        Some(slot) if slot.lost && may_drop(view, &name) => vec![
            Step::Drop { slot: name.clone(), why: Why::Lost { node: node.to_owned() } },
            Step::Create { slot: name, reserve: false },
        ],
        Some(_) => Vec::new(),
    }
}

fn on_standby(view: View<'_>, node: &str, name: String) -> Vec<Step> {
    let Some(&held) = view.held.get(node) else { return Vec::new() };
    let Some(slot) = find(view, &name) else {
        return vec![Step::Create { slot: name, reserve: true }];
    };
    if !slot.physical || slot.active {
        return Vec::new();
    }
    let replaced = |why| {
        vec![
            Step::Drop { slot: name.clone(), why },
            Step::Create { slot: name.clone(), reserve: true },
        ]
    };
    match slot.restart.filter(|_| !slot.lost) {
        None if may_drop(view, &name) => replaced(Why::Useless),
        // A new slot keeps WAL from the last checkpoint on, which is enough for this node.
        Some(_) if slot.keeps_rows && held >= view.redo && may_drop(view, &name) => {
            replaced(Why::KeepsRows)
        }
        Some(at) if gains(at, held.min(view.replayed)) => {
            vec![Step::Advance { slot: name, to: held.min(view.replayed) }]
        }
        _ => Vec::new(),
    }
}

/// Our slots that belong to no other node of this cluster.
fn leftovers(view: View<'_>) -> Vec<Step> {
    let kept: Vec<String> = others(view).map(|(_, name)| name).collect();
    let own = slot_name(view.own).ok();
    let gone = view.slots.iter().filter(|slot| slot.name.starts_with(PREFIX));
    gone.filter(|slot| !kept.contains(&slot.name) && may_drop(view, &slot.name))
        .map(|slot| {
            let why = if own.as_ref() == Some(&slot.name) { Why::Own } else { Why::NodeLeft };
            Step::Drop { slot: slot.name.clone(), why }
        })
        .collect()
}

fn others(view: View<'_>) -> impl Iterator<Item = (&str, String)> {
    let others = view.nodes.iter().filter(move |node| *node != view.own);
    others.filter_map(|node| Some((node.as_str(), slot_name(node).ok()?)))
}

fn find<'a>(view: View<'a>, name: &str) -> Option<&'a Slot> {
    view.slots.iter().find(|slot| slot.name == name)
}

fn may_drop(view: View<'_>, name: &str) -> bool {
    let droppable = |slot: &Slot| slot.physical && !slot.active && !slot.temporary;
    name.starts_with(PREFIX) && find(view, name).is_some_and(droppable)
}

fn gains(from: Lsn, to: Lsn) -> bool {
    to.0.saturating_sub(from.0) >= SEGMENT
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
