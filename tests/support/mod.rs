//! Real programs for tests, and how to wait for them.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this")]

pub mod etcd;
pub mod fake_cluster;

use std::time::{Duration, Instant};

/// Waits until `check` holds; panics naming `what` when it does not within `limit`.
pub async fn eventually<F>(limit: Duration, what: &str, mut check: impl FnMut() -> F)
where
    F: Future<Output = bool>,
{
    let end = Instant::now() + limit;
    while !check().await {
        assert!(Instant::now() < end, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
