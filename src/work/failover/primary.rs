//! Moving the primary: prepare, migrate, settle, unmigrate, verify.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    Failover,
    agents::{self, Agent, supervises},
    clients::{CALL_GRACE, join},
    pipeline::{Dirt, Trouble, TroubleKind},
};
use crate::{
    edge::peer::{PeerError, pb},
    error::chain,
    model::{
        cluster::{ClusterView, Primary},
        finding::Finding,
        span::millis,
    },
    work::mover::PATIENCE,
};

/// A move is not begun with less than this to go.
const LEAST_MOVE: Duration = Duration::from_millis(500);
/// Clients that were let go open connections now. Pacemaker's next plan, which the constraint's end starts,
/// can wait for them.
pub(super) const CLIENTS_FIRST: Duration = Duration::from_millis(300);
/// Pause between two tries to learn who is primary.
const RETRY: Duration = Duration::from_millis(200);

impl Failover {
    /// After the lock was got: the primary is still the one that the checks saw.
    pub(super) async fn same_primary(&self) -> Result<(), Trouble> {
        let now = self
            .read_view()
            .await?
            .map_err(|finding| Trouble::new(TroubleKind::Refused, finding.message))?;
        let before = self.primary_before()?;
        if (&now.primary.name, now.primary.address) == (&before.name, before.address) {
            return Ok(());
        }
        let reason = format!(
            "the primary changed from {} to {} after the checks; run it again",
            before.name, now.primary.name
        );
        Err(Trouble::new(TroubleKind::Refused, reason))
    }

    /// After the lock was got: no agent has registered that the checks have not seen. One that does so
    /// from now on finds the lock, and joins the pause by itself.
    pub(super) async fn same_agents(&self) -> Result<(), Trouble> {
        if !self.options.endpoints.is_empty() {
            return Ok(());
        }
        let (now, _) = agents::discover(&self.etcd, &[], &self.peers)
            .await
            .map_err(|error| Trouble::new(TroubleKind::Unanswered, chain(&error).to_string()))?;
        let state = self.state();
        let is_new = |name: &&str| !state.agents.iter().any(|agent| agent.peer.name() == *name);
        match now.iter().map(|candidate| candidate.peer.name()).find(is_new) {
            None => Ok(()),
            Some(name) => {
                let reason = format!("{name} was registered after the checks; run it again");
                Err(Trouble::new(TroubleKind::Refused, reason))
            }
        }
    }

    /// CHECKPOINT on the primary and on the node that is to be one, at the same time.
    pub(super) async fn prepare(&self) -> Result<(), Trouble> {
        let before = self.primary_before()?;
        let agents: Vec<Arc<Agent>> = {
            let state = self.state();
            let wanted = |agent: &Arc<Agent>| {
                agent.host == before.name || state.target.as_ref() == Some(&agent.host)
            };
            supervises(&state.agents, &[]).into_iter().filter(wanted).collect()
        };
        let (attempt, timeout) = (self.attempt(), self.options.prepare_timeout);
        let call = |agent: Arc<Agent>| {
            let attempt = attempt.clone();
            async move { agent.peer.prepare(attempt, timeout, timeout + CALL_GRACE).await }
        };
        let errors = self.each("prepare", agents, None, call, |_, _| {}).await;
        if errors.is_empty() { Ok(()) } else { Err(Trouble::failed(join(&errors))) }
    }

