//! The primary's duties: its synchronous standbys, and true attributes on all nodes.

use std::{collections::BTreeSet, time::Duration};

use nix::sys::signal::Signal;
use slog::{error, info, warn};
use tokio::time::{Instant, sleep};

use super::{
    context::{Agent, Failure},
    promote, slots, start,
};
use crate::{
    edge::{
        agent_sql::{Local, State},
        command::Run,
        poke::Urgency,
    },
    error::chain,
    model::agent::{
        cib::{Cib, Node},
        claim::{DataStatus, Score, Status},
        code::OcfCode,
        settings::{Settings, SyncName},
        sync_plan::{Row, Step, View, loses_standby, plan},
    },
};

/// A walreceiver that reconnects, for example because its upstream changed, is away this long at
/// most; a standby that is away longer is lost.
const GRACE: Duration = Duration::from_millis(500);

/// How long another node may take to show its CIB.
const PEER_LIMIT: Duration = Duration::from_secs(2);

/// How long a standby must have been seen synchronous before it counts: time for the checkpointer
/// to take over the reloaded settings, from which on every commit waits.
const SETTLED: Duration = Duration::from_millis(150);

/// Compares what is with what should be and carries out the difference, in order.
pub(super) async fn duties<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    mut state: State,
) -> Result<(), Failure> {
    let cib = agent.attributes.query().await?;
    if let Some(primary) = cib.primary_instead_of(&agent.node, agent.names()) {
        return Err(stale(&primary.name));
    }
    start::restore_attributes(agent, &cib).await;
    if promote::is_settled(agent, &cib)
        && let Some(other) = another_primary(agent, &cib)
        && cib
            .node(&agent.node)
            .is_some_and(|own| own.status(agent.names()) == Some(Status::Primary))
    {
        error!(agent.log, "two nodes say that they are the primary; look at fencing";
            "event" => "agent.monitor.two_primaries", "other" => &other.name);
    }
    promote::announce(agent, &cib, &state).await?;
    let graced = Instant::now() + GRACE;
    while loses_standby(view(agent, &cib, &state, &waits_for(&state))) && Instant::now() < graced {
        sleep(Duration::from_millis(50)).await;
        state = local.state().await?;
    }
    let steps = plan(view(agent, &cib, &state, &waits_for(&state)));
    let changes = |step: &Step| changes_waiting(step) || matches!(step, Step::Claim(_));
    if steps.iter().any(changes) && !still_has_quorum(agent).await? {
        return Ok(());
    }
    slots::keep_on_primary(agent, local, &cib, &state).await;
    if !steps.is_empty() {
        // Whom commits wait for is about to change, and with it what is published.
        agent.poke(Urgency::Soon);
    }
    for step in steps {
        if changes_waiting(&step) {
            // What this node's CIB says counts only if the majority's says so too: in a partition a
            // write may have been delivered on this side alone. Quorum comes second, since it is
            // known to be lost only seconds after it was.
            agent.attributes.confirm_claims(&agent.node, agent.share(4, PEER_LIMIT)).await?;
            if !still_has_quorum(agent).await? {
                return Ok(());
            }
        }
        carry_out(agent, local, step).await?;
    }
    if lacks_checkpoint(&state) {
        // pg_rewind reads the timeline from the control file, which only a checkpoint updates.
        if let Err(error) = local.checkpoint().await {
            warn!(agent.log, "the checkpoint on the new timeline goes on in the background";
                "event" => "agent.monitor.checkpoint", "error" => %chain(&error));
        }
    }
    Ok(())
}

/// Whether no checkpoint was written since the promotion. The first monitor writes one.
fn lacks_checkpoint(state: &State) -> bool {
    state.timeline.is_some_and(|timeline| timeline > state.checkpoint_timeline)
}

/// Lets Pacemaker leave this primary promoted when it has lost all transient attributes, as it does when it is
/// restarted in maintenance mode, or when this node's controller dies: then it probes, and without a score it demotes
/// whoever runs as primary once that has ended. The claim, which lasts, says whether this is the primary still.
///
/// Returns when the CIB has the score, since Pacemaker plans as soon as the probe tells the role.
pub(super) async fn keep_role<R: Run + Clone>(agent: &Agent<R>) {
    let Ok(cib) = agent.attributes.query().await else { return };
    let Some(own) = cib.node(&agent.node) else { return };
    let holds_newest = own.data_status(agent.names()) == Some(DataStatus::Latest);
    if holds_newest && own.score(agent.names()).is_none() {
        let set = agent.attributes.set_score(&agent.node, Score::PRIMARY).await;
        agent.tolerate("promotion score", set);
        start::restore_attributes(agent, &cib).await;
        let limit = agent.share(4, Duration::from_secs(2));
        let confirmed = agent.attributes.confirm_score(&agent.node, limit).await;
        agent.tolerate("promotion score", confirmed);
    }
}

