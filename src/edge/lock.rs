//! The failover lock: one key in etcd under a lease of its own.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep, sleep_until, timeout_at},
};

use super::etcd::{Etcd, EtcdError, Expect, Put, Swap};
use crate::model::attempt::{Attempt, LOCK};

/// How often an update catches up with those before it that were given up: there is one such for a step.
const UPDATE_TRIES: usize = 5;

/// How the lock behaves.
#[derive(Debug, Clone, Copy)]
pub struct LockOptions {
    /// The lock is free again this long after its holder died. Whole seconds, at least 2.
    pub lease: Duration,
    /// Pause between two looks at a lock that somebody else holds.
    pub poll: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("cannot reach the failover lock")]
    Etcd(#[source] EtcdError),
    #[error("the failover lock is no longer ours; somebody removed it, or its lease ended")]
    Lost,
    #[error("the failover lock is not held")]
    NotHeld,
    #[error("the failover lock is ours, and its key changes all the time")]
    Contended,
}

/// How an acquisition ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acquired {
    Held {
        /// Create revision of the key: the fencing token.
        token: i64,
        /// Whether somebody else held the lock at first.
        waited: bool,
    },
    /// By whom. Nothing of ours was left in etcd.
    HeldElsewhere(Attempt),
}

/// The lock of one attempt. Dropping it ends the renewal, and so, a lease later, the lock.
pub struct Lock {
    etcd: Arc<Etcd>,
    options: LockOptions,
    shared: Arc<Shared>,
}

struct Shared {
    lost: watch::Sender<bool>,
    state: Mutex<State>,
}

struct State {
    attempt: Attempt,
    /// 0: none.
    lease: i64,
    /// 0: not held.
    token: i64,
    /// As `token`, but kept when the lock is released.
    fencing_token: i64,
    /// Modification of the key that the next update is to follow: the last one known of.
    revision: i64,
    /// Until when the lease surely lives: counted from before its last renewal was sent.
    live_until: Instant,
    renewal: Option<AbortHandle>,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lose(&self) {
        self.lost.send_replace(true);
    }
}

impl Lock {
    /// A lock that `attempt` does not hold yet.
    pub fn new(etcd: Arc<Etcd>, attempt: Attempt, options: LockOptions) -> Self {
        let state = State {
            attempt,
            lease: 0,
            token: 0,
            fencing_token: 0,
            revision: 0,
            live_until: Instant::now(),
            renewal: None,
        };
        let shared = Shared { lost: watch::Sender::new(false), state: Mutex::new(state) };
        Self { etcd, options, shared: Arc::new(shared) }
    }

    /// Takes the lock, waiting at most `timeout` for another holder; zero tries once.
    ///
    /// From then on the lease is renewed until [`release`](Self::release).
    ///
    /// # Errors
    /// [`LockError::Etcd`] when etcd does not answer. Whatever was begun is revoked then, or ends
    /// with the lease; another holder's lock is never touched.
    pub async fn acquire(&self, timeout: Duration) -> Result<Acquired, LockError> {
        let deadline = Instant::now() + timeout;
        let mut waited = false;
        loop {
            match self.try_once(waited).await? {
                Acquired::HeldElsewhere(_) if Instant::now() < deadline => {
                    waited = true;
                    sleep(self.options.poll.min(deadline - Instant::now())).await;
                }
                acquired => return Ok(acquired),
            }
        }
    }

    /// Who holds the lock now, be it this attempt.
    pub async fn holder(&self) -> Result<Option<Attempt>, LockError> {
        let entry = self.etcd.get(LOCK).await.map_err(LockError::Etcd)?;
        Ok(entry.map(|entry| holder(&entry.value)))
    }

