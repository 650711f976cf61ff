//! The planned failover: clients are held, the primary moves, clients flow again.
//!
//! Read [`steps`] first: the failover is a table. [`pipeline`] runs it and knows nothing of it.

pub mod agents;
mod blockers;
pub mod check;
mod clients;
pub mod pipeline;
mod primary;
pub mod progress;
pub mod report;
mod steps;
mod together;

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use slog::{Logger, info, warn};
use tokio::time::Instant;

use self::{
    agents::Agent,
    check::Found,
    clients::Hold,
    pipeline::{Cause, Interruptible, Outcome},
    progress::{Event, Progress},
    report::{Earlier, Report},
};
use super::{history, shutdown::Stop};
use crate::{
    edge::{
        clock,
        etcd::{Etcd, Put},
        lock::{Lock, LockError, LockOptions},
        peer::{PeerOptions, pb},
    },
    model::{
        attempt::{Attempt, FAILOVER},
        cluster::{ClusterView, Primary},
        history::{Expected, key},
        terminated::Terminated,
    },
};

/// How a failover runs. All limits are explained in the configuration's section `failover`.
#[derive(Debug, Clone)]
pub struct FailoverOptions {
    /// Host and process, for whoever finds the lock taken. Unique among running processes.
    pub holder: String,
    /// Agents to ask, as `host:port`. Empty: those registered in etcd.
    pub endpoints: Vec<String>,
    /// Node to move to. None: the synchronous standby.
    pub target: Option<String>,
    /// Checks and plan only; nothing is changed.
    pub dry_run: bool,
    /// Names of checks that may refuse without stopping the failover, if they can be overridden.
    pub overrides: Vec<String>,
    /// Agents that must be there, as `host/kind`.
    pub expected_agents: Vec<String>,
    /// How often to try while only open transactions stand in the way; at least 1.
    pub attempts: u32,
    /// Pause before the second attempt; doubles each time.
    pub attempt_backoff: Duration,
    /// Ends the transactions that hold up the pause once it has lasted this long. None: never.
    pub terminate_after: Option<Duration>,
    pub health_check_timeout: Duration,
    pub lock_timeout: Duration,
    pub lock_lease: Duration,
    pub prepare_timeout: Duration,
    pub pause_timeout: Duration,
    pub pause_expiry: Duration,
    pub resume_timeout: Duration,
    pub pacemaker_timeout: Duration,
    pub verify_timeout: Duration,
    pub watch_interval: Duration,
    /// The move constraint stops to count this long after it was made.
    pub constraint_lifetime: Duration,
}

/// The backoff grows no further.
const LONGEST_BACKOFF: Duration = Duration::from_secs(300);

/// Moves the primary; whatever happens, says what became of it.
///
/// `token` is what agents ask for. `stop` ends the action and begins the undo, which nothing ends
/// but its own limits. An attempt that only open transactions stopped is undone in full, lock
/// included, before the next one begins. The returned report holds the exit code.
pub async fn run(
    options: FailoverOptions,
    etcd: Arc<Etcd>,
    token: Option<String>,
    progress: Arc<dyn Progress>,
    mut stop: Stop,
    log: Logger,
) -> Report {
    let of = if options.dry_run { 1 } else { options.attempts };
    let mut wait = options.attempt_backoff;
    let mut earlier = Vec::new();
    for attempt in 2..=of {
        let (etcd, token, progress) = (etcd.clone(), token.clone(), progress.clone());
        let told = progress.clone();
        let report = once(options.clone(), etcd, token, progress, stop.clone(), log.clone()).await;
        if !report.busy || stop.is_set() {
            return Report { earlier, ..report };
        }
        told.tell(&Event::Again { attempt, of, wait });
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = stop.wait() => return Report { earlier, ..report },
        }
        earlier.push(Earlier::of(&report));
        wait = (wait * 2).min(LONGEST_BACKOFF);
    }
    let report = once(options, etcd, token, progress, stop, log).await;
    Report { earlier, ..report }
}

/// One attempt, from its checks to its undo.
async fn once(
    options: FailoverOptions,
    etcd: Arc<Etcd>,
    token: Option<String>,
    progress: Arc<dyn Progress>,
    stop: Stop,
    log: Logger,
) -> Report {
    let began = Instant::now();
    let dry_run = options.dry_run;
    let failover = Failover::new(options, etcd, token, progress, stop, log.clone());
    let steps = if dry_run { &steps::STEPS[..1] } else { steps::STEPS };
    let outcome = pipeline::run(steps, &failover, &*failover.progress).await;
    let report = failover.report(began, outcome);
    failover.remember(&report).await;
    announce(&report, &log);
    report
}

fn announce(report: &Report, log: &Logger) {
    let primary = report.new_primary.as_ref().map_or("unknown", |primary| &primary.name);
    match &report.stopped {
        None => info!(log, "the failover ended"; "event" => "failover.end",
            "attempt" => &report.attempt, "outcome" => report.outcome, "primary" => primary,
            "duration_ms" => report.duration_ms, "clients_held_ms" => report.clients_held_ms),
        Some(stopped) => warn!(log, "the failover stopped"; "event" => "failover.stop",
            "attempt" => &report.attempt, "outcome" => report.outcome, "primary" => primary,
            "step" => stopped.step, "reason" => &stopped.reason,
            "duration_ms" => report.duration_ms, "clients_held_ms" => report.clients_held_ms),
    }
}

