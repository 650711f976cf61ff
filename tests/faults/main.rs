//! The fault campaign: clients write while nodes, processes, disks and the network between them
//! fail; afterwards every acknowledged commit must be there.
//!
//! `make faults` boots a cluster and runs it; see CONTRIBUTING.md for its arguments. What judges the
//! rounds and chooses the faults is pure and tested here without a cluster.

#![expect(clippy::unwrap_used, reason = "a test may end at the first surprise")]
#![cfg_attr(
    not(feature = "acceptance"),
    allow(dead_code, reason = "without a cluster only decisions are tested")
)]

#[cfg(feature = "acceptance")]
mod campaign;
#[cfg(feature = "acceptance")]
#[path = "../support/docker/mod.rs"]
mod docker;
#[cfg(feature = "acceptance")]
mod inject;
#[cfg(feature = "acceptance")]
mod ledger;
mod options;
mod plan;
mod random;
#[cfg(feature = "acceptance")]
mod recover;
mod report;
mod verdict;

#[cfg(feature = "acceptance")]
#[tokio::test(flavor = "multi_thread")]
async fn no_fault_loses_an_acknowledged_commit() {
    let options = options::Options::from_environment().unwrap();
    let broken = options.broken;
    let cluster = docker::cluster::Cluster::named();
    cluster.boot().await;
    let rounds = campaign::Campaign::new(cluster, options).run().await.unwrap();
    println!("\n{}", report::table(&rounds));
    if broken {
        let seen = rounds.iter().any(|round| !round.is_clean());
        assert!(seen, "the campaign did not see what the broken build loses");
    } else {
        let bad = rounds.iter().filter(|round| !round.went_well());
        let seeds: Vec<_> = bad.map(|round| round.seed).collect();
        assert!(seeds.is_empty(), "rounds with these seeds went wrong: {seeds:?}");
    }
}
