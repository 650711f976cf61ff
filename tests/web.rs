//! What monitoring is told over HTTP, by `pgcm proxy` and `pgcm supervise` as they are run.

mod support;

use std::{
    collections::BTreeSet, fmt::Write as _, fs, os::unix::fs::PermissionsExt, path::Path,
    time::Duration,
};

use pgcm::{
    edge::{
        etcd::Put,
        peer::{Peer, PeerOptions, pb},
    },
    model::console::Flow,
};
use support::{
    etcd::{EtcdServer, start_etcd},
    eventually, free_port,
    pgbouncer::{Pgbouncer, settings},
    postgres::{Postgres, start_postgres, start_standby},
    process::Process,
    stage::HEALTHY,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const SOON: Duration = Duration::from_secs(10);

/// A daemon that runs, and where it listens.
struct Daemon {
    api: u16,
    web: u16,
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Daemon {
    /// Starts `pgcm <kind>` with `sections` in its configuration and `path` before its `PATH`.
    fn start(kind: &str, server: &EtcdServer, sections: &str, path: &Path) -> Self {
        let (dir, api, web) = (tempfile::tempdir().expect("a directory"), free_port(), free_port());
        let config = dir.path().join("config.toml");
        let text = format!(
            "[node]\nname = \"pg01\"\naddress = \"127.0.0.1\"\n\
             [etcd]\nendpoints = [\"{}\"]\ncall-timeout = \"500ms\"\n\
             [api]\n{kind}-listen = \"127.0.0.1:{api}\"\n\
             [web]\n{kind}-listen = \"127.0.0.1:{web}\"\n{sections}",
            server.url()
        );
        fs::write(&config, text).expect("writable");
        let args = [kind, "--config-file", config.to_str().expect("UTF-8")];
        let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap_or_default());
        let program = Path::new(env!("CARGO_BIN_EXE_pgcm"));
        let log = dir.path().join("log");
        let process = Process::start_in(program, &args, &log, false, &[("PATH", &path)]);
        Self { api, web, _process: process, _dir: dir }
    }

    /// The status and the body of what is at `path`; 0 while nobody answers.
    async fn get(&self, path: &str) -> (u16, String) {
        let answer = async {
            let mut stream = TcpStream::connect(("127.0.0.1", self.web)).await?;
            let request = format!("GET {path} HTTP/1.1\r\nHost: pgcm\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            std::io::Result::Ok(answer)
        };
        let answer = answer.await.unwrap_or_default();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or(0), body.to_owned())
    }

    /// Waits until `path` answers with `status` and a body that has `words`.
    async fn answers(&self, path: &str, status: u16, words: &str) {
        let what = format!("{path} answers {status} with {words:?}");
        let right = async || {
            let (code, body) = self.get(path).await;
            code == status && body.contains(words)
        };
        eventually(SOON, &what, right).await;
    }

    /// The value of a metric without labels.
    async fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics").await;
        let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = value.unwrap_or_else(|| panic!("{name} is not in:\n{text}"));
        value.parse().expect("a number")
    }
}

/// Names of metrics in README that belong to `daemon`.
fn in_readme(daemon: &str) -> BTreeSet<String> {
    let readme = include_str!("../README.md");
    let rows = readme.lines().filter_map(|line| line.strip_prefix("| `pgcm_"));
    let of_daemon = rows.filter(|row| row.split(" | ").nth(1) == Some(daemon));
    of_daemon.filter_map(|row| Some(format!("pgcm_{}", row.split(['`', '{']).next()?))).collect()
}

/// Names of the metrics in Prometheus' text.
fn served(text: &str) -> BTreeSet<String> {
    let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    types.filter_map(|line| Some(line.split(' ').next()?.to_owned())).collect()
}

async fn put(server: &EtcdServer, key: &str, value: &str) {
    let put = Put { key: key.to_owned(), value: value.to_owned(), lease: 0 };
    server.client().put_if(&[], &[put]).await.expect("etcd takes it");
}

