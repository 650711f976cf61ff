//! The gate of an agent, and what feeds it: whatever reads the lock in etcd.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{
    edge::etcd::Snapshot,
    model::{
        attempt::{Attempt, FAILOVER, LOCK},
        fence::{Gate, LockSeen},
    },
};

/// The one gate of an agent, shared by everything that takes fencing tokens.
#[derive(Clone, Default)]
pub struct SharedGate(Arc<Mutex<Gate>>);

impl SharedGate {
    pub fn lock(&self) -> MutexGuard<'_, Gate> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers who holds the lock in `snapshot`, which must have been asked for it.
    pub fn heed(&self, snapshot: &Snapshot) {
        self.lock().heed(lock_seen(snapshot));
    }
}

fn lock_seen(snapshot: &Snapshot) -> LockSeen {
    let Some(entry) = snapshot.get(LOCK) else {
        return LockSeen::Free { revision: snapshot.revision };
    };
    let token = entry.create_revision;
    match serde_json::from_str::<Attempt>(&entry.value) {
        Ok(attempt) if attempt.purpose == FAILOVER => LockSeen::Failover { token },
        _ => LockSeen::Other { token },
    }
}