/// A server that takes writes beside the primary. Nothing is told of it: Pacemaker finds it promoted where it is not to
/// be, and demotes it.
fn stale(primary: &str) -> Failure {
    let reason = format!(
        "{primary} is the primary, and this server takes writes without having been promoted: was it started, or \
         promoted, past Pacemaker?"
    );
    Failure::new(OcfCode::Generic, reason)
}

fn another_primary<'a, R: Run + Clone>(agent: &Agent<R>, cib: &'a Cib) -> Option<&'a Node> {
    let mut others = cib.nodes.values().filter(|node| node.name != agent.node);
    others.find(|node| node.is_called_primary(agent.names()))
}

fn changes_waiting(step: &Step) -> bool {
    matches!(step, Step::WaitFor(_))
}

/// Whether this side of the cluster may decide whom commits wait for. The other side may be promoting
/// the very standby that this one would stop waiting for.
async fn still_has_quorum<R: Run + Clone>(agent: &Agent<R>) -> Result<bool, Failure> {
    let quorum = agent.attributes.has_quorum().await?;
    if !quorum {
        warn!(agent.log, "without quorum the primary goes on waiting for its standby";
            "event" => "agent.replication.no_quorum");
    }
    Ok(quorum)
}

fn waits_for(state: &State) -> Option<SyncName> {
    SyncName::parse(&state.sync_names)
}

fn view<'a, R: Run + Clone>(
    agent: &'a Agent<R>,
    cib: &'a Cib,
    state: &'a State,
    waits_for: &'a Option<SyncName>,
) -> View<'a> {
    View {
        own: &agent.node,
        cib,
        names: agent.names(),
        mode: agent.parameters.mode,
        quorum_standbys: agent.parameters.quorum_standbys,
        strict: agent.parameters.strict,
        timeline: state.timeline,
        waits_for: waits_for.as_ref(),
        rows: &state.rows,
    }
}

async fn carry_out<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    step: Step,
) -> Result<(), Failure> {
    info!(agent.log, "changing replication"; "event" => "agent.replication.change",
        "step" => ?step);
    match step {
        Step::Score { node, score } => agent.attributes.set_score(&node, score).await?,
        Step::Status { node, status } => {
            agent.attributes.set(&node, &agent.names().status, status.as_str()).await?;
        }
        Step::DataStatus(values) => agent.attributes.set_data_statuses(&values).await?,
        Step::ConfirmUnpromotable(nodes) => {
            let limit = agent.share(3, Duration::from_secs(10));
            agent.attributes.confirm_unpromotable(&nodes, limit).await?;
        }
        Step::WaitFor(name) => wait_for(agent, local, name).await?,
        Step::AwaitSync(node) => {
            let members = BTreeSet::from([node]);
            await_flushed(agent, local, 1, &members).await?;
        }
        Step::AwaitQuorum(quorum) => {
            await_flushed(agent, local, quorum.needed(), quorum.members()).await?;
        }
        Step::Claim(claim) => {
            agent.attributes.set_quorum_claim(&agent.node, claim.as_ref()).await?;
        }
    }
    Ok(())
}

/// Names the standby that commits wait for, and sees the server take it over.
async fn wait_for<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    name: SyncName,
) -> Result<(), Failure> {
    let setting = name.setting();
    let settings = Settings { sync_name: name, ..agent.postmaster.settings() };
    agent.postmaster.write_settings(&settings)?;
    let (_, pid) = agent.postmaster.process()?;
    if let Some(pid) = pid {
        agent.postmaster.signal(pid, Signal::SIGHUP)?;
    }
    let deadline = Instant::now() + agent.share(3, Duration::from_secs(5));
    while local.state().await?.sync_names != setting {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                OcfCode::Generic,
                format!(
                    "synchronous_standby_names = '{setting}' is not taken over; is it set elsewhere?"
                ),
            ));
        }
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Waits until `needed` of `members` are synchronous for good and hold all that was acknowledged before.
async fn await_flushed<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    needed: usize,
    members: &BTreeSet<String>,
) -> Result<(), Failure> {
    let deadline = Instant::now() + agent.share(3, Duration::from_secs(3));
    let mut since = None;
    let mut target = None;
    loop {
        let state = local.state().await?;
        let waited_for = |row: &&Row| row.streaming && row.is_sync && members.contains(&row.name);
        let rows: Vec<&Row> = state.rows.iter().filter(waited_for).collect();
        let caught_up = |target| rows.iter().filter(|row| row.flushed >= target).count() >= needed;
        match (since, target) {
            _ if rows.len() < needed => (since, target) = (None, None),
            (None, _) => since = Some(Instant::now()),
            (Some(first), None) if first.elapsed() >= SETTLED && state.checkpointer_idle => {
                target = Some(state.position);
            }
            (Some(_), Some(target)) if caught_up(target) => return Ok(()),
            _ => {}
        }
        if Instant::now() >= deadline {
            let members: Vec<_> = members.iter().map(String::as_str).collect();
            return Err(Failure::new(
                OcfCode::Generic,
                format!(
                    "{} not in sync yet ({needed} needed); what rests on that has to wait",
                    members.join(", ")
                ),
            ));
        }
        sleep(Duration::from_millis(10)).await;
    }
}
