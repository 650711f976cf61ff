//! The bench: planned failovers under load, beside the floor of the same machine.
//!
//! `make bench` boots a cluster and runs it; see CONTRIBUTING.md for its arguments. What it computes
//! and prints is pure and tested here without a cluster.

#![expect(clippy::unwrap_used, reason = "a bench may end at the first surprise")]
#![cfg_attr(
    not(feature = "acceptance"),
    allow(dead_code, reason = "without a cluster only the arithmetic is tested")
)]

mod commits;
#[cfg(feature = "acceptance")]
#[path = "../support/docker/mod.rs"]
mod docker;
#[cfg(feature = "acceptance")]
mod floor;
#[cfg(feature = "acceptance")]
mod machine;
mod markdown;
#[cfg(feature = "acceptance")]
mod measure;
mod options;
mod results;
mod statistics;
mod svg;

#[cfg(feature = "acceptance")]
#[tokio::test(flavor = "multi_thread")]
async fn planned_failovers_beside_the_floor() {
    let options = options::Options::from_environment().unwrap();
    let cluster = docker::cluster::Cluster::whole().await;
    let growth = options.growth();
    let machine = machine::describe(&cluster).await;
    let floor = floor::Floor::install(&cluster).await;
    let mut groups = Vec::new();
    for load in options::LOADS {
        groups.push(measure::group(&cluster, &floor, load, options.rounds).await);
    }
    floor.remove().await;
    let results = results::Results { machine, groups, growth };
    options.keep(&results);
    let wrong = results.wrong();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
