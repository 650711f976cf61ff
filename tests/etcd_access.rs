//! The etcd client against a real etcd that lets not everybody in: users and certificates.

mod support;

use std::{convert::Infallible, fs, path::Path, sync::Arc, time::Duration};

use pgcm::{
    edge::etcd::{Etcd, EtcdOptions, Expect, Put, Swap, tls::Tls},
    error::chain,
    telemetry::log::discard,
};
use support::{
    certificates::Authority,
    etcd::{EtcdServer, start_etcd, start_etcd_over_tls, start_etcd_with},
};
use tokio::{sync::Notify, task::JoinHandle, time::timeout};

const SOON: Duration = Duration::from_secs(5);
/// How long a token of `--auth-token simple` lasts here: the least that etcd knows.
const TTL: Duration = Duration::from_secs(1);

/// etcd with users, and tokens that end when nobody uses them.
async fn simple_tokens() -> EtcdServer {
    let mut server = start_etcd_with(&["--auth-token-ttl", "1"]).await;
    server.enable_auth();
    server
}

/// etcd with users, and signed tokens: each carries the revision of the users that it was made for.
async fn signed_tokens(dir: &tempfile::TempDir) -> EtcdServer {
    let key = dir.path().join("key");
    fs::write(&key, "a secret of the members").expect("writable");
    let tokens = format!("jwt,sign-method=HS256,ttl=10m,priv-key={}", key.display());
    let mut server = start_etcd_with(&["--auth-token", &tokens]).await;
    server.enable_auth();
    server
}

/// A client that calls itself pgcm.
fn as_user(server: &EtcdServer, password: &str) -> Etcd {
    let user = Some(("pgcm".to_owned(), password.to_owned()));
    Etcd::new(EtcdOptions { user, ..server.options() })
}

/// Why a call fails.
async fn refusal(etcd: &Etcd) -> String {
    chain(&etcd.get("/a").await.expect_err("refused")).to_string()
}

fn put(key: &str, value: &str, lease: i64) -> Put {
    Put { key: key.to_owned(), value: value.to_owned(), lease }
}

fn watch(etcd: &Arc<Etcd>) -> (Arc<Notify>, JoinHandle<Infallible>) {
    let (etcd, wake) = (Arc::clone(etcd), Arc::new(Notify::new()));
    let woken = Arc::clone(&wake);
    let watcher = tokio::spawn(async move { etcd.wake_on_change("/", &woken, &discard()).await });
    (wake, watcher)
}

async fn awaited(wake: &Notify, what: &str) {
    timeout(SOON, wake.notified()).await.expect(what);
}

/// All kinds of calls that pgcm makes, once.
async fn do_everything(etcd: &Etcd) {
    let lease = etcd.grant(Duration::from_secs(30)).await.expect("a lease");
    let done = etcd.put_if(&[("/a", Expect::Absent)], &[put("/a", "1", lease)]).await;
    assert!(matches!(done.expect("written"), Swap::Done(_)));
    assert!(etcd.get("/a").await.expect("read").is_some());
    assert_eq!(etcd.get_all(&["/a", "/b"]).await.expect("read").entries.len(), 1);
    assert_eq!(etcd.get_prefix("/").await.expect("read").entries.len(), 1);
    assert_eq!(etcd.get_last("/", 1).await.expect("read").len(), 1);
    etcd.renew(lease).await.expect("renewed");
    etcd.delete_if("/a", Expect::Absent).await.expect("compared");
    etcd.revoke(lease).await.expect("revoked");
    assert!(etcd.get("/a").await.expect("read").is_none());
}

#[tokio::test]
async fn a_user_of_its_own_prefix_does_all_that_pgcm_does() {
    let server = simple_tokens().await;
    let etcd = server.client();
    let (wake, watcher) = watch(&etcd);
    awaited(&wake, "the watch begins").await;
    do_everything(&etcd).await;
    awaited(&wake, "the change is seen").await;
    watcher.abort();
}

#[tokio::test]
async fn a_token_that_expired_fails_no_call() {
    let server = simple_tokens().await;
    let etcd = server.client();
    do_everything(&etcd).await;
    // etcd looks for expired ones once in a second.
    tokio::time::sleep(TTL * 3).await;
    do_everything(&etcd).await;
}

