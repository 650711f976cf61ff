//! What is remembered of changes of the primary, against a real etcd.

mod support;

use std::time::Duration;

use pgcm::{
    edge::{clock, etcd::Put},
    model::{
        attempt::{Attempt, LOCK},
        history::{Change, KEPT, Kind, key},
    },
    telemetry::log::discard,
    work::history,
};
use support::{
    etcd::start_etcd,
    eventually,
    stage::{SOON, Stage, stage},
};

async fn remembered(stage: &Stage) -> Vec<Change> {
    let (_, entries, odd) = history::read(&stage.etcd).await.expect("etcd answers");
    assert!(odd.is_empty(), "{odd:?}");
    entries.into_iter().map(|entry| entry.change).collect()
}

/// Makes this node's Postgres a primary on that timeline, and waits until it is published.
async fn promote(stage: &Stage, timeline: u32) {
    stage.scene.set(|world| world.facts.timeline = timeline);
    let published = || async { stage.view().await.primary.timeline == timeline };
    eventually(SOON, "the new timeline is published", published).await;
}

#[tokio::test]
async fn an_unplanned_change_is_remembered_once_by_the_node_that_published_it() {
    let stage = stage().await;
    stage.published().await;
    assert_eq!(remembered(&stage).await, [], "the first publication is no change");
    promote(&stage, 4).await;
    // Several looks later it is still one.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let [change] = &remembered(&stage).await[..] else { panic!("not one") };
    assert_eq!((change.kind, change.outcome.as_str()), (Kind::Unplanned, "promoted"));
    let timeline = |primary: &Option<pgcm::model::cluster::Primary>| {
        primary.as_ref().map(|primary| (primary.name.clone(), primary.timeline))
    };
    assert_eq!(timeline(&change.old_primary), Some(("pg01".to_owned(), 3)));
    assert_eq!(timeline(&change.new_primary), Some(("pg01".to_owned(), 4)));
    let gap = change.without_primary_ms.expect("it had seen the old one");
    assert!(gap < 5_000, "{gap}");
    assert!(change.ended_at.is_some() && change.last_confirmed_at.is_some(), "{change:?}");
}

#[tokio::test]
async fn a_change_that_a_failover_makes_is_left_to_the_failover() {
    let stage = stage().await;
    stage.published().await;
    let mut attempt = Attempt {
        id: "a".to_owned(),
        holder: "app01".to_owned(),
        purpose: "failover".to_owned(),
        started_at: clock::now_rfc3339(),
        step: "migrate".to_owned(),
        pause_deadline_unix_ms: 0,
    };
    stage.put(LOCK, &serde_json::to_string(&attempt).expect("JSON")).await;
    promote(&stage, 4).await;
    assert_eq!(remembered(&stage).await, []);
    attempt.purpose = "with-lock: sleep 9".to_owned();
    stage.put(LOCK, &serde_json::to_string(&attempt).expect("JSON")).await;
    promote(&stage, 5).await;
    assert_eq!(remembered(&stage).await.len(), 1, "the lock alone explains nothing");
}

#[tokio::test]
async fn the_history_is_bounded_and_knows_a_planned_change_once() {
    let server = start_etcd().await;
    let etcd = server.client();
    for n in 0..KEPT as u64 + 5 {
        let put = Put { key: key(n), value: "{}".to_owned(), lease: 0 };
        etcd.put_if(&[], &[put]).await.expect("written");
    }
    let mut change: Change = serde_json::from_value(serde_json::json!({
        "kind": "unplanned", "outcome": "promoted",
        "old_primary": null,
        "new_primary": { "name": "pg02", "address": "10.0.0.2", "timeline": 4 },
    }))
    .expect("a change");
    let moved_to = change.new_primary.clone().expect("there");
    let json = |change: &Change| serde_json::to_string(change).expect("JSON");
    // A supervise that did not see in time that a failover was moving the primary.
    history::write(&etcd, &key(1_000), json(&change), None, &discard()).await;
    change.kind = Kind::Planned;
    history::write(&etcd, &key(999), json(&change), Some(&moved_to), &discard()).await;
    let (snapshot, entries, odd) = history::read(&etcd).await.expect("etcd answers");
    assert_eq!(snapshot.entries.len(), KEPT - 1);
    let kinds: Vec<Kind> = entries.iter().map(|entry| entry.change.kind).collect();
    assert_eq!(kinds, [Kind::Planned]);
    assert_eq!(odd.len(), KEPT - 2, "what cannot be read is told, not dropped");
    assert!(snapshot.entries.iter().all(|entry| entry.key > key(6)), "the oldest went");
}
