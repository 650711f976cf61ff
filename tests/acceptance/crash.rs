//! Primaries that die, and one that is only busy.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    CLIENTS,
    docker::{
        cluster::{Cluster, NODES},
        load::{Crowd, Load},
    },
    rounds,
};

/// Rounds of each kind of crash, at most.
const CRASHES: usize = 5;

/// What killing the primary by `kill` costs: the time in which nobody commits, median of some rounds.
/// Nothing is lost, and the cluster is whole again by itself.
async fn cost_of_a_crash(kill: impl AsyncFn(&Cluster, &'static str)) -> Duration {
    let mut gaps = Vec::new();
    for round in 1..=rounds().min(CRASHES) {
        let cluster = Cluster::whole().await;
        let address = cluster.published_primary().await;
        let primary = cluster.node_at(&address).await;
        let load = Load::start(&cluster, CLIENTS).await;
        load.flows().await;
        kill(&cluster, primary).await;
        load.flows_again(Duration::from_secs(15)).await;
        let seen = load.stop().await;
        println!("round {round}, {primary}: nobody commits for {:?}, {seen}", seen.longest_gap());
        gaps.push(seen.longest_gap());
        assert_eq!(seen.lost(&cluster).await, 0, "{seen}");
        if cluster.state(primary).await != "running" {
            cluster.start(primary).await;
        }
        cluster.becomes_whole(Duration::from_secs(150)).await;
    }
    gaps.sort_unstable();
    gaps[gaps.len() / 2]
}

#[tokio::test]
async fn killing_the_primary_loses_nothing_and_heals_by_itself() {
    let median = cost_of_a_crash(async |cluster, primary| {
        cluster.kill(primary).await;
    });
    let median = median.await;
    println!("machine killed: nobody commits for {median:?} (median)");
    assert!(median < Duration::from_secs(7), "{median:?}");
}

#[tokio::test]
async fn a_dead_postmaster_costs_clients_a_few_seconds() {
    let median = cost_of_a_crash(async |cluster, primary| {
        let kill = "kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)";
        cluster.exec(primary, &["bash", "-c", kill]).await.done();
    });
    let median = median.await;
    println!("postmaster killed: nobody commits for {median:?} (median)");
    assert!(median < Duration::from_secs(4), "{median:?}");
}

#[tokio::test]
async fn a_busy_primary_is_not_demoted() {
    let cluster = Cluster::whole().await;
    let before = cluster.status().await["cluster"]["primary"].clone();
    let crowd = Crowd::take_all_slots(&cluster).await;
    let primary = before["name"].as_str().unwrap();
    let stop = format!("kill -STOP {}", crowd.pid);
    cluster.exec(primary, &["sh", "-c", &stop]).await.done();
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(crowd.is_full().await, "there are slots left");
        assert_eq!(cluster.published_primary().await, before["address"].as_str().unwrap());
    }
    let go_on = format!("kill -CONT {}", crowd.pid);
    cluster.exec(primary, &["sh", "-c", &go_on]).await.done();
    drop(crowd);
    cluster.becomes_whole(Duration::from_secs(30)).await;
    // A demotion and a promotion in between would have made a new timeline.
    assert_eq!(cluster.status().await["cluster"]["primary"], before);
    let failures = cluster.exec("pg01", &["crm_mon", "-1f"]).await.done();
    assert!(!failures.contains("fail-count"), "{failures}");
}

/// The DC's controller takes the attributes of its node along, in the CIB. A primary without a score would be demoted,
/// and the move to a standby without an address be turned back.
#[tokio::test]
async fn a_controller_that_dies_moves_no_primary_and_turns_no_failover_back() {
    let cluster = Cluster::whole().await;
    let before = cluster.status().await["cluster"]["primary"].clone();
    let load = Load::start(&cluster, CLIENTS).await;
    load.flows().await;
    let mut struck = BTreeSet::new();
    // The oldest controller becomes the DC, so every node has its turn.
    for _ in 0..4 {
        let dc = cluster.dc().await;
        cluster.kill_controller(dc).await;
        struck.insert(dc);
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.may_fail_over(Duration::from_secs(60)).await;
        cluster.becomes_whole(Duration::from_secs(30)).await;
        assert_eq!(cluster.status().await["cluster"]["primary"], before, "{dc} was the DC");
    }
    assert_eq!(struck, BTreeSet::from(NODES));
    cluster.exec("app01", &["pgcm", "failover"]).await.done();
    let seen = load.stop().await;
    assert_eq!(seen.lost(&cluster).await, 0, "{seen}");
    assert!(seen.errors.is_empty(), "{seen}: {:?}", seen.errors);
}
