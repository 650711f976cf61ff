//! Agents that come while a failover is about to begin, against a real etcd and simulated agents.

mod support;

use std::{sync::Arc, time::Duration};

use pgcm::edge::etcd::Put;
use support::{
    etcd::start_etcd,
    eventually,
    fake_cluster::{FakeCluster, Fault},
    pgcm::{Pgcm, end},
};

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_registers_after_the_checks_refuses() {
    let server = start_etcd().await;
    let etcd = server.client();
    let cluster = FakeCluster::start(etcd.clone()).await;
    cluster.publish_address().await;
    let pgcm = Arc::new(Pgcm::new(&server));
    // The checks take half a second: long enough to come in between.
    cluster.fault("check", Fault::Slow);
    let running = pgcm.start(&["failover"]);
    eventually(Duration::from_secs(10), "the agents were looked up", || async {
        cluster.calls().iter().any(|call| call.ends_with("check"))
    })
    .await;
    let value = serde_json::json!({
        "host": "app02", "kind": "proxy", "api": "127.0.0.1:1", "version": "0.1.0",
    });
    let put = Put { key: "/agents/app02/proxy".to_owned(), value: value.to_string(), lease: 0 };
    etcd.put_if(&[], &[put]).await.expect("written");
    let (status, stdout, stderr) =
        tokio::task::spawn_blocking(|| end(running)).await.expect("ends");
    assert_eq!(status, 4, "{stdout}{stderr}");
    assert!(stdout.contains("app02/proxy was registered after the checks"), "{stdout}{stderr}");
    assert!(cluster.changes().is_empty(), "{:?}", cluster.changes());
    assert!(etcd.get("/failover").await.expect("etcd answers").is_none());
}
