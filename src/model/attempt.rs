//! A failover attempt: the value of the lock key `/failover`.

use serde::{Deserialize, Serialize};

/// Key of the lock, below the namespace.
pub const LOCK: &str = "/failover";

/// Purpose of an attempt that moves the primary.
pub const FAILOVER: &str = "failover";

/// Who holds the failover lock, and what for. The key's create revision is its fencing token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// Unique name of the attempt.
    pub id: String,
    /// Host and process that run it.
    pub holder: String,
    /// `failover`, or the command that `with-lock` runs.
    pub purpose: String,
    /// When it began, RFC 3339 in UTC.
    pub started_at: String,
    /// Step that runs now.
    pub step: String,
    /// Unix time in milliseconds by which every pause of this attempt has expired; 0 before the pause.
    pub pause_deadline_unix_ms: u64,
}

/// What a failover's clients have to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing: it has not held anybody yet, or it is about to.
    Before,
    /// To wait: nobody may reach the old primary.
    Moving,
    /// To go on: all agents that it knows have let their clients go.
    LettingGo,
}

impl Attempt {
    /// Of a failover; the steps are those of its table.
    pub fn phase(&self) -> Phase {
        match &*self.step {
            "migrate" | "follow" => Phase::Moving,
            "resume" | "unmigrate" | "verify" => Phase::LettingGo,
            _ => Phase::Before,
        }
    }

    /// Whether a new primary may be this attempt's work; it writes that into the history itself.
    pub fn moves_the_primary(&self) -> bool {
        self.purpose == FAILOVER && self.phase() != Phase::Before
    }
}
