//! Holding clients and letting them go.

use std::{future::Future, net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::{
    Failover,
    agents::{Agent, Tier, pausers},
    pipeline::{Dirt, Trouble, TroubleKind},
};
use crate::{
    edge::{
        clock,
        peer::{PeerError, pb},
    },
    error::chain,
    model::span::millis,
    work::shutdown::Stop,
};

/// The least that a pause gets for open transactions, when an earlier tier used up the time.
const LEAST_PAUSE: Duration = Duration::from_millis(250);
/// What a call may take beyond what the agent was told, to say how it ended.
pub(super) const CALL_GRACE: Duration = Duration::from_secs(2);
/// Once one agent failed, the others get this long to say why they would too.
const PATIENCE: Duration = Duration::from_millis(200);
/// Pause between two tries of the same call.
const RETRY: Duration = Duration::from_millis(100);

/// An agent that was asked to hold its clients.
#[derive(Debug, Clone)]
pub(super) struct Hold {
    pub agent: Arc<Agent>,
    /// Confirmed by the agent.
    pub resumed: bool,
}

/// Until when an agent is tried.
#[derive(Clone, Copy)]
struct Tries {
    until: Instant,
    limit: Duration,
}

impl Failover {
    /// Holds all clients, application tier first.
    ///
    /// The expiry of every pause is counted from the beginning of this step.
    pub(super) async fn pause(&self) -> Result<(), Trouble> {
        let options = &self.options;
        let began = Instant::now();
        let deadline = began + options.pause_expiry;
        let unix_deadline = clock::unix_ms()
            + millis(options.pause_expiry)
            // The agents' clocks start when the request arrives.
            + millis(CALL_GRACE);
        let who = {
            let mut state = self.state();
            state.pause_deadline = Some(deadline);
            state.pause_deadline_unix_ms = unix_deadline;
            pausers(&state.agents)
        };
        let noted = self.note("pause").await;
        noted.map_err(|error| Trouble::failed(chain(&error).to_string()))?;
        let (switch, done) = Stop::new();
        let holding = async {
            let result = self.pause_tiers(&who, began + options.pause_timeout, deadline).await;
            let _ = switch.send(true);
            result
        };
        tokio::join!(holding, self.clear_the_way(began, done)).0
    }

    async fn pause_tiers(
        &self,
        who: &[(Tier, Arc<Agent>)],
        wait_until: Instant,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        for tier in Tier::ALL {
            let agents: Vec<Arc<Agent>> =
                who.iter().filter(|(of, _)| *of == tier).map(|(_, agent)| agent.clone()).collect();
            self.pause_tier(agents, wait_until, deadline).await?;
        }
        Ok(())
    }

    async fn pause_tier(
        &self,
        agents: Vec<Arc<Agent>>,
        wait_until: Instant,
        deadline: Instant,
    ) -> Result<(), Trouble> {
        let now = Instant::now();
        let expiry = deadline.saturating_duration_since(now);
        let timeout = wait_until.saturating_duration_since(now).max(LEAST_PAUSE);
        if timeout >= expiry {
            return Err(Trouble::failed("too little is left of pause-expiry to go on pausing"));
        }
        {
            let mut state = self.state();
            state.held_since.get_or_insert(now);
            // Begun counts: a pause whose answer is lost holds clients all the same.
            state
                .holds
                .extend(agents.iter().map(|agent| Hold { agent: agent.clone(), resumed: false }));
        }
        let attempt = self.attempt();
        let limit = (timeout + CALL_GRACE).min(expiry);
        let call = |agent: Arc<Agent>| {
            let attempt = attempt.clone();
            async move { agent.peer.pause(attempt, timeout, expiry, limit).await }
        };
        let errors = self.each("pause", agents, Some(PATIENCE), call, |_, _| {}).await;
        if errors.is_empty() {
            return Ok(());
        }
        let busy = errors.iter().all(|error| matches!(error, PeerError::Busy { .. }));
        let kind = if busy { TroubleKind::Busy } else { TroubleKind::Failed };
        Err(Trouble::new(kind, join(&errors)))
    }

    /// Waits until each agent follows the new primary, and lets its clients go at once: nobody is
    /// held up by somebody else's slow proxy.
    pub(super) async fn follow(&self) -> Result<(), Trouble> {
        let address = self.state().after.as_ref().map(|primary| primary.address);
        let until = self.pause_deadline();
        // One try to resume; the next step is for those with whom it fails.
        let (followed, _) = self.let_go("follow", address, until, Instant::now(), false).await;
        if followed.is_empty() { Ok(()) } else { Err(Trouble::failed(join(&followed))) }
    }

    /// Makes sure that every agent has let its clients go.
    pub(super) async fn resume(&self) -> Result<(), Trouble> {
        let until = Instant::now() + self.options.resume_timeout;
        let (_, resumed) = self.let_go("resume", None, until, until, false).await;
        if resumed.is_empty() { Ok(()) } else { Err(Trouble::failed(join(&resumed))) }
    }

    /// Undo of the pause: clients are let go, after their PgBouncer follows the primary if that may
    /// have changed. When time is up they are let go anyway, since their pause expires then.
    pub(super) async fn undo_pause(&self) -> Vec<Dirt> {
        let address = {
            let state = self.state();
            state.after.as_ref().filter(|_| state.migrate_begun).map(|primary| primary.address)
        };
        let follow_until = self.pause_deadline();
        let resume_until = follow_until.max(Instant::now()) + self.options.resume_timeout;
        let (followed, resumed) =
            self.let_go("pause", address, follow_until, resume_until, true).await;
        let mut dirty: Vec<Dirt> = followed
            .iter()
            .map(|error| {
                let remedy = "look at the log of `pgcm proxy` there; its clients reach the old \
                              primary until it follows";
                Dirt::new(error.to_string(), remedy)
            })
            .collect();
        dirty.extend(resumed.iter().map(|error| {
            let remedy = format!(
                "its pause expires by itself within {:?} of the pause; check with `pgcm status`",
                self.options.pause_expiry
            );
            Dirt::new(format!("clients may still be held: {error}"), remedy)
        }));
        dirty
    }

    /// Follow, when there is an address, then resume, on every agent that holds clients.
    /// Returns who did not follow, and who did not resume.
    async fn let_go(
        &self,
        step: &'static str,
        address: Option<IpAddr>,
        follow_until: Instant,
        resume_until: Instant,
        resume_anyway: bool,
    ) -> (Vec<PeerError>, Vec<PeerError>) {
        let attempt = self.attempt();
        let limit = self.options.resume_timeout;
        let agents: Vec<Arc<Agent>> = self
            .state()
            .holds
            .iter()
            .filter(|hold| !hold.resumed)
            .map(|hold| hold.agent.clone())
            .collect();
        let call = |agent: Arc<Agent>| {
            let attempt = attempt.clone();
            async move {
                let mut followed = Ok(());
                if let Some(address) = address.filter(|_| agent.follows) {
                    followed = follow(&agent, &attempt, address, follow_until).await;
                }
                if followed.is_err() && !resume_anyway {
                    return Ok((followed, None));
                }
                let tries = Tries { until: resume_until, limit };
                Ok((followed, Some(resume(&agent, &attempt, tries).await)))
            }
        };
        let (mut not_followed, mut not_resumed) = (Vec::new(), Vec::new());
        self.each(step, agents, None, call, |agent, result| {
            let Ok((followed, resumed)) = result else { return };
            not_followed.extend(followed.clone().err());
            match resumed {
                Some(Ok(())) => self.let_go_confirmed(agent),
                // Of a stale one as well: a newer attempt is known there, and may not have taken the pause over yet.
                Some(Err(error)) => not_resumed.push(error.clone()),
                None => {}
            }
        })
        .await;
        (not_followed, not_resumed)
    }

    fn let_go_confirmed(&self, agent: &Agent) {
        let mut state = self.state();
        state.released_at = Some(Instant::now());
        let name = agent.peer.name();
        state
            .holds
            .iter_mut()
            .filter(|hold| hold.agent.peer.name() == name)
            .for_each(|hold| hold.resumed = true);
    }

    fn pause_deadline(&self) -> Instant {
        self.state().pause_deadline.unwrap_or_else(Instant::now)
    }

    /// Calls all `agents` at once and tells who is awaited; returns the errors.
    ///
    /// With `patience`, what is still open that long after the first error is dropped.
    pub(super) async fn each<T, F>(
        &self,
        step: &'static str,
        agents: Vec<Arc<Agent>>,
        patience: Option<Duration>,
        call: impl Fn(Arc<Agent>) -> F,
        mut on: impl FnMut(&Agent, &Result<T, PeerError>),
    ) -> Vec<PeerError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PeerError>> + Send + 'static,
    {
        let mut awaited: Vec<String> =
            agents.iter().map(|agent| agent.peer.name().to_owned()).collect();
        let mut set = JoinSet::new();
        for agent in agents {
            let work = call(agent.clone());
            set.spawn(async move { (agent, work.await) });
        }
        let mut errors = Vec::new();
        let mut cutoff: Option<Instant> = None;
        loop {
            self.awaiting(step, &awaited);
            let next = match cutoff {
                None => set.join_next().await,
                Some(at) => timeout_at(at, set.join_next()).await.unwrap_or(None),
            };
            let Some(joined) = next else { return errors };
            let Ok((agent, result)) = joined else { continue };
            awaited.retain(|name| name != agent.peer.name());
            on(&agent, &result);
            if let Err(error) = result {
                errors.push(error);
                cutoff = cutoff.or(patience.map(|patience| Instant::now() + patience));
            }
        }
    }
}

async fn follow(
    agent: &Agent,
    attempt: &pb::Attempt,
    address: IpAddr,
    until: Instant,
) -> Result<(), PeerError> {
    // One try is made even when time is up: most likely it follows already.
    const LEAST: Duration = Duration::from_millis(100);
    loop {
        let left = until.saturating_duration_since(Instant::now()).max(LEAST);
        match agent.peer.follow(attempt.clone(), address, left, left + RETRY).await {
            Err(error) if worth_another_try(&error) && Instant::now() + RETRY < until => {
                sleep(RETRY).await;
            }
            result => return result,
        }
    }
}

async fn resume(agent: &Agent, attempt: &pb::Attempt, tries: Tries) -> Result<(), PeerError> {
    loop {
        match agent.peer.resume(attempt.clone(), tries.limit).await {
            Err(error) if worth_another_try(&error) && Instant::now() + RETRY < tries.until => {
                sleep(RETRY).await;
            }
            result => return result,
        }
    }
}

fn worth_another_try(error: &PeerError) -> bool {
    !matches!(error, PeerError::Stale { .. } | PeerError::Unauthenticated { .. })
}

pub(super) fn join(errors: &[PeerError]) -> String {
    errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}
