//! The pause of a failover that began before its agent, once the coordinator says nothing any more.

use std::{sync::Arc, time::Duration};

use pgcm::{
    model::{
        console::Flow,
        registration::{AgentKind, Registration},
    },
    telemetry::log::discard,
    work::{
        fence::SharedGate,
        join::Joining,
        pauser::{Pauser, PauserOptions},
    },
};
use tokio::task::JoinHandle;

use crate::{ONE, POLL, SOON, TWO, World, put, set_master, support::eventually, world};

/// Joins the pause of a failover in the middle of its move, whose lock then ends without a word.
async fn joined(world: &World) -> JoinHandle<()> {
    let deadline = pgcm::edge::clock::unix_ms() + 60_000;
    let attempt = serde_json::json!({
        "id": "gone", "holder": "h", "purpose": "failover", "started_at": "", "step": "migrate",
        "pause_deadline_unix_ms": deadline,
    });
    put(&world.etcd, "/failover", &attempt.to_string()).await;
    let options = PauserOptions {
        consoles: vec![world.pgbouncer.console()],
        resume_limit: Duration::from_secs(2),
        adopt_ceiling: Duration::from_secs(60),
    };
    let joining = Joining {
        etcd: Arc::clone(&world.etcd),
        pauser: Arc::new(Pauser::new(options, SharedGate::default(), discard())),
        follower: Arc::new(world.follower.clone()),
        registration: Registration {
            host: "app01".into(),
            kind: AgentKind::Proxy,
            api: "127.0.0.1:8081".parse().unwrap(),
            version: "1".into(),
        },
        log: discard(),
    };
    let joined = joining.begin().await;
    assert_eq!(world.flow().await, Flow::Held);
    let task = tokio::spawn(joining.run(joined));
    let lock = world.etcd.get("/failover").await.unwrap().unwrap();
    let expect = pgcm::edge::etcd::Expect::ModRevision(lock.mod_revision);
    world.etcd.delete_if("/failover", expect).await.unwrap();
    // Time for many looks.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(world.flow().await, Flow::Held, "Pacemaker may still be asked to move the primary");
    task
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_pause_outlives_its_coordinator_until_another_primary_is_followed() {
    let world = world(POLL).await;
    let task = joined(&world).await;
    set_master(&world.etcd, TWO).await;
    let flows = || async { world.flow().await == Flow::Active };
    eventually(SOON, "clients are let go", flows).await;
    assert_eq!(world.host().await, TWO);
    task.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_joined_pause_ends_once_its_failover_has_told_its_end() {
    let world = world(POLL).await;
    let task = joined(&world).await;
    let key = pgcm::model::history::key(pgcm::edge::clock::unix_ms());
    let record =
        |outcome| serde_json::json!({"kind": "planned", "attempt": "gone", "outcome": outcome});
    put(&world.etcd, &key, &record("running").to_string()).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.flow().await, Flow::Held, "it may have died");
    put(&world.etcd, &key, &record("put_back").to_string()).await;
    let flows = || async { world.flow().await == Flow::Active };
    eventually(SOON, "clients are let go", flows).await;
    assert_eq!(world.host().await, ONE);
    task.abort();
}