    /// Moves the promoted role and learns who is primary then, published and writable.
    pub(super) async fn migrate(&self) -> Result<(), Trouble> {
        let before = self.primary_before()?;
        let (budget, least) = (self.move_budget(), self.least_move());
        if budget < least {
            return Err(Trouble::failed(format!(
                "only {budget:?} of pause-expiry is left to move in, and no move is begun with less than {least:?}"
            )));
        }
        let agent = {
            let mut state = self.state();
            let agent = supervises(&state.agents, &[&before.name]).into_iter().next();
            state.migrate_begun = agent.is_some();
            state.still_moving = agent.as_ref().map(|agent| agent.peer.name().to_owned());
            agent.ok_or_else(|| Trouble::failed("no supervise is left to ask"))?
        };
        let request = pb::MigrateRequest {
            attempt: Some(self.attempt()),
            target: self.state().target.clone().unwrap_or_default(),
            timeout_ms: millis(budget),
            constraint_lifetime_ms: millis(self.options.constraint_lifetime),
        };
        self.awaiting("migrate", &[agent.peer.name().to_owned()]);
        let after = agent.peer.migrate(request, budget + RETRY).await;
        let after = after.map_err(|error| Trouble::failed(error.to_string()))?;
        let moved = after.name != before.name;
        let reason = format!("{} is still the primary", after.name);
        {
            let mut state = self.state();
            state.still_moving = None;
            state.moved = moved;
            state.after = Some(after);
        }
        if moved { Ok(()) } else { Err(Trouble::failed(reason)) }
    }

    /// How long a move may take now: what is left of the pause but for a margin to follow in.
    pub(super) fn move_budget(&self) -> Duration {
        let expiry = self.options.pause_expiry;
        let margin = (expiry / 10).clamp(Duration::from_millis(100), Duration::from_secs(2));
        let left = self
            .state()
            .pause_deadline
            .map_or(expiry, |deadline| deadline.saturating_duration_since(Instant::now()));
        left.saturating_sub(margin).min(self.options.pacemaker_timeout)
    }

    /// What keeps even a pause that takes no time from leaving enough of itself to move in.
    pub(super) fn move_time(&self) -> Option<Finding> {
        let (budget, least) = (self.move_budget(), self.least_move());
        let words = format!(
            "pause-expiry ({:?}) leaves {budget:?} to move in, and moves on record take so long that {least:?} would be \
             needed; raise failover.pause-expiry",
            self.options.pause_expiry
        );
        (budget < least).then(|| Finding::refuse("move-time", words))
    }

    /// Twice what those on record took in the middle, but not more than any move may take.
    fn least_move(&self) -> Duration {
        let median = self.state().expected.as_ref().and_then(|past| past.median("migrate"));
        let twice = median.map_or(LEAST_MOVE, |median| median * 2);
        twice.max(LEAST_MOVE).min(self.options.pacemaker_timeout)
    }

    /// Undo of a move that was begun and not seen to end: takes its cause away, then waits for
    /// whichever node is primary. Whether the demotion had begun is not knowable from here.
    pub(super) async fn undo_migrate(&self) -> Vec<Dirt> {
        let (begun, moved, deadline) = {
            let state = self.state();
            (state.migrate_begun, state.moved, state.pause_deadline)
        };
        if !begun || moved {
            return Vec::new();
        }
        // Without the lock another attempt may have a constraint by now. Ours has a lifetime, supervise removes it before
        // that, and nobody is called primary from whom it would still take the role.
        let mut dirty =
            if self.lock.is_lost() { Vec::new() } else { self.clear_constraint().await };
        let until = deadline.unwrap_or_else(Instant::now);
        match self.settle(until.max(Instant::now() + RETRY)).await {
            Ok(primary) => {
                let mut state = self.state();
                let before = state.before.as_ref().map(|view| view.primary.name.clone());
                state.moved = before.is_some_and(|before| before != primary.name);
                state.after = Some(primary);
            }
            Err(reason) => dirty.push(Dirt::new(
                format!("which node is the primary is not known: {reason}"),
                "look at `crm_mon -Afr1` and `pgcm status`",
            )),
        }
        dirty
    }

