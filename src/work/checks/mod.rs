//! STUB (failover branch): to be replaced whole by the proxy and supervise branches' files.

pub mod proxy;
pub mod supervise;

use std::time::Duration;

/// What a failover means to ask for.
#[derive(Debug, Clone)]
pub struct Terms {
    pub pause_timeout: Duration,
    pub pause_expiry: Duration,
    pub target: Option<String>,
}
