//! A failover attempt: the value of the lock key `/failover`.

use serde::{Deserialize, Serialize};

/// Key of the lock, below the namespace.
pub const LOCK: &str = "/failover";

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
