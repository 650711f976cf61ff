//! STUB (failover branch): to be replaced whole by the proxy branch's file.

/// On whose behalf a pause is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claim {
    pub attempt: String,
    pub token: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("fencing token {given} is older than {seen}, which was seen here")]
pub struct StaleToken {
    pub given: i64,
    pub seen: i64,
}

/// The highest fencing token seen.
#[derive(Debug, Default)]
pub struct Gate(i64);

impl Gate {
    pub fn admit(&mut self, token: i64) -> Result<(), StaleToken> {
        if token < self.0 {
            return Err(StaleToken { given: token, seen: self.0 });
        }
        self.0 = token;
        Ok(())
    }

    pub fn observe(&mut self, token: i64) {
        self.0 = self.0.max(token);
    }
}