/// One attempt.
struct Failover {
    options: FailoverOptions,
    etcd: Arc<Etcd>,
    peers: PeerOptions,
    progress: Arc<dyn Progress>,
    stop: Stop,
    attempt: Attempt,
    lock: Lock,
    state: Mutex<State>,
    log: Logger,
}

/// What the steps have learned and done so far.
#[derive(Default)]
struct State {
    before: Option<ClusterView>,
    /// Who is expected to be primary after the move.
    target: Option<String>,
    agents: Vec<Arc<Agent>>,
    findings: Vec<Found>,
    terminated: Vec<Terminated>,
    /// Of past failovers; None without any.
    expected: Option<Expected>,
    locked: bool,
    /// Where this attempt is remembered.
    history_key: Option<String>,
    holds: Vec<Hold>,
    held_since: Option<Instant>,
    released_at: Option<Instant>,
    /// By when every pause has expired.
    pause_deadline: Option<Instant>,
    pause_deadline_unix_ms: u64,
    migrate_begun: bool,
    /// Name of the agent that was asked to move and has not said that it did: it may yet ask
    /// Pacemaker.
    still_moving: Option<String>,
    constraint_removed: bool,
    /// Who is primary after the move or, when that stopped, after its undo.
    after: Option<Primary>,
    /// Whether `after` is another node than before.
    moved: bool,
}

impl State {
    fn may_have_constraint(&self) -> bool {
        self.migrate_begun && !self.constraint_removed
    }
}

impl Failover {
    fn new(
        options: FailoverOptions,
        etcd: Arc<Etcd>,
        token: Option<String>,
        progress: Arc<dyn Progress>,
        stop: Stop,
        log: Logger,
    ) -> Self {
        let attempt = Attempt {
            id: format!("{}-{}", options.holder, clock::unix_ms()),
            holder: options.holder.clone(),
            purpose: FAILOVER.to_owned(),
            started_at: clock::now_rfc3339(),
            step: "lock".to_owned(),
            pause_deadline_unix_ms: 0,
        };
        let lock_options = LockOptions { lease: options.lock_lease, poll: options.watch_interval };
        let lock = Lock::new(etcd.clone(), attempt.clone(), lock_options);
        let peers = PeerOptions { connect_limit: options.health_check_timeout, token };
        let state = Mutex::default();
        Self { options, etcd, peers, progress, stop, attempt, lock, state, log }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On whose behalf agents are asked.
    fn attempt(&self) -> pb::Attempt {
        pb::Attempt { id: self.attempt.id.clone(), fencing_token: self.lock.fencing_token() }
    }

    fn awaiting(&self, step: &'static str, names: &[String]) {
        self.progress.tell(&Event::Awaiting { step, names });
    }

    /// Writes down that this attempt has begun, before it touches anything: should its process die,
    /// that, and the steps that are noted, is all there will be.
    async fn remember_begin(&self) {
        self.state().history_key = Some(key(clock::unix_ms()));
        let Some(Put { key, value, .. }) = self.record_of("lock") else { return };
        history::write(&self.etcd, &key, value, None, &self.log).await;
    }

    /// What the history says while `step` runs.
    fn record_of(&self, step: &'static str) -> Option<Put> {
        let state = self.state();
        let key = state.history_key.clone()?;
        let report = Report::running(&self.options, &self.attempt, &state, step);
        let value = serde_json::to_string(&report).unwrap_or_default();
        Some(Put { key, value, lease: 0 })
    }

    /// Tells whoever reads the lock, and later the history, that this is the step.
    ///
    /// # Errors
    /// As [`Lock::update`].
    async fn note(&self, step: &'static str) -> Result<(), LockError> {
        let deadline = self.state().pause_deadline_unix_ms;
        self.lock.update_with(step, deadline, self.record_of(step)).await
    }

    async fn remember(&self, report: &Report) {
        let (key, moved_to) = {
            let state = self.state();
            (state.history_key.clone(), state.after.clone().filter(|_| state.moved))
        };
        let Some(key) = key else { return };
        let value = serde_json::to_string(report).unwrap_or_default();
        history::write(&self.etcd, &key, value, moved_to.as_ref(), &self.log).await;
    }

    fn report(&self, began: Instant, outcome: Outcome) -> Report {
        Report::new(&self.options, &self.attempt, began, &self.state(), outcome)
    }
}

impl Interruptible for Failover {
    async fn interrupted(&self) -> (Cause, String) {
        let lost = || {
            let lease = self.options.lock_lease;
            (Cause::LockLost, format!("the failover lock was lost (its lease is {lease:?})"))
        };
        let (mut stop, mut watch) = (self.stop.clone(), self.lock.lost());
        // A process that was frozen may be handed an answer before the renewal notices what time it
        // is: the clock is looked at whenever an action could go on.
        let overslept = std::future::poll_fn(|_| match self.lock.is_lost() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        });
        tokio::select! {
            biased;
            () = overslept => lost(),
            _ = watch.wait_for(|&lost| lost) => lost(),
            () = stop.wait() => (Cause::Signal, "it was asked to stop".to_owned()),
        }
    }
}
