//! The planned failover as a table.

use std::{convert::Infallible, future::Future, time::Duration};

use tokio::time::sleep;

use super::{
    Failover,
    pipeline::{Step, Trouble, TroubleKind, Undo},
    primary::CLIENTS_FIRST,
};
use crate::{
    edge::lock::{Acquired, LockError},
    error::chain,
    model::attempt::Attempt,
    work::mover::PATIENCE,
};

/// What a step may take beyond the limits inside it, before the pipeline cuts it off.
const SLACK: Duration = Duration::from_secs(3);

/// Of the steps beside which clients wait, one that ends within this is not told: it would cost etcd what they
/// need. The move is told at once: a proxy that starts now holds its clients because of it.
const WHILE: Duration = Duration::from_millis(50);

/// Undo, newest first, takes the cause of a move away and waits for a primary, then lets clients go,
/// then removes constraint and lock. `resume` and `unmigrate` do the same on the way to success, so
/// that they need no undo; after `unmigrate` nothing of the attempt is left but the wait for the
/// old primary.
pub(super) const STEPS: &[Step<Failover>] = &[
    Step {
        name: "checks",
        act: |f| Box::pin(f.first_check()),
        limit: |f| f.options.health_check_timeout + SLACK,
        on_timeout: TroubleKind::Unanswered,
        undo: None,
    },
    Step {
        name: "lock",
        act: |f| Box::pin(f.take_lock()),
        limit: |f| f.options.lock_timeout + f.options.health_check_timeout + 2 * SLACK,
        on_timeout: TroubleKind::Unanswered,
        undo: Some(Undo {
            act: |f| Box::pin(f.undo_lock()),
            limit: |f| PATIENCE + f.options.resume_timeout + SLACK,
        }),
    },
    Step {
        name: "prepare",
        act: |f| Box::pin(f.noting("prepare", Duration::ZERO, f.prepare())),
        limit: |f| f.options.prepare_timeout + SLACK,
        on_timeout: TroubleKind::Failed,
        undo: None,
    },
    Step {
        name: "pause",
        act: |f| Box::pin(f.pause()),
        limit: |f| f.options.pause_expiry,
        on_timeout: TroubleKind::Failed,
        undo: Some(Undo {
            act: |f| Box::pin(f.undo_pause()),
            limit: |f| f.options.pause_expiry + 2 * f.options.resume_timeout + SLACK,
        }),
    },
    Step {
        name: "migrate",
        act: |f| Box::pin(f.noting("migrate", Duration::ZERO, f.migrate())),
        limit: |f| f.move_budget() + SLACK,
        on_timeout: TroubleKind::Failed,
        undo: Some(Undo {
            act: |f| Box::pin(f.undo_migrate()),
            limit: |f| PATIENCE + f.options.resume_timeout + f.options.pause_expiry + SLACK,
        }),
    },
    Step {
        name: "follow",
        act: |f| Box::pin(f.noting("follow", WHILE, f.follow())),
        limit: |f| f.options.pause_expiry + f.options.resume_timeout,
        on_timeout: TroubleKind::Failed,
        undo: None,
    },
    Step {
        name: "resume",
        act: |f| Box::pin(f.noting("resume", WHILE, f.resume())),
        limit: |f| 2 * f.options.resume_timeout + SLACK,
        on_timeout: TroubleKind::Failed,
        undo: None,
    },
    Step {
        name: "unmigrate",
        act: |f| Box::pin(f.unmigrate()),
        limit: |f| CLIENTS_FIRST + 2 * PATIENCE + f.options.resume_timeout * 3 / 2 + SLACK,
        on_timeout: TroubleKind::Failed,
        undo: None,
    },
    Step {
        name: "verify",
        act: |f| Box::pin(f.verify()),
        limit: |f| f.options.verify_timeout + SLACK,
        on_timeout: TroubleKind::Failed,
        undo: None,
    },
];

impl Failover {
    /// Takes the lock; what the checks saw must still hold then.
    async fn take_lock(&self) -> Result<(), Trouble> {
        match self.lock.acquire(self.options.lock_timeout).await.map_err(unanswered)? {
            Acquired::HeldElsewhere(holder) => Err(locked(&holder)),
            Acquired::Held { waited, .. } => {
                self.state().locked = true;
                // Whoever held it may have changed everything that the checks saw.
                if waited {
                    self.check().await?;
                } else {
                    tokio::try_join!(self.same_primary(), self.same_agents())?;
                }
                self.remember_begin().await;
                Ok(())
            }
        }
    }

    pub(super) async fn lock_is_free(&self) -> Result<(), Trouble> {
        match self.lock.holder().await.map_err(unanswered)? {
            None => Ok(()),
            Some(holder) => Err(locked(&holder)),
        }
    }

    /// Runs `act`, and tells others in etcd which step this is once it has lasted for `a_while`.
    async fn noting<T>(
        &self,
        step: &'static str,
        a_while: Duration,
        act: impl Future<Output = T>,
    ) -> T {
        let note = async {
            sleep(a_while).await;
            // Best effort: clients do not wait for etcd here. A lock found lost ends the act.
            let _ = self.note(step).await;
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            result = act => result,
            never = note => match never {},
        }
    }
}

fn unanswered(error: LockError) -> Trouble {
    Trouble::new(TroubleKind::Unanswered, chain(&error).to_string())
}

fn locked(holder: &Attempt) -> Trouble {
    let Attempt { holder, purpose, started_at, step, .. } = holder;
    let words =
        format!("{holder} holds the lock for `{purpose}` since {started_at}, now at step `{step}`");
    Trouble::new(TroubleKind::Locked, words)
}