/// A proxy of a PgBouncer that follows 127.0.0.11.
async fn proxy(server: &EtcdServer, pgbouncer: &Pgbouncer) -> Daemon {
    put(server, "/master", "127.0.0.11").await;
    let template = pgbouncer.dir().join("template");
    let mut text = "[databases]\napp = host={{.Host}} port=5432 dbname=app\n".to_owned();
    text.push_str(&settings(pgbouncer.dir(), pgbouncer.port, ""));
    fs::write(&template, text).expect("writable");
    let mut sections = format!("[pgbouncer]\nadmin-sockets = [{:?}]\n", pgbouncer.socket());
    let _ = write!(
        sections,
        "[proxy]\npoll-interval = \"100ms\"\ntemplates = [{{ source = {template:?}, target = {:?} }}]\n",
        pgbouncer.file
    );
    let daemon = Daemon::start("proxy", server, &sections, Path::new("/nonexistent"));
    daemon.answers("/health", 200, "healthy").await;
    daemon
}

async fn pgbouncer() -> Pgbouncer {
    let mut pgbouncer = Pgbouncer::new(free_port(), "[databases]\napp = host=127.0.0.9\n", "");
    pgbouncer.start().await;
    pgbouncer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_was_left_is_ended_also_by_a_daemon_that_cannot_begin() {
    let (server, pgbouncer) = (start_etcd().await, pgbouncer().await);
    let console = pgbouncer.console();
    for kind in ["proxy", "supervise"] {
        console.connect().await.expect("it runs").pause(SOON).await.expect("paused");
        let dir = tempfile::tempdir().expect("a directory");
        let config = dir.path().join("config.toml");
        let text = format!(
            "[node]\nname = \"no-such-host.invalid\"\n[etcd]\nendpoints = [\"{}\"]\n\
             [pgbouncer]\nadmin-sockets = [{:?}]\n",
            server.url(),
            pgbouncer.socket()
        );
        fs::write(&config, text).expect("writable");
        let args = [kind, "--config-file", config.to_str().expect("UTF-8")];
        let program = Path::new(env!("CARGO_BIN_EXE_pgcm"));
        let log = dir.path().join("log");
        let daemon = Process::start(program, &args, &log, false);
        tokio::task::spawn_blocking(move || daemon.ends_within(2 * SOON)).await.expect("it ends");
        let told = fs::read_to_string(&log).expect("a log");
        assert!(told.contains("cannot resolve the host name no-such-host.invalid"), "{told}");
        let flow = console.connect().await.expect("it runs").flow().await.expect("an answer");
        assert_eq!(flow, Flow::Active, "{kind}: {told}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn health_of_a_proxy_tells_what_is_wrong_now_and_that_it_is_over() {
    let (mut server, mut pgbouncer) = (start_etcd().await, pgbouncer().await);
    let proxy = proxy(&server, &pgbouncer).await;
    server.stop();
    proxy.answers("/health", 503, "no etcd member answered").await;
    let read = proxy.metric("pgcm_etcd_last_read_timestamp_seconds").await;
    assert!(read > 1.7e9, "{read} is no time of today");
    assert!((proxy.metric("pgcm_pgbouncer_following").await - 1.0).abs() < 0.1);
    server.start().await;
    proxy.answers("/health", 200, "healthy").await;
    assert!(proxy.metric("pgcm_etcd_last_read_timestamp_seconds").await > read);
    put(&server, "/master", "nonsense").await;
    proxy.answers("/health", 503, "\"nonsense\", which is not an IP address").await;
    put(&server, "/master", "127.0.0.11").await;
    proxy.answers("/health", 200, "healthy").await;
    pgbouncer.stop();
    proxy.answers("/health", 503, &pgbouncer.socket().display().to_string()).await;
    pgbouncer.start().await;
    proxy.answers("/health", 200, "healthy").await;
    for role in ["/primary", "/standby"] {
        assert_eq!(proxy.get(role).await, (503, "none\n".to_owned()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_of_a_proxy_are_those_of_the_readme_and_tell_how_long_clients_were_held() {
    let (server, pgbouncer) = (start_etcd().await, pgbouncer().await);
    let proxy = proxy(&server, &pgbouncer).await;
    let (status, text) = proxy.get("/metrics").await;
    assert_eq!((status, served(&text)), (200, in_readme("proxy")));
    let options = PeerOptions { connect_limit: SOON, token: None };
    let peer = Peer::new("proxy", &format!("127.0.0.1:{}", proxy.api), &options).expect("an agent");
    // Nobody holds the lock: a token that its next holder may have.
    let attempt = pb::Attempt { id: "a".to_owned(), fencing_token: i64::MAX };
    let asked = peer.pause(attempt.clone(), SOON / 2, SOON, SOON).await;
    assert_eq!(asked.expect("paused"), 1);
    assert!(proxy.metric("pgcm_pgbouncer_pause_last_seconds").await < 0.001, "none is over yet");
    let held = Duration::from_millis(300);
    tokio::time::sleep(held).await;
    peer.resume(attempt, SOON).await.expect("resumed");
    let last = proxy.metric("pgcm_pgbouncer_pause_last_seconds").await;
    assert!(last >= held.as_secs_f64() && last < SOON.as_secs_f64(), "{last}");
}

/// Pacemaker's tools, which say what is in a file; and that pg01 is promoted.
fn tools() -> tempfile::TempDir {
    let tools = tempfile::tempdir().expect("a directory");
    let crm_mon = tools.path().join("crm_mon");
    fs::write(&crm_mon, "#!/bin/sh\ncat \"$(dirname \"$0\")/crm_mon.xml\"\n").expect("writable");
    fs::set_permissions(&crm_mon, fs::Permissions::from_mode(0o755)).expect("chmod");
    say(&tools, HEALTHY);
    tools
}

/// From now on crm_mon says `xml`.
fn say(tools: &tempfile::TempDir, xml: &str) {
    let new = tools.path().join("new");
    fs::write(&new, xml).expect("writable");
    fs::rename(new, tools.path().join("crm_mon.xml")).expect("renamed");
}

async fn supervise(server: &EtcdServer, postgres: &Postgres, tools: &tempfile::TempDir) -> Daemon {
    let sections = format!(
        "[pacemaker]\npoll-interval = \"100ms\"\n[postgres]\nsocket-dir = {:?}\nport = {}\n",
        postgres.socket_dir(),
        postgres.port
    );
    let daemon = Daemon::start("supervise", server, &sections, tools.path());
    daemon.answers("/health", 200, "healthy").await;
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_outage_takes_no_role_from_a_healthy_primary() {
    let (mut server, postgres, tools) = (start_etcd().await, start_postgres().await, tools());
    let supervise = supervise(&server, &postgres, &tools).await;
    supervise.answers("/primary", 200, "primary").await;
    assert_eq!(supervise.get("/standby").await, (503, "primary\n".to_owned()));
    let (status, text) = supervise.get("/metrics").await;
    assert_eq!((status, served(&text)), (200, in_readme("supervise")));
    server.stop();
    supervise.answers("/health", 503, "no etcd member answered").await;
    assert_eq!(supervise.get("/primary").await, (200, "primary\n".to_owned()));
    server.start().await;
    supervise.answers("/health", 200, "healthy").await;
    assert_eq!(supervise.get("/primary").await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_of_a_supervise_tells_of_a_side_without_quorum() {
    let (server, postgres, tools) = (start_etcd().await, start_postgres().await, tools());
    let supervise = supervise(&server, &postgres, &tools).await;
    let alone = HEALTHY.replace("with_quorum=\"true\"", "with_quorum=\"false\"");
    assert_ne!(alone, HEALTHY);
    say(&tools, &alone);
    supervise.answers("/health", 503, "this side of the cluster has no quorum").await;
    assert_eq!(supervise.get("/primary").await, (503, "none\n".to_owned()));
    say(&tools, HEALTHY);
    supervise.answers("/health", 200, "healthy").await;
    supervise.answers("/primary", 200, "primary").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_standby_is_told_as_one() {
    let (server, primary, tools) = (start_etcd().await, start_postgres().await, tools());
    let standby = start_standby(&primary, "pg01").await;
    let (own, other) = ("\"pg01\"", "\"pg02\"");
    let swapped = HEALTHY.replace(own, "\"pgXX\"").replace(other, own).replace("\"pgXX\"", other);
    say(&tools, &swapped);
    let supervise = supervise(&server, &standby, &tools).await;
    supervise.answers("/standby", 200, "standby").await;
    assert_eq!(supervise.get("/primary").await, (503, "standby\n".to_owned()));
}
