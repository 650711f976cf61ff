//! The etcd client against a real etcd, with members that are dead or never answer.

mod support;

use std::{
    net::TcpListener,
    sync::Arc,
    time::{Duration, Instant},
};

use pgcm::{
    edge::etcd::{Etcd, EtcdError, EtcdOptions, Expect, Put, Swap},
    telemetry::log::discard,
};
use support::{etcd::start_etcd, eventually, free_port};
use tokio::sync::Notify;

const CALL: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(5);

fn client(endpoints: &[&str]) -> Etcd {
    Etcd::new(EtcdOptions {
        endpoints: endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
        namespace: "/postgres".to_owned(),
        call_timeout: CALL,
        user: None,
        tls: None,
    })
}

fn put(key: &str, value: &str, lease: i64) -> Put {
    Put { key: key.to_owned(), value: value.to_owned(), lease }
}

/// A member that nobody listens for.
fn dead() -> String {
    format!("http://127.0.0.1:{}", free_port())
}

/// A member that takes connections and never says a word, as long as the listener lives.
fn mute() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    (listener, format!("http://127.0.0.1:{port}"))
}

#[tokio::test]
async fn a_dead_and_a_mute_member_cost_one_limit_and_then_nothing() {
    let server = start_etcd().await;
    let (_listener, mute) = mute();
    let etcd = client(&[&dead(), &mute, &server.url()]);
    let begun = Instant::now();
    assert!(etcd.get("/none").await.expect("the third answers").is_none());
    let first = begun.elapsed();
    assert!(first >= CALL, "the mute member was asked: {first:?}");
    assert!(first < CALL * 3, "{first:?}");
    let begun = Instant::now();
    etcd.get("/none").await.expect("it is remembered");
    assert!(begun.elapsed() < CALL, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn no_member_at_all_is_said_of_each_within_bounds() {
    let (_listener, mute) = mute();
    let dead = dead();
    let etcd = client(&[&dead, &mute]);
    let begun = Instant::now();
    match etcd.get("/none").await {
        Err(EtcdError::Unreachable { tried }) => {
            assert!(tried.len() == 2 && tried[0].starts_with(&dead), "{tried:?}");
            assert!(tried[1].starts_with(&mute), "{tried:?}");
        }
        other => panic!("{other:?}"),
    }
    assert!(begun.elapsed() < CALL * 4, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_write_happens_only_when_all_expectations_hold() {
    let server = start_etcd().await;
    let etcd = server.client();
    let Swap::Done(first) =
        etcd.put_if(&[("/a", Expect::Absent)], &[put("/a", "1", 0)]).await.expect("etcd")
    else {
        panic!("the key was absent")
    };
    let again = etcd.put_if(&[("/a", Expect::Absent)], &[put("/a", "2", 0)]).await.expect("etcd");
    assert_eq!(again, Swap::Changed);
    let half = [("/a", Expect::ModRevision(first)), ("/b", Expect::ModRevision(first))];
    let both = [put("/a", "3", 0), put("/b", "3", 0)];
    assert_eq!(etcd.put_if(&half, &both).await.expect("etcd"), Swap::Changed);
    let found = etcd.get_all(&["/a", "/b"]).await.expect("etcd");
    assert_eq!(found.get("/a").map(|entry| entry.value.as_str()), Some("1"));
    assert!(found.get("/b").is_none());

    let whole = [("/a", Expect::ModRevision(first)), ("/b", Expect::Absent)];
    assert!(matches!(etcd.put_if(&whole, &both).await.expect("etcd"), Swap::Done(_)));
    let stale = etcd.delete_if("/a", Expect::ModRevision(first)).await.expect("etcd");
    assert_eq!(stale, Swap::Changed);
    let own = etcd.delete_if("/a", Expect::CreateRevision(first)).await.expect("etcd");
    assert!(matches!(own, Swap::Done(_)));
    assert!(etcd.get("/a").await.expect("etcd").is_none());
}

#[tokio::test]
async fn a_lost_lease_is_seen_and_takes_its_keys_along() {
    let server = start_etcd().await;
    let etcd = server.client();
    let lease = etcd.grant(Duration::from_secs(30)).await.expect("a lease");
    etcd.put_if(&[], &[put("/held", "me", lease)]).await.expect("written");
    assert!(etcd.renew(lease).await.expect("alive") > Duration::from_secs(20));
    assert_eq!(etcd.get("/held").await.expect("etcd").expect("there").lease, lease);
    // Somebody else ends it, as its time would.
    server.client().revoke(lease).await.expect("revoked");
    assert!(etcd.get("/held").await.expect("etcd").is_none());
    match etcd.renew(lease).await {
        Err(EtcdError::LeaseGone { lease: gone }) => assert_eq!(gone, lease),
        other => panic!("{other:?}"),
    }
    etcd.revoke(lease).await.expect("a lease that is gone is fine");
}

#[tokio::test]
async fn a_change_wakes_and_so_does_one_after_a_restart_of_etcd() {
    let mut server = start_etcd().await;
    let (etcd, wake) = (server.client(), Arc::new(Notify::new()));
    let (watching, woken) = (Arc::clone(&etcd), Arc::clone(&wake));
    let watcher =
        tokio::spawn(async move { watching.wake_on_change("/", &woken, &discard()).await });
    let awaited = |what: &'static str| {
        let wake = Arc::clone(&wake);
        async move { tokio::time::timeout(SOON, wake.notified()).await.expect(what) }
    };
    awaited("the watch begins").await;
    etcd.put_if(&[], &[put("/a", "1", 0)]).await.expect("written");
    awaited("the change is seen").await;

    server.stop();
    server.start().await;
    awaited("the watch begins anew").await;
    eventually(SOON, "a change after the restart is seen", || async {
        let written = etcd.put_if(&[], &[put("/a", "2", 0)]).await;
        let limit = Duration::from_millis(500);
        written.is_ok() && tokio::time::timeout(limit, wake.notified()).await.is_ok()
    })
    .await;
    watcher.abort();
}
