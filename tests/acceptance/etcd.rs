//! What is published, and what happens without etcd.

use std::time::{Duration, Instant};

use crate::{
    CLIENTS,
    docker::{
        cluster::{Cluster, NODES},
        load::Load,
    },
};

#[tokio::test]
async fn etcd_crm_mon_and_status_agree() {
    let cluster = Cluster::whole().await;
    let published = cluster.published_primary().await;
    let status = cluster.status().await;
    assert_eq!(status["primary_address"], published.as_str());
    let name = status["cluster"]["primary"]["name"].as_str().unwrap();
    assert_eq!(cluster.address(name).await, published);

    let table = cluster.exec("app01", &["pgcm", "status"]).await.done();
    assert!(table.contains(&format!("{name} ({published})")), "{table}");

    let crm_mon = cluster.exec("pg01", &["crm_mon", "-Afr", "-1"]).await.done();
    for line in ["Postgresql-status", "Postgresql-data-status", "master-Postgresql"] {
        assert_eq!(crm_mon.matches(line).count(), 3, "{line} for each node in:\n{crm_mon}");
    }
    let shown: Vec<&str> =
        crm_mon.lines().filter_map(|line| line.split_once(": ")).map(|(_, v)| v.trim()).collect();
    let of_standbys = match std::env::var("PGCM_MODE").as_deref() {
        Ok("quorum") => ["HS:quorum", "STREAMING|QUORUM"].as_slice(),
        _ => &["HS:sync", "HS:potential", "STREAMING|SYNC", "STREAMING|POTENTIAL"],
    };
    for value in ["PRI", "LATEST"].iter().chain(of_standbys) {
        assert!(shown.contains(value), "{value} in:\n{crm_mon}");
    }
    let baseline = crm_mon.lines().find(|line| line.contains("Postgresql-master-baseline"));
    let digits = baseline.and_then(|line| line.trim().rsplit(' ').next()).unwrap_or_default();
    assert!(digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{crm_mon}");
}

#[tokio::test]
async fn losing_all_of_etcd_costs_clients_nothing() {
    let cluster = Cluster::whole().await;
    let load = Load::start(&cluster, CLIENTS).await;
    let outage = Instant::now();
    for node in NODES {
        cluster.exec(node, &["systemctl", "stop", "etcd"]).await.done();
    }
    let refused = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(refused.status, 3, "{refused}");
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(outage.elapsed())).await;
    load.flows().await;
    let seen = load.stop().await;
    println!("etcd away: {seen}");
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert_eq!(seen.lost(&cluster).await, 0, "{seen}");
    for node in NODES {
        // Members wait for each other, so none may be waited for alone.
        cluster.exec(node, &["systemctl", "start", "--no-block", "etcd"]).await.done();
    }
    cluster.becomes_whole(Duration::from_secs(60)).await;
    let next = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(next.status, 0, "{next}");
}
