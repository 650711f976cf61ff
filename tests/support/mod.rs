//! Real programs for tests: each starts in a directory of its own and ends with its value.
#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of this")]
#![allow(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

pub mod certificates;
pub mod etcd;
pub mod failover;
pub mod fake_cluster;
pub mod fake_console;
pub mod pgbouncer;
pub mod pgcm;
pub(crate) mod port;
pub mod postgres;
pub mod process;
pub mod stage;

use std::{
    future::Future,
    time::{Duration, Instant},
};

pub(crate) use port::free_port;

/// Waits until `check` holds.
///
/// # Panics
/// When `limit` is over, naming `what` was awaited.
pub async fn eventually<F: Future<Output = bool>>(
    limit: Duration,
    what: &str,
    mut check: impl FnMut() -> F,
) {
    let end = Instant::now() + limit;
    while !check().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
