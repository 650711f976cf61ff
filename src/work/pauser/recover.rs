//! The ends of an agent's life: what an earlier one left paused, and what this one would leave.

use std::time::{Duration, Instant};

use slog::{error, info, warn};

use super::{Pauser, expiry::arm};
use crate::{
    edge::{clock, etcd::Etcd},
    error::chain,
    model::{
        attempt::{Attempt, LOCK},
        fence::LockSeen,
        pause::Claim,
        span::millis,
    },
    work::consoles,
};

impl Pauser {
    /// To be called once when the agent starts: resumes whatever an earlier life left paused,
    /// unless the attempt that holds the lock owns the pause; then its expiry is armed again, at most
    /// [`PauserOptions::adopt_ceiling`] from now. What is not paused by then is whoever's who pauses it.
    ///
    /// Returns after the first try; when that failed, more follow until traffic flows.
    pub async fn recover(&self, lock: Option<(Attempt, i64)>) {
        let inner = &self.0;
        if let Some((attempt, token)) = lock {
            let left = attempt.pause_deadline_unix_ms.saturating_sub(clock::unix_ms());
            let left = left.min(millis(inner.options.adopt_ceiling));
            if left > 0 {
                if consoles::all_flow(&inner.options.consoles).await {
                    return;
                }
                info!(inner.log, "a failover is under way, its pause is left alone until it expires";
                    "event" => "pause.recover.keep", "attempt" => &attempt.id, "expiry_ms" => left);
                inner.gate.lock().heed(LockSeen::Failover { token });
                let claim = Claim { attempt: attempt.id, token };
                let deadline = Instant::now() + Duration::from_millis(left);
                let timer = inner.book().adopt(Some(claim), deadline);
                inner.publish();
                arm(inner, timer);
                return;
            }
        }
        let _turn = inner.turn.lock().await;
        if let Err(failure) = inner.flow().await {
            warn!(inner.log, "cannot make sure that PgBouncer is not paused, trying on";
                "event" => "pause.recover.fail", "socket" => %failure.socket.display(),
                "error" => %chain(&failure.error));
            inner.abandon();
        }
    }

    /// [`Self::recover`] with the lock as etcd has it. While etcd does not answer it is asked again for
    /// `limit`, and then resumes: an unknown pause must not last. The last question is not cut short, and
    /// so bounded by etcd's own limit for each member: the first one may be dead, and the next one know.
    pub async fn recover_from(&self, etcd: &Etcd, limit: Duration) {
        let end = Instant::now() + limit;
        let lock = loop {
            match etcd.get_all(&[LOCK]).await {
                Ok(snapshot) => {
                    self.0.gate.heed(&snapshot);
                    break snapshot.get(LOCK).cloned();
                }
                Err(_) if Instant::now() < end => {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
                Err(error) => {
                    warn!(self.0.log, "etcd does not say whether a failover is under way; resuming";
                        "event" => "pause.recover.blind", "error" => %chain(&error));
                    break None;
                }
            }
        };
        let lock = lock.and_then(|entry| {
            let attempt = serde_json::from_str::<Attempt>(&entry.value).ok()?;
            Some((attempt, entry.create_revision))
        });
        self.recover(lock).await;
    }

    /// To be called when the agent stops in good order: resumes what it holds, since nobody would
    /// be left to let the pause expire.
    pub async fn stop(&self) {
        let inner = &self.0;
        inner.resumes.send_modify(|count| *count += 1);
        let _turn = inner.turn.lock().await;
        if !inner.book().is_held() {
            return;
        }
        warn!(inner.log, "stopping while PgBouncer is paused, resuming it";
            "event" => "pause.stop.resume", "attempt" => inner.book().owner().unwrap_or("none"));
        if let Err(failure) = inner.flow().await {
            error!(inner.log, "PgBouncer may still be paused; run RESUME on its admin console";
                "event" => "pause.stop.fail", "socket" => %failure.socket.display(),
                "error" => %chain(&failure.error));
        }
    }
}
