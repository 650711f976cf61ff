//! The standby's duties: follow the primary, and say so when that cannot be.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use slog::{info, warn};
use tokio::time::sleep;

use super::{
    context::{Agent, Failure},
    election, slots, start,
};
use crate::{
    edge::{
        agent_sql::{Local, State},
        clock,
        command::Run,
    },
    model::agent::{
        cib::{Cib, Node},
        claim::{DataStatus, Score, Status},
        code::OcfCode,
        parameters::ReplicationMode,
        rejoin::{Local as OwnHistory, Verdict, verdict},
        settings::Settings,
    },
};

/// How long a standby that lost its primary, or the role, leaves the cluster to the next one.
const HEIR_FIRST: Duration = Duration::from_secs(1);

/// A standby that was found diverged in this many monitors in a row is failed.
const DIVERGED_LIMIT: u32 = 2;

/// Repoints the server to the current primary, and reports a standby that follows nobody.
///
/// # Errors
/// When the standby can never follow the primary: a restart then judges whether to rewind.
pub(super) async fn duties<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    local: &Local,
    state: State,
    is_notified: bool,
) -> Result<(), Failure> {
    expect_promotion(agent)?;
    if was_just_demoted(agent) {
        return Ok(());
    }
    let (state, cib) = match look(agent, local, state, is_notified).await {
        Ok(seen) => seen,
        Err(failure) => {
            warn!(agent.log, "cannot read who is primary, the next monitor tries again";
                "event" => "agent.standby.blind", "error" => failure.reason);
            return Ok(());
        }
    };
    let state = &state;
    start::restore_attributes(agent, &cib).await;
    let primary = cib.primary_other_than(&agent.node, agent.names());
    if let Some(primary) = primary
        && repoint(agent, primary, &state.primary_conninfo)?
    {
        return Ok(());
    }
    if primary.is_none() && awaits_heir(agent, &cib) {
        return election::candidacy(agent, &cib, state).await;
    }
    slots::keep_on_standby(agent, local, &cib, state).await;
    if state.receives {
        let _ = fs::remove_file(agent.alone_file());
        if primary.is_some() {
            correct_status(agent, &cib).await;
        }
        return Ok(());
    }
    let Some(primary) = primary else {
        tell_alone(agent, &cib, state).await;
        return election::candidacy(agent, &cib, state).await;
    };
    match primary.address(agent.names()) {
        Some(address) => fail_if_diverged(agent, address, state, &cib).await,
        None => Ok(()),
    }
}

/// Clients wait for the heir of a demoted primary: whatever this one has to ask and to tell can wait for its next
/// monitor.
fn was_just_demoted<R: Run + Clone>(agent: &Agent<R>) -> bool {
    let left = fs::metadata(agent.demoted_file()).and_then(|mark| mark.modified()).ok();
    left.and_then(clock::age_of).is_some_and(|age| age < HEIR_FIRST)
}

/// Reads the CIB. While nothing streams in to a node that may not be promoted itself, and that knows of no
/// other primary than the one it had, clients most likely wait for an heir: what there is to ask and to tell can
/// wait for that one. Not with notifications on: Pacemaker would wait for this to end before it promotes.
async fn look<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    state: State,
    is_notified: bool,
) -> Result<(State, Cib), Failure> {
    let cib = agent.attributes.query().await?;
    let own = cib.node(&agent.node).and_then(|own| own.score(agent.names()));
    let is_heir = own.is_some_and(Score::allows_promotion);
    let primary = cib.primary_other_than(&agent.node, agent.names());
    let address = primary.and_then(|node| node.address(agent.names()));
    let is_known = address.is_none_or(|it| agent.conninfo(it) == state.primary_conninfo);
    if state.receives || is_heir || is_notified || !is_known || !awaits_heir(agent, &cib) {
        return Ok((state, cib));
    }
    sleep(agent.share(4, HEIR_FIRST)).await;
    Ok((local.state().await?, agent.attributes.query().await?))
}

/// Keeps what will hold in the moment after a promotion as the parameters say, which may have changed
/// since the start.
fn expect_promotion<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    let sync_name = agent.standby_settings(None).sync_name;
    let settings = agent.postmaster.settings();
    if settings.sync_name == sync_name {
        return Ok(());
    }
    agent.postmaster.write_settings(&Settings { sync_name, ..settings })?;
    if let (_, Some(pid)) = agent.postmaster.process()? {
        agent.postmaster.signal(pid, Signal::SIGHUP)?;
    }
    Ok(())
}

/// Points the standby at `primary` by rewriting its settings and a reload; true when that was due.
pub(super) fn repoint<R: Run + Clone>(
    agent: &Agent<R>,
    primary: &Node,
    current: &str,
) -> Result<bool, Failure> {
    let Some(address) = primary.address(agent.names()) else { return Ok(false) };
    let primary_conninfo = agent.conninfo(address);
    if primary_conninfo == current {
        return Ok(false);
    }
    info!(agent.log, "following the primary"; "event" => "agent.standby.repoint",
        "primary" => &primary.name, "address" => address);
    let settings = Settings { primary_conninfo, ..agent.postmaster.settings() };
    agent.postmaster.write_settings(&settings)?;
    if let (_, Some(pid)) = agent.postmaster.process()? {
        agent.postmaster.signal(pid, Signal::SIGHUP)?;
    }
    Ok(true)
}

