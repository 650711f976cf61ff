//! Keeps the replication slots of a running server in order.
//!
//! Whatever fails here is left to the next monitor: no slot is worth a failed action.

use std::{collections::BTreeMap, time::Duration};

use slog::{error, info, warn};

use super::context::{Agent, Failure};
use crate::{
    edge::{
        agent_sql::{Local, State},
        command::Run,
        slot_sql::Slots,
    },
    error::chain,
    model::agent::{
        cib::Cib,
        lsn::Lsn,
        settings::SlotSettings,
        slots::{
            Step, View, Why, ahead_of_logical, has_stale_candidates, plan, slot_name,
            stale_failover_slots, to_ask,
        },
    },
};

/// The longest wait for one other node: it only delays a slot, and a monitor must not dawdle.
const ASK_LIMIT: Duration = Duration::from_secs(1);

/// The primary has a slot for each other node.
pub(super) async fn keep_on_primary<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    cib: &Cib,
    state: &State,
) {
    tolerate(agent, on_primary(agent, local, cib, state).await);
}

/// A standby has a slot for each other node as well, since it may become the primary, and moves
/// each up to what its node says that it holds.
pub(super) async fn keep_on_standby<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    cib: &Cib,
    state: &State,
) {
    tolerate(agent, on_standby(agent, local, cib, state).await);
}

fn tolerate<R>(agent: &Agent<R>, done: Result<(), Failure>) {
    if let Err(failure) = done {
        warn!(agent.log, "cannot keep the replication slots in order, the next monitor tries again";
            "event" => "agent.slots.fail", "error" => failure.reason);
    }
}

async fn on_primary<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    cib: &Cib,
    state: &State,
) -> Result<(), Failure> {
    let found = local.slots().await?;
    let (nodes, nobody) = (node_names(agent, cib), BTreeMap::new());
    carry_out(agent, local, cib, plan(view(agent, &nodes, state, &found, &nobody))).await;
    // No matter here, and one reload less after a promotion.
    let copies = agent.postmaster.settings().slots.is_some_and(|slots| slots.copies_logical);
    let ahead = if agent.copies_logical() && found.wal_level_logical {
        ahead_of_logical(&agent.node, cib, agent.names(), &state.rows, &found.slots)
    } else {
        Vec::new()
    };
    agent.settle_slots(agent.slot_settings_seen(copies, ahead))
}

async fn on_standby<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    cib: &Cib,
    state: &State,
) -> Result<(), Failure> {
    let found = local.slots().await?;
    let primary = cib.primary_other_than(&agent.node, agent.names());
    let address = primary.and_then(|node| node.address(agent.names()));
    name_own_slot(agent, address, &found).await?;
    let nodes = node_names(agent, cib);
    let nobody = BTreeMap::new();
    let asked = to_ask(view(agent, &nodes, state, &found, &nobody));
    let held = positions(agent, cib, state, &found, &asked).await;
    carry_out(agent, local, cib, plan(view(agent, &nodes, state, &found, &held))).await;
    let Some(address) = address else { return Ok(()) };
    if state.receives {
        return replace_stale(agent, local, address, &found).await;
    }
    tell_if_lost(agent, address).await
}

/// Names this node's slot on the primary, once it is there: a standby that names a slot that is not
/// there cannot stream.
async fn name_own_slot<R: Run + Clone>(
    agent: &Agent<R>,
    primary: Option<&str>,
    found: &Slots,
) -> Result<(), Failure> {
    let copies = agent.copies_logical() && found.wal_level_logical;
    let wanted = agent.slot_settings_seen(copies, Vec::new());
    let slot = |slots: &Option<SlotSettings>| slots.as_ref().map(|slots| slots.own.clone());
    let named = slot(&wanted).filter(|own| !own.is_empty());
    if let Some(own) = named
        && slot(&agent.postmaster.settings().slots).as_deref() != Some(&own)
    {
        let Some(primary) = primary else { return Ok(()) };
        agent.remote(primary, agent.share(6, ASK_LIMIT)).ensure_slot(&own).await?;
    }
    agent.settle_slots(wanted)
}

