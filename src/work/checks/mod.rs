//! What stands in the way of a planned failover, and how each agent is.

pub mod supervise;

use std::time::Duration;

/// What the failover means to do, as far as the checks must know it.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How long it waits for transactions to end.
    pub pause_timeout: Duration,
    /// How long clients may be held at most.
    pub pause_expiry: Duration,
    /// Node that the primary shall move to; `None`: the synchronous standby.
    pub target: Option<String>,
}