/// Corrects the status of a demoted primary that its successor has not corrected, and of a server that
/// does not stop after all. Before there is a successor nothing may change, or Pacemaker would think
/// again while clients wait.
async fn correct_status<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) {
    let names = agent.names();
    let status = cib.node(&agent.node).and_then(|own| own.status(names));
    if matches!(status, Some(Status::Primary | Status::Stopped) | None) {
        let set = agent.attributes.set(&agent.node, &names.status, Status::Alone.as_str()).await;
        agent.tolerate("status", set);
    }
}

/// Whether a primary was demoted whose heir is being promoted: the old one is called the primary until the
/// heir's first monitor, clients wait, and nothing may change.
fn awaits_heir<R: Run + Clone>(agent: &Agent<R>, cib: &Cib) -> bool {
    let names = agent.names();
    cib.nodes.values().any(|node| node.is_called_primary(names))
        && !cib.promotable_other_than(&agent.node, names).is_empty()
}

/// Shows that this standby follows nobody. A claim to every acknowledged commit is only the
/// primary's to revoke: when the primary is dead this node may be the one to be promoted.
async fn tell_alone<R: Run + Clone>(agent: &Agent<R>, cib: &Cib, state: &State) {
    let names = agent.names();
    let Some(own) = cib.node(&agent.node) else { return };
    // A server that still reads its own disk would be counted as one that knows where its WAL ends.
    let tells = state.exhausted || agent.parameters.mode != ReplicationMode::Quorum;
    if tells && own.status(names) != Some(Status::Alone) {
        let set = agent.attributes.set(&agent.node, &names.status, Status::Alone.as_str()).await;
        agent.tolerate("status", set);
    }
    let data = own.data_status(names);
    let claims = data.is_some_and(DataStatus::is_complete);
    if data.is_some() && !claims && data != Some(DataStatus::Disconnected) {
        let lost = [(agent.node.clone(), DataStatus::Disconnected)];
        agent.tolerate("data status", agent.attributes.set_data_statuses(&lost).await);
    }
}

/// Fails a standby whose history left the primary's, once that was seen often enough.
///
/// Says that it follows nobody only if the primary answers. One that does not has most likely just died:
/// clients wait for a promotion then, and each attribute costs every node a write of the CIB.
async fn fail_if_diverged<R: Run + Clone>(
    agent: &Agent<R>,
    address: &str,
    state: &State,
    cib: &Cib,
) -> Result<(), Failure> {
    let limit = agent.share(6, Duration::from_secs(3));
    // Before the primary is asked: what it says must not be older than what is found here.
    let Ok(control) = agent.postmaster.control_data(limit).await else {
        // A slow disk is no proof.
        return Ok(());
    };
    let Ok(primary) = agent.remote(address, limit).describe().await else {
        // The primary cannot be reached: that is not this standby's fault either.
        let own = cib.node(&agent.node).and_then(|own| own.data_status(agent.names()));
        if own == Some(DataStatus::Disconnected) {
            // A primary that lives has let go of it: nobody waits for a promotion.
            tell_alone(agent, cib, state).await;
        }
        return Ok(());
    };
    tell_alone(agent, cib, state).await;
    let received = agent.received(state.position, state.checkpoint_timeline);
    // The position is where the next record would begin; the last one began before it.
    let last_record = crate::model::agent::lsn::Lsn(received.lsn.0.saturating_sub(1));
    let local = OwnHistory {
        timeline: received.timeline,
        last_record: Some(last_record),
        was_standby: true,
    };
    // The server may be on its way through these files: what cannot be read now is seen next time.
    let tail = agent.received_beyond(state, &primary).unwrap_or(None);
    let why = match (tail, verdict(&control, local, &primary)) {
        (Some(beyond), Verdict::Follow | Verdict::Diverged { .. }) => format!(
            "it received more of timeline {} than the primary has, up to {}, and waits for the rest; \
             a start moves that aside",
            beyond.timeline, beyond.end
        ),
        (None, Verdict::Follow) => {
            let _ = fs::remove_file(agent.alone_file());
            return Ok(());
        }
        (_, Verdict::Diverged { why } | Verdict::Foreign { why }) => why,
    };
    let path = agent.alone_file();
    let seen = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse().ok());
    let seen: u32 = seen.unwrap_or(0) + 1;
    if let Err(error) = keep(&path, &seen.to_string()) {
        warn!(agent.log, "cannot keep count of lonely monitors";
            "event" => "agent.standby.count", "error" => %error);
    }
    if seen < DIVERGED_LIMIT {
        return Ok(());
    }
    Err(Failure::new(OcfCode::Generic, format!("this standby cannot follow {address}: {why}")))
}

/// Writes a file of this agent's own, which a boot forgets.
fn keep(path: &Path, text: &str) -> io::Result<()> {
    path.parent().map_or(Ok(()), fs::create_dir_all)?;
    fs::write(path, text)
}

impl<R: Run + Clone> Agent<R> {
    /// Lets clients go first for a moment. Without this mark the next monitor only has more to do.
    pub(super) fn mark_demoted(&self) {
        let _ = keep(&self.demoted_file(), "");
    }

    /// Counts monitors in a row that found this standby diverged.
    pub(super) fn alone_file(&self) -> PathBuf {
        self.state_file("diverged")
    }

    /// As old as the last switchover away from this node.
    fn demoted_file(&self) -> PathBuf {
        self.state_file("demoted")
    }

    fn state_file(&self, what: &str) -> PathBuf {
        PathBuf::from(&self.state_dir).join(format!("pgcm-{}.{what}", self.parameters.resource))
    }
}
