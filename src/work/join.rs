//! A proxy that starts while a failover runs takes part in its pause.
//!
//! The coordinator asks only those agents that it found when it began. One that starts later would let
//! its clients run into the move, so it watches the lock by itself.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use slog::{Logger, info, warn};

use super::{
    follow::Follower,
    pauser::{PauseError, Pauser},
};
use crate::{
    edge::{
        clock,
        etcd::{Etcd, EtcdError},
    },
    error::chain,
    model::{
        attempt::{Attempt, FAILOVER, LOCK, Phase},
        cluster::MASTER,
        history::{Change, HISTORY, RUNNING},
        pause::Claim,
        registration::Registration,
    },
};

/// Pause between two looks at the lock while somebody holds it.
const LOOK: Duration = Duration::from_millis(50);
/// The same while etcd does not answer.
const RETRY: Duration = Duration::from_millis(500);
/// Changes of the primary among which the end of a failover is looked for.
const RECENT: u32 = 5;
/// Bounds the wait for transactions that an unpaused PgBouncer has let in.
const LIMIT: Duration = Duration::from_secs(1);

/// What takes part, and where it is known.
pub struct Joining {
    pub etcd: Arc<Etcd>,
    pub pauser: Arc<Pauser>,
    pub follower: Arc<Follower>,
    pub registration: Registration,
    pub log: Logger,
}

/// A pause that was joined. Should its coordinator die without a word, only another primary ends it, or its expiry:
/// Pacemaker may still be asked to move, and whoever else holds clients of that attempt holds them on.
pub struct Joined {
    claim: Claim,
    /// `/master` as it was then.
    master: Option<String>,
}

impl Joined {
    fn is_over(&self, master: &Option<String>) -> bool {
        master.is_some() && *master != self.master
    }
}

struct Seen {
    /// The failover that holds the lock, with its fencing token.
    attempt: Option<(Attempt, i64)>,
    /// Whether one that takes the lock from now on finds this agent.
    registered: bool,
    master: Option<String>,
}

impl Joining {
    /// Joins the pause that a failover holds now, if any. To be called before the agent serves.
    pub async fn begin(&self) -> Option<Joined> {
        let seen = self.look().await.ok()?;
        let (attempt, token) = seen.attempt?;
        let claim = Claim { attempt: attempt.id.clone(), token };
        if attempt.phase() == Phase::Moving && self.hold(&claim, &attempt).await {
            return Some(Joined { claim, master: seen.master });
        }
        None
    }

    /// Goes on with what [`Self::begin`] returned until no failover runs that does not know this agent.
    pub async fn run(self, mut held: Option<Joined>) {
        // Whose pause this agent takes no further part in.
        let mut left: Option<Claim> = None;
        loop {
            let seen = match self.look().await {
                Ok(seen) => seen,
                // What is held expires by itself meanwhile.
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            let now = seen.attempt.as_ref().map(|(attempt, token)| {
                (Claim { attempt: attempt.id.clone(), token: *token }, attempt)
            });
            match (&now, &held) {
                (Some((claim, attempt)), None)
                    if attempt.phase() == Phase::Moving && left.as_ref() != Some(claim) =>
                {
                    if self.hold(claim, attempt).await {
                        held = Some(Joined { claim: claim.clone(), master: seen.master });
                    } else {
                        left = Some(claim.clone());
                    }
                }
                (now, Some(own)) => {
                    let its_own = now.as_ref().filter(|(claim, _)| *claim == own.claim);
                    let may_go = match its_own {
                        Some((_, attempt)) => attempt.phase() == Phase::LettingGo,
                        None => own.is_over(&seen.master) || self.has_ended(&own.claim).await,
                    };
                    if may_go {
                        self.let_go(&own.claim, seen.master.as_deref()).await;
                    }
                    if !self.is_held(&own.claim) {
                        left = held.take().map(|own| own.claim);
                    }
                }
                (None, None) if seen.registered => return,
                _ => {}
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn look(&self) -> Result<Seen, EtcdError> {
        let key = self.registration.key();
        // At one revision: whoever takes the lock after it finds the registration.
        let snapshot = self.etcd.get_all(&[&key, LOCK, MASTER]).await?;
        let registered = snapshot.get(&key).is_some_and(|entry| {
            serde_json::from_str::<Registration>(&entry.value)
                .is_ok_and(|found| found.api == self.registration.api)
        });
        let attempt = snapshot.get(LOCK).and_then(|entry| {
            let attempt = serde_json::from_str::<Attempt>(&entry.value).ok()?;
            (attempt.purpose == FAILOVER).then_some((attempt, entry.create_revision))
        });
        let master = snapshot.get(MASTER).map(|entry| entry.value.clone());
        Ok(Seen { attempt, registered, master })
    }

    /// Whether clients are held here on behalf of `claim`.
    fn is_held(&self, claim: &Claim) -> bool {
        self.pauser.status().borrow().attempt.as_ref() == Some(&claim.attempt)
    }

    /// Whether the failover has told its end: by then it has let go all whom it knows.
    async fn has_ended(&self, claim: &Claim) -> bool {
        let past = self.etcd.get_last(HISTORY, RECENT).await.unwrap_or_default();
        let mut past = past.iter().filter_map(|entry| serde_json::from_str(&entry.value).ok());
        past.any(|change: Change| {
            change.attempt.as_ref() == Some(&claim.attempt) && change.outcome != RUNNING
        })
    }

    /// Holds clients on behalf of `claim` for what is left of its pause; returns whether they are held.
    async fn hold(&self, claim: &Claim, attempt: &Attempt) -> bool {
        let left = attempt.pause_deadline_unix_ms.saturating_sub(clock::unix_ms());
        let left = Duration::from_millis(left).min(self.pauser.ceiling());
        let limit = LIMIT.min(left / 2);
        if limit.is_zero() {
            return false;
        }
        match self.pauser.pause(claim, limit, left).await {
            Ok(_) => {
                info!(self.log, "joined the pause of a failover that began before this agent";
                    "event" => "pause.join", "attempt" => &claim.attempt);
                true
            }
            // The coordinator knows this agent after all, and has let its clients go already.
            Err(PauseError::Ended { .. }) => false,
            Err(error) => {
                warn!(self.log, "cannot join the pause of the failover that runs";
                    "event" => "pause.join.fail", "attempt" => &claim.attempt,
                    "error" => %chain(&error));
                false
            }
        }
    }

    /// Lets clients go once PgBouncer follows the primary; the pause's expiry bounds the wait.
    async fn let_go(&self, claim: &Claim, master: Option<&str>) {
        let is_ours = || self.is_held(claim);
        let until = Instant::now() + self.pauser.ceiling();
        if let Some(address) = master.and_then(|master| master.parse().ok()) {
            while is_ours() && Instant::now() < until {
                if self.follower.follow(address, LOOK).await.is_ok() {
                    break;
                }
            }
        }
        if is_ours() {
            // A newer attempt may have taken the pause over: then it is not ours to end.
            let _ = self.pauser.resume(claim).await;
        }
    }
}