    async fn try_once(&self, waited: bool) -> Result<Acquired, LockError> {
        if let Some(entry) = self.etcd.get(LOCK).await.map_err(LockError::Etcd)? {
            return Ok(Acquired::HeldElsewhere(holder(&entry.value)));
        }
        let asked = Instant::now();
        let lease = self.etcd.grant(self.options.lease).await.map_err(LockError::Etcd)?;
        let value = {
            let mut state = self.shared.state();
            // Noted before the key can exist: a caller that gives up in between still revokes.
            state.lease = lease;
            encode(&state.attempt)
        };
        let put = Put { key: LOCK.to_owned(), value, lease };
        let token = match self.etcd.put_if(&[(LOCK, Expect::Absent)], &[put]).await {
            Ok(Swap::Done(revision)) => Ok(Ok(revision)),
            // The key may be ours all the same: the answer to a first try can have got lost.
            Ok(Swap::Changed) | Err(_) => self.read_back(lease).await,
        };
        match token {
            Ok(Ok(token)) => {
                self.hold(lease, token, asked);
                Ok(Acquired::Held { token, waited })
            }
            Ok(Err(attempt)) => {
                // The lease holds no key of anybody's; if this fails it just ends.
                let _ = self.release().await;
                Ok(Acquired::HeldElsewhere(attempt))
            }
            Err(error) => {
                let _ = self.release().await;
                Err(LockError::Etcd(error))
            }
        }
    }

    /// Whose the key is: ours with its create revision, or somebody else's.
    async fn read_back(&self, lease: i64) -> Result<Result<i64, Attempt>, EtcdError> {
        let entry = self.etcd.get(LOCK).await?;
        Ok(match entry {
            Some(entry) if entry.lease == lease => Ok(entry.create_revision),
            Some(entry) => Err(holder(&entry.value)),
            None => Err(holder("somebody who has just let it go")),
        })
    }

    fn hold(&self, lease: i64, token: i64, asked: Instant) {
        let mut state = self.shared.state();
        state.token = token;
        state.fencing_token = token;
        state.revision = token;
        state.live_until = asked + self.options.lease;
        let (etcd, shared) = (self.etcd.clone(), self.shared.clone());
        let renewal = renew(etcd, shared, lease, token, self.options.lease);
        state.renewal = Some(tokio::spawn(renewal).abort_handle());
    }

    /// The fencing token, from the acquisition on; 0 before. It outlives the lock.
    pub fn fencing_token(&self) -> i64 {
        self.shared.state().fencing_token
    }

    /// Turns true, for good, when the lock was lost without having been released.
    pub fn lost(&self) -> watch::Receiver<bool> {
        self.shared.lost.subscribe()
    }

    /// Whether the lock was held and is not any more, judged by this machine's clock too.
    ///
    /// A process that was frozen past its lease learns it here before the renewal notices.
    pub fn is_lost(&self) -> bool {
        let late = {
            let state = self.shared.state();
            state.token != 0 && Instant::now() >= state.live_until
        };
        if late {
            self.shared.lose();
        }
        *self.shared.lost.borrow()
    }

    /// Tells everybody which step runs and until when clients may be held (Unix time, ms; 0: not).
    ///
    /// # Errors
    /// [`LockError::Lost`] when the key is not the one that was created; it stays lost then.
    pub async fn update(&self, step: &str, pause_deadline_unix_ms: u64) -> Result<(), LockError> {
        self.update_with(step, pause_deadline_unix_ms, None).await
    }

