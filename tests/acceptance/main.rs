//! The promises of DESIGN.md, kept by a real cluster in Docker under load.
//!
//! `make acceptance` boots the cluster under a name of its own, so that a playground that somebody has
//! running is left alone. The tests share it and run one after the other; each begins by waiting until
//! the cluster is whole.

#![cfg(feature = "acceptance")]
#![expect(clippy::unwrap_used, reason = "a test may end at the first surprise")]

#[path = "../support/docker/mod.rs"]
mod docker;
mod interruptions;

mod checks;
mod cost;
mod crash;
mod etcd;
mod planned;
mod pools;

const CLIENTS: usize = 8;

/// How often the primary is moved; a short run sets PGCM_ROUNDS.
fn rounds() -> usize {
    std::env::var("PGCM_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}
