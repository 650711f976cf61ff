//! Whose word still counts: fencing tokens. A token is the create revision of the failover lock.

/// A fencing token lower than another that counts: its holder has lost the lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "fencing token {given} is older than {least}: its attempt has lost the failover lock since"
)]
pub struct StaleToken {
    pub given: i64,
    /// The lowest token that may be in force.
    pub least: i64,
}

/// The failover lock, as it was read in etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LockSeen {
    /// Nobody had it at this revision: whoever takes it later has a higher token.
    Free { revision: i64 },
    /// A failover has it.
    Failover { token: i64 },
    /// Somebody has it who pauses and moves nothing.
    Other { token: i64 },
}

/// Refuses whoever has lost the lock: remembers the highest token that was heard of, and what etcd said.
#[derive(Debug, Default)]
pub struct Gate {
    /// The highest token of a failover.
    failover: i64,
    /// No lower token can hold the lock.
    least: i64,
}

impl Gate {
    /// Lets `token` pass and remembers it, unless its attempt is known to have lost the lock.
    pub fn admit(&mut self, token: i64) -> Result<(), StaleToken> {
        let least = self.least.max(self.failover);
        if token < least {
            return Err(StaleToken { given: token, least });
        }
        self.failover = token;
        Ok(())
    }

    /// Lets `token` pass for what only ends its own pause, as long as no newer failover was heard of: whoever has
    /// lost the lock may still let its clients go.
    pub fn admit_to_let_go(&mut self, token: i64) -> Result<(), StaleToken> {
        if token < self.failover {
            return Err(StaleToken { given: token, least: self.failover });
        }
        self.failover = token;
        Ok(())
    }

    /// Remembers what was read in etcd.
    pub fn heed(&mut self, seen: LockSeen) {
        match seen {
            LockSeen::Free { revision } => self.least = self.least.max(revision + 1),
            LockSeen::Other { token } => self.least = self.least.max(token),
            LockSeen::Failover { token } => self.failover = self.failover.max(token),
        }
    }

    /// The highest token of a failover that was heard of, unless that one is known to have lost the lock.
    pub fn current_failover(&self) -> Option<i64> {
        (self.failover >= self.least).then_some(self.failover)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_is_refused_wherever_the_newer_one_was_seen() {
        let mut gate = Gate::default();
        gate.admit(5).expect("first");
        gate.admit(5).expect("again");
        gate.heed(LockSeen::Failover { token: 8 });
        assert_eq!(gate.admit(7), Err(StaleToken { given: 7, least: 8 }));
        assert_eq!(gate.admit_to_let_go(7), Err(StaleToken { given: 7, least: 8 }));
        gate.heed(LockSeen::Failover { token: 2 });
        gate.admit(8).expect("the newest");
    }

    #[test]
    fn whoever_has_lost_the_lock_may_only_let_its_clients_go() {
        for seen in [LockSeen::Free { revision: 6 }, LockSeen::Other { token: 7 }] {
            let mut gate = Gate::default();
            gate.admit(5).expect("it holds the lock");
            gate.heed(seen);
            assert_eq!(gate.admit(5), Err(StaleToken { given: 5, least: 7 }), "{seen:?}");
            gate.admit_to_let_go(5).expect("nobody else has begun");
            gate.admit(7).expect("taken after that");
            assert!(gate.admit_to_let_go(5).is_err(), "{seen:?}");
        }
    }

    #[test]
    fn what_was_read_late_changes_nothing() {
        let mut gate = Gate::default();
        gate.admit(9).expect("first");
        gate.heed(LockSeen::Free { revision: 3 });
        gate.heed(LockSeen::Other { token: 2 });
        gate.admit(9).expect("still the newest");
        assert_eq!(gate.current_failover(), Some(9));
        gate.heed(LockSeen::Free { revision: 9 });
        assert_eq!(gate.current_failover(), None);
    }
}