#[tokio::test]
async fn a_change_of_users_fails_no_call() {
    let dir = tempfile::tempdir().expect("a directory");
    for server in [simple_tokens().await, signed_tokens(&dir).await] {
        let etcd = server.client();
        do_everything(&etcd).await;
        for change in ["user add another --new-user-password=x", "user grant-role another root"] {
            server.etcdctl(change);
            do_everything(&etcd).await;
        }
    }
}

#[tokio::test]
async fn a_watch_begins_though_users_changed() {
    let dir = tempfile::tempdir().expect("a directory");
    let server = signed_tokens(&dir).await;
    let etcd = server.client();
    etcd.get("/a").await.expect("the token is there");
    server.etcdctl("user add another --new-user-password=x");
    let (wake, watcher) = watch(&etcd);
    // Nothing but the watch itself sees that the token does not count any more.
    awaited(&wake, "the watch begins").await;
    server.client().put_if(&[], &[put("/a", "1", 0)]).await.expect("written");
    awaited(&wake, "the change is seen").await;
    watcher.abort();
}

#[tokio::test]
async fn users_can_be_turned_on_and_off_under_a_client_that_is_one() {
    let mut server = start_etcd().await;
    let etcd = as_user(&server, "secret");
    do_everything(&etcd).await;
    server.enable_auth();
    do_everything(&etcd).await;
    server.etcdctl("auth disable");
    do_everything(&etcd).await;
    do_everything(&server.client()).await;
}

#[tokio::test]
async fn a_wrong_password_is_refused_with_its_reason() {
    let server = simple_tokens().await;
    let error = refusal(&as_user(&server, "wrong")).await;
    assert!(error.contains("invalid user ID or password"), "{error}");
}

/// etcd whose certificate `authority` signs, with more arguments.
async fn over_tls(authority: &Authority, more: &[&str], tls: Tls) -> EtcdServer {
    authority.sign("member", "127.0.0.1");
    let (certificate, key) = (authority.certificate("member"), authority.key("member"));
    let own = ["--cert-file", text(&certificate), "--key-file", text(&key)];
    start_etcd_over_tls(&[&own, more].concat(), tls).await
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

fn trusting(authority: &Authority) -> Tls {
    Tls::trusting(&authority.certificate("ca")).expect("readable")
}

#[tokio::test]
async fn a_member_whose_ca_is_known_is_asked_over_tls_and_no_other() {
    let authority = Authority::new();
    let server = over_tls(&authority, &[], trusting(&authority)).await;
    do_everything(&server.client()).await;
    let (wake, watcher) = watch(&server.client());
    awaited(&wake, "the watch begins").await;
    watcher.abort();

    let other = Authority::new();
    let stranger = Etcd::new(EtcdOptions { tls: Some(trusting(&other)), ..server.options() });
    let error = refusal(&stranger).await;
    let checked = format!("checked with {}", other.certificate("ca").display());
    assert!(error.contains(&server.url()) && error.contains(&checked), "{error}");
}

#[test]
fn a_ca_that_was_cut_off_is_named() {
    let authority = Authority::new();
    let ca = authority.certificate("ca");
    let whole = fs::read_to_string(&ca).expect("readable");
    fs::write(&ca, &whole[..whole.len() / 2]).expect("written");
    let error = Tls::trusting(&ca).expect_err("half a certificate").to_string();
    assert!(
        error.starts_with(&format!("a certificate in {} cannot be read", ca.display())),
        "{error}"
    );
}

#[tokio::test]
async fn a_member_that_wants_a_certificate_is_shown_one() {
    let authority = Authority::new();
    authority.sign("pgcm", "127.0.0.1");
    let ca = authority.certificate("ca");
    let demand = ["--client-cert-auth", "--trusted-ca-file", text(&ca)];
    let showing = trusting(&authority)
        .showing(&authority.certificate("pgcm"), &authority.key("pgcm"))
        .expect("a pair");
    let server = over_tls(&authority, &demand, showing).await;
    do_everything(&server.client()).await;

    let tls = Some(trusting(&authority));
    let nobody = Etcd::new(EtcdOptions { tls, ..server.options() });
    let error = refusal(&nobody).await;
    assert!(error.contains("see etcd.cert-file"), "{error}");
}