/// How far the `asked` nodes hold WAL of the timeline that streams in here. A node that does not
/// answer, or that has another history, is left out.
async fn positions<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    state: &State,
    found: &Slots,
    asked: &[&str],
) -> BTreeMap<String, Lsn> {
    let mut held = BTreeMap::new();
    let Some(timeline) = found.received_timeline else { return held };
    for node in asked.iter().filter_map(|name| cib.node(name)).filter(|node| node.online) {
        let Some(address) = node.address(agent.names()) else { continue };
        if agent.conninfo(address) == state.primary_conninfo {
            // What was sent here is there.
            held.insert(node.name.clone(), state.replayed);
            continue;
        }
        let answer = agent.remote(address, agent.share(6, ASK_LIMIT)).identify().await;
        if let Ok((system, position)) = answer
            && system == found.system
            && position.timeline == timeline
        {
            held.insert(node.name.clone(), position.lsn);
        }
    }
    held
}

async fn carry_out<R: Run + Clone>(agent: &Agent<R>, local: &Local, cib: &Cib, steps: Vec<Step>) {
    for step in steps {
        if matches!(step, Step::Drop { why: Why::NodeLeft, .. }) && !knows_who_is_left(agent).await
        {
            continue;
        }
        if let Err(error) = local.change_slot(&step).await {
            warn!(agent.log, "cannot change a replication slot, the next monitor tries again";
                "event" => "agent.slots.step_fail", "step" => ?step, "error" => %chain(&error));
            continue;
        }
        match &step {
            Step::Drop { why: Why::Lost { node }, .. } => {
                let own = cib.node(&agent.node).and_then(|own| own.address(agent.names()));
                error!(agent.log, "a standby fell behind by more WAL than slots may keep; \
                    unless it streams again, make it anew"; "event" => "agent.slots.lost",
                    "node" => node, "limit" => &agent.parameters.slot_wal_limit,
                    "command" => agent.rebuild(node, own.unwrap_or("PRIMARY")));
            }
            // Happens all the time.
            Step::Advance { .. } => {}
            _ => info!(agent.log, "changed a replication slot"; "event" => "agent.slots.change",
                "step" => ?step),
        }
    }
}

/// A side of the cluster without quorum may not have heard who belongs to it.
async fn knows_who_is_left<R: Run + Clone>(agent: &Agent<R>) -> bool {
    agent.attributes.has_quorum().await.unwrap_or(false)
}

/// Drops the logical slots that this node had as the primary, where the new primary has them now:
/// the server copies them from there again, and would refuse to while these exist.
async fn replace_stale<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    primary: &str,
    found: &Slots,
) -> Result<(), Failure> {
    if !agent.copies_logical() || !has_stale_candidates(&found.slots) {
        return Ok(());
    }
    let there = agent.remote(primary, agent.share(6, ASK_LIMIT)).failover_slots().await?;
    for slot in stale_failover_slots(&found.slots, &there) {
        local.drop_logical_slot(&slot).await?;
        info!(agent.log, "dropped a logical slot that the new primary has taken over";
            "event" => "agent.slots.stale", "slot" => slot, "primary" => primary);
    }
    Ok(())
}

/// Says what to do about a standby that does not stream, if it is because its WAL is gone.
async fn tell_if_lost<R: Run + Clone>(agent: &Agent<R>, primary: &str) -> Result<(), Failure> {
    let parameters = &agent.parameters;
    let may_ask = parameters.rewind || agent.copies_logical();
    let Ok(own) = slot_name(&agent.node) else { return Ok(()) };
    if !parameters.replication_slots || !may_ask {
        return Ok(());
    }
    let remote = agent.remote(primary, agent.share(6, ASK_LIMIT));
    match remote.lacks_wal(&own).await? {
        Some(true) => {
            warn!(agent.log, "this standby does not stream, and the primary keeps no WAL that it \
                could go on from; unless that passes, or an archive has the WAL, make it anew";
                "event" => "agent.slots.behind", "primary" => primary,
                "command" => agent.rebuild(&agent.node, primary));
        }
        Some(false) => {}
        None => remote.ensure_slot(&own).await?,
    }
    Ok(())
}

fn node_names<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> Vec<String> {
    let names: Vec<String> = cib.nodes.keys().cloned().collect();
    if agent.parameters.replication_slots {
        for error in names.iter().filter_map(|node| slot_name(node).err()) {
            warn!(agent.log, "a node can have no replication slot"; "event" => "agent.slots.name",
                "error" => %error);
        }
    }
    names
}

fn view<'a, R: Run + Clone>(
    agent: &'a Agent<R>,
    nodes: &'a [String],
    state: &State,
    found: &'a Slots,
    held: &'a BTreeMap<String, Lsn>,
) -> View<'a> {
    View {
        own: &agent.node,
        nodes,
        enabled: agent.parameters.replication_slots,
        in_recovery: state.in_recovery,
        slots: &found.slots,
        replayed: state.replayed,
        redo: found.redo,
        held,
    }
}
