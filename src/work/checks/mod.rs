//! What stands in the way of a planned failover, agent by agent.

mod judge;
pub mod namesake;
mod pacemaker;
pub mod pgbouncer;
pub mod proxy;
pub mod supervise;

use std::time::Duration;

/// What the planned failover means to do.
#[derive(Debug, Clone)]
pub struct Terms {
    /// How long it would wait for transactions to end.
    pub pause_timeout: Duration,
    /// How long clients may be held at most.
    pub pause_expiry: Duration,
    /// Node that the primary shall move to; None: the synchronous standby.
    pub target: Option<String>,
}