    /// Who is primary, by the word of its own supervise where that answers: others may not see yet
    /// that a demotion has begun.
    async fn settle(&self, until: Instant) -> Result<Primary, String> {
        let attempt = self.attempt();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let call = |agent: Arc<Agent>| {
                let attempt = attempt.clone();
                async move { agent.peer.settle(attempt, left, left + RETRY).await }
            };
            let errors = match self.first("migrate", call).await {
                Ok(primary) => match self.confirm(primary, until).await {
                    Ok(primary) => return Ok(primary),
                    Err(error) => vec![error],
                },
                Err(errors) => errors,
            };
            let overtaken = errors.iter().all(|error| matches!(error, PeerError::Stale { .. }));
            if overtaken || Instant::now() + RETRY >= until {
                return Err(join(&errors));
            }
            sleep(RETRY).await;
        }
    }

    /// Asks the supervise of `primary` itself; one that cannot answer does not contradict.
    async fn confirm(&self, primary: Primary, until: Instant) -> Result<Primary, PeerError> {
        let agents = supervises(&self.state().agents, &[&primary.name]);
        let Some(agent) = agents.into_iter().find(|agent| agent.host == primary.name) else {
            return Ok(primary);
        };
        let left = until.saturating_duration_since(Instant::now()).min(CALL_GRACE);
        match agent.peer.settle(self.attempt(), left, left + RETRY).await {
            Ok(own) => Ok(own),
            Err(PeerError::Unreachable { .. } | PeerError::TimedOut { .. }) => Ok(primary),
            Err(error) => Err(error),
        }
    }

    /// The constraint goes, then the lock.
    pub(super) async fn unmigrate(&self) -> Result<(), Trouble> {
        sleep(CLIENTS_FIRST).await;
        let clear = async {
            self.clear_own_constraint().await;
            self.clear_constraint().await
        };
        let (mut dirty, _) = tokio::join!(clear, self.note("unmigrate"));
        dirty.extend(self.release_lock().await);
        match dirty.into_iter().next() {
            None => Ok(()),
            Some(dirt) => Err(Trouble::failed(dirt.what)),
        }
    }

    /// Undo of the lock: whatever is still ours goes, the lock last.
    pub(super) async fn undo_lock(&self) -> Vec<Dirt> {
        // Lost, or released by the last step, which could not remove the constraint. It may be another's by now.
        let gone = self.lock.is_lost() || !self.state().locked;
        let mut dirty = if gone { Vec::new() } else { self.clear_constraint().await };
        let lifetime = self.options.constraint_lifetime;
        if gone && self.state().may_have_constraint() {
            let remedy = format!(
                "supervise removes it as soon as the primary stays without it; it stops to count {lifetime:?} \
                 after it was made"
            );
            dirty.push(Dirt::new(
                "the move constraint stays: this attempt has no lock any more",
                remedy,
            ));
        }
        dirty.extend(self.release_lock().await);
        dirty
    }

    /// Lets the agent that made the constraint take it away; of the others each would have to look for it.
    async fn clear_own_constraint(&self) {
        let Ok(before) = self.primary_before() else { return };
        let agents = supervises(&self.state().agents, &[&before.name]);
        let Some(agent) = agents.first() else { return };
        let limit = PATIENCE + self.options.resume_timeout / 2;
        self.awaiting("unmigrate", &[agent.peer.name().to_owned()]);
        if agent.peer.unmigrate(self.attempt(), limit).await.is_ok() {
            self.state().constraint_removed = true;
        }
    }

    /// Takes the constraint away, whoever can. While a move may still be on its way, only the agent that was
    /// asked for it can stop it; the others may look before its constraint has landed.
    async fn clear_constraint(&self) -> Vec<Dirt> {
        if !self.state().may_have_constraint() {
            return Vec::new();
        }
        let (attempt, limit) = (self.attempt(), PATIENCE + self.options.resume_timeout);
        let mover = self.state().still_moving.clone();
        let call = |agent: Arc<Agent>| {
            let attempt = attempt.clone();
            async move { agent.peer.unmigrate(attempt, limit).await }
        };
        match self.first_with("unmigrate", mover.as_deref(), call).await {
            Ok(_) => {
                self.state().constraint_removed = true;
                Vec::new()
            }
            Err(errors) => {
                let remedy = format!(
                    "it stops to count {:?} after it was made; to remove it at once, look for \
                     `pgcm-move-` in `crm configure show` or `pcs constraint --full`",
                    self.options.constraint_lifetime
                );
                vec![Dirt::new(
                    format!("the move constraint may be left: {}", join(&errors)),
                    remedy,
                )]
            }
        }
    }

    async fn release_lock(&self) -> Option<Dirt> {
        let held = self.state().locked;
        match self.lock.release().await {
            Ok(()) => {
                self.state().locked = false;
                None
            }
            Err(_) if !held => None,
            Err(error) => Some(Dirt::new(
                format!("the lock is not released: {}", crate::error::chain(&error)),
                format!("it frees itself within {:?}", self.options.lock_lease),
            )),
        }
    }

    /// Asks all supervises at once; the first that succeeds speaks for all.
    async fn first<T, F>(
        &self,
        step: &'static str,
        call: impl Fn(Arc<Agent>) -> F,
    ) -> Result<T, Vec<PeerError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PeerError>> + Send + 'static,
    {
        self.first_with(step, None, call).await
    }

    /// Asks all supervises at once; `decisive`, or else the first that succeeds, speaks for all.
    /// The word of the others is not taken for that of `decisive`.
    async fn first_with<T, F>(
        &self,
        step: &'static str,
        decisive: Option<&str>,
        call: impl Fn(Arc<Agent>) -> F,
    ) -> Result<T, Vec<PeerError>>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PeerError>> + Send + 'static,
    {
        let agents = supervises(&self.state().agents, &[]);
        let names: Vec<String> = agents.iter().map(|agent| agent.peer.name().to_owned()).collect();
        self.awaiting(step, &names);
        let mut set = JoinSet::new();
        for agent in agents {
            let speaks = decisive.is_none_or(|name| name == agent.peer.name());
            let work = call(agent);
            set.spawn(async move { (speaks, work.await) });
        }
        let mut errors = Vec::new();
        while let Some(joined) = set.join_next().await {
            match joined {
                Ok((true, Ok(value))) => return Ok(value),
                Ok((_, Err(error))) => errors.push(error),
                Ok((false, Ok(_))) | Err(_) => {}
            }
        }
        Err(errors)
    }

    /// Waits until the old primary streams again and a standby is synchronous.
    pub(super) async fn verify(&self) -> Result<(), Trouble> {
        let old = self.primary_before()?.name;
        let new = self.state().after.as_ref().map_or_else(String::new, |after| after.name.clone());
        let until = Instant::now() + self.options.verify_timeout;
        if let Some(record) = self.record_of("verify") {
            // The lock is gone; what is written here nobody waits for.
            let _ = self.etcd.put_if(&[], &[record]).await;
        }
        loop {
            let missing = match self.read_view().await {
                Ok(Ok(view)) => missing(&view, &old, &new),
                Ok(Err(finding)) => Some(finding.message),
                Err(trouble) => Some(trouble.reason),
            };
            match missing {
                None => return Ok(()),
                Some(missing) if Instant::now() >= until => return Err(Trouble::failed(missing)),
                Some(_) => sleep(self.options.watch_interval).await,
            }
        }
    }

    fn primary_before(&self) -> Result<Primary, Trouble> {
        let state = self.state();
        let before = state.before.as_ref().map(|view| view.primary.clone());
        before.ok_or_else(|| Trouble::failed("the checks saw no primary"))
    }
}

/// What keeps `view` from being whole after the move from `old` to `new`.
fn missing(view: &ClusterView, old: &str, new: &str) -> Option<String> {
    if view.primary.name != new {
        return Some(format!("{} is the primary, not {new}", view.primary.name));
    }
    match view.standbys.iter().find(|standby| standby.name == old) {
        None => return Some(format!("{old} is not connected to the new primary")),
        Some(standby) if standby.state != "streaming" => {
            return Some(format!("{old} is connected, but in state `{}`", standby.state));
        }
        Some(_) => {}
    }
    let words = "no standby is synchronous, so none surely holds every commit";
    view.synchronous_standby().is_none().then(|| words.to_owned())
}