    /// [`Self::update`], and `beside` is written in the same transaction: only while the lock is ours.
    ///
    /// May be given up at any time. What an update that was given up wrote, or may yet write, never
    /// replaces what a later one tells.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub async fn update_with(
        &self,
        step: &str,
        pause_deadline_unix_ms: u64,
        beside: Option<Put>,
    ) -> Result<(), LockError> {
        let (put, token) = {
            let mut state = self.shared.state();
            if state.token == 0 {
                return Err(LockError::NotHeld);
            }
            step.clone_into(&mut state.attempt.step);
            state.attempt.pause_deadline_unix_ms = pause_deadline_unix_ms;
            let value = encode(&state.attempt);
            (Put { key: LOCK.to_owned(), value, lease: state.lease }, state.token)
        };
        let puts: Vec<Put> = std::iter::once(put).chain(beside).collect();
        for _ in 0..UPDATE_TRIES {
            let known = self.shared.state().revision;
            // etcd answers requests of one connection in any order: a request that was given up, and
            // comes later, finds another modification than it was to follow.
            let expect =
                [(LOCK, Expect::CreateRevision(token)), (LOCK, Expect::ModRevision(known))];
            match self.etcd.put_if(&expect, &puts).await.map_err(LockError::Etcd)? {
                Swap::Done(revision) => {
                    self.shared.state().revision = revision;
                    return Ok(());
                }
                Swap::Changed => self.catch_up(token).await?,
            }
        }
        Err(LockError::Contended)
    }

    /// An update that was given up has come in between, or the lock is lost.
    async fn catch_up(&self, token: i64) -> Result<(), LockError> {
        let entry = self.etcd.get(LOCK).await.map_err(LockError::Etcd)?;
        match entry.filter(|entry| entry.create_revision == token) {
            Some(entry) => {
                self.shared.state().revision = entry.mod_revision;
                Ok(())
            }
            None => {
                self.shared.lose();
                Err(LockError::Lost)
            }
        }
    }

    /// Gives up what this attempt has: its lease, and with that its key. Idempotent.
    ///
    /// # Errors
    /// [`LockError::Etcd`]: the lock then frees itself when its lease ends, since it is renewed no
    /// more.
    pub async fn release(&self) -> Result<(), LockError> {
        let lease = {
            let mut state = self.shared.state();
            if let Some(renewal) = state.renewal.take() {
                renewal.abort();
            }
            state.token = 0;
            state.lease
        };
        if lease == 0 {
            return Ok(());
        }
        self.etcd.revoke(lease).await.map_err(LockError::Etcd)?;
        self.shared.state().lease = 0;
        Ok(())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if let Some(renewal) = self.shared.state().renewal.take() {
            renewal.abort();
        }
    }
}

/// Renews at a third of the lease's life until it is lost, be it that somebody removes the key.
async fn renew(etcd: Arc<Etcd>, shared: Arc<Shared>, lease: i64, token: i64, ttl: Duration) {
    let mut next = shared.state().live_until - ttl + ttl / 3;
    loop {
        let live_until = shared.state().live_until;
        sleep_until(next.min(live_until)).await;
        let sent = Instant::now();
        if sent >= live_until {
            break shared.lose();
        }
        match timeout_at(live_until, etcd.renew(lease)).await {
            Ok(Ok(left)) => {
                shared.state().live_until = sent + left;
                next = sent + ttl / 3;
                if is_removed(&etcd, token, sent + left).await {
                    break shared.lose();
                }
            }
            Err(_) | Ok(Err(EtcdError::LeaseGone { .. })) => break shared.lose(),
            Ok(Err(_)) => next = Instant::now() + ttl / 10,
        }
    }
}

/// Whether the key that was created at `token` is seen to be gone. Whoever cannot look by `until` has seen nothing.
async fn is_removed(etcd: &Etcd, token: i64, until: Instant) -> bool {
    match timeout_at(until, etcd.get(LOCK)).await {
        Ok(Ok(entry)) => entry.is_none_or(|entry| entry.create_revision != token),
        _ => false,
    }
}

fn encode(attempt: &Attempt) -> String {
    serde_json::to_string(attempt).unwrap_or_default()
}

/// The holder that a lock's value names; whatever is not an attempt counts as an unknown one.
fn holder(value: &str) -> Attempt {
    serde_json::from_str(value).unwrap_or_else(|_| Attempt {
        id: String::new(),
        holder: value.chars().take(80).collect(),
        purpose: "unknown".to_owned(),
        started_at: String::new(),
        step: String::new(),
        pause_deadline_unix_ms: 0,
    })
}
