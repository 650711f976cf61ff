//! A failover attempt: the value of the lock key `/failover`.

use serde::{Deserialize, Serialize};

/// Key of the lock, below the namespace.
pub const LOCK: &str = "/failover";

/// Purpose of an attempt that moves the primary.
pub const FAILOVER: &str = "failover";
/// Its steps from the one in which another node may become primary.
const MOVING: [&str; 5] = ["migrate", "follow", "resume", "unmigrate", "verify"];

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

impl Attempt {
    /// Whether a new primary may be this attempt's work; it writes that into the history itself.
    pub fn moves_the_primary(&self) -> bool {
        self.purpose == FAILOVER && MOVING.contains(&self.step.as_str())
    }
}
