//! How the steps during which clients wait grow with the number of proxies.
//!
//! The proxies are real processes, and so are etcd, the first proxy's PgBouncer and the Postgres
//! behind it, for whose pools all clients wait. The other PgBouncers' consoles and the nodes' agents
//! are simulated. PGCM_PROXIES in the environment names other numbers of proxies (`make bench`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use pgcm::{
    edge::etcd::Etcd,
    exit::Exit,
    model::console::Flow,
    telemetry::log::discard,
    work::{
        failover::{self, FailoverOptions, progress::Silent, report::Report},
        shutdown::Stop,
    },
};
use serde_json::{Value, json};
use support::{
    etcd::{EtcdServer, start_etcd},
    eventually,
    failover::options,
    fake_cluster::{FakeCluster, address},
    fake_console::FakeConsole,
    free_port,
    pgbouncer::{Pgbouncer, settings},
    postgres::{Postgres, connect, start_postgres},
    process::Process,
};
use tokio::{sync::watch, task::JoinSet};

const DATABASES: usize = 50;
const WAITING_CLIENTS: usize = 1_000;
/// Failovers with each number of proxies; the middle one counts.
const ROUNDS: usize = 5;
const HEALTHY_LIMIT: Duration = Duration::from_secs(60);
const HELD_LIMIT_MS: u64 = 3_000;
/// How far beyond linear growth a step may seem to grow on a machine that others use, too. Four times
/// as many proxies in quadratic time would be four times beyond it.
const NOISE: u64 = 2;

/// What a proxy commands.
enum Bouncer {
    Real(Pgbouncer),
    Simulated(FakeConsole),
}

impl Bouncer {
    /// Whether all of its databases are at `host`, and its clients flow.
    async fn serves(&self, host: &str) -> bool {
        match self {
            Self::Simulated(console) => {
                console.databases_at(host) == DATABASES && !console.is_paused()
            }
            Self::Real(pgbouncer) => {
                let Ok(session) = pgbouncer.console().connect().await else { return false };
                let databases = session.databases().await.unwrap_or_default();
                databases.len() == DATABASES
                    && databases.iter().all(|database| database.host.as_deref() == Some(host))
                    && session.flow().await.is_ok_and(|flow| flow == Flow::Active)
            }
        }
    }
}

/// A `pgcm proxy` of its own, and its PgBouncer.
struct Host {
    bouncer: Bouncer,
    _proxy: Process,
    dir: tempfile::TempDir,
}

impl Host {
    /// With a real PgBouncer in front of `postgres`.
    async fn real(etcd: &EtcdServer, postgres: &Postgres) -> Self {
        let port = free_port();
        let extra = "default_pool_size = 1\nmax_client_conn = 2000";
        let mut pgbouncer = Pgbouncer::new(port, "[databases]\napp = host=127.0.0.9\n", extra);
        pgbouncer.start().await;
        let rest = settings(pgbouncer.dir(), port, extra);
        let (socket, file) = (pgbouncer.socket(), pgbouncer.file.clone());
        let dir = tempfile::tempdir().unwrap();
        let proxy = start_proxy(0, etcd, &dir, &databases(postgres.port, &rest), &socket, &file);
        Self { bouncer: Bouncer::Real(pgbouncer), _proxy: proxy, dir }
    }

    fn simulated(number: usize, etcd: &EtcdServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, file) = (dir.path().join("console"), dir.path().join("pgbouncer.ini"));
        let console = FakeConsole::start(&socket, file.clone(), WAITING_CLIENTS);
        let template = databases(5432, "[pgbouncer]\n");
        let proxy = start_proxy(number, etcd, &dir, &template, &socket, &file);
        Self { bouncer: Bouncer::Simulated(console), _proxy: proxy, dir }
    }

    fn port(&self) -> u16 {
        match &self.bouncer {
            Bouncer::Real(pgbouncer) => pgbouncer.port,
            Bouncer::Simulated(_) => panic!("nobody connects to a simulated PgBouncer"),
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// A template with all databases at the primary.
fn databases(port: u16, rest: &str) -> String {
    let mut text = String::from("[databases]\n");
    for number in 0..DATABASES {
        let _ = writeln!(text, "app{number} = host={{{{.Host}}}} port={port} dbname=postgres");
    }
    format!("{text}\n{rest}")
}

fn start_proxy(
    number: usize,
    etcd: &EtcdServer,
    dir: &tempfile::TempDir,
    template_text: &str,
    socket: &Path,
    file: &Path,
) -> Process {
    let [template, config, log] =
        ["template", "config.toml", "log"].map(|name| dir.path().join(name));
    fs::write(&template, template_text).unwrap();
    let text = format!(
        "[node]\nname = \"app{number:03}\"\naddress = \"127.0.0.1\"\n\
         [etcd]\nendpoints = [\"{}\"]\nnamespace = \"/postgres\"\n\
         [pgbouncer]\nadmin-sockets = [{socket:?}]\n\
         [proxy]\ntemplates = [{{ source = {template:?}, target = {file:?} }}]\n\
         [api]\nproxy-listen = \"127.0.0.1:0\"\n[web]\nproxy-listen = \"\"\n",
        etcd.url()
    );
    fs::write(&config, text).unwrap();
    let pgcm = PathBuf::from(env!("CARGO_BIN_EXE_pgcm"));
    let args = ["proxy", "--config-file", config.to_str().unwrap()];
    Process::start(&pgcm, &args, &log, false)
}

/// Clients of the real PgBouncer: there are twenty for each of its server connections, so nearly all
/// of them wait at any time.
struct Clients {
    stop: watch::Sender<bool>,
    running: JoinSet<Result<u64, tokio_postgres::Error>>,
}

impl Clients {
    async fn start(port: u16) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut running = JoinSet::new();
        for number in 0..WAITING_CLIENTS {
            let stopped = stopped.clone();
            let client = connect(port, &format!("app{}", number % DATABASES)).await.unwrap();
            running.spawn(async move {
                let mut answers = 0;
                while !*stopped.borrow() {
                    client.simple_query("SELECT pg_sleep(0.1)").await?;
                    answers += 1;
                }
                Ok(answers)
            });
        }
        Self { stop, running }
    }

    /// Ends them; every query of every client must have been answered.
    async fn stop(mut self) {
        self.stop.send(true).unwrap();
        while let Some(client) = self.running.join_next().await {
            let answers = client.unwrap().expect("no client sees an error");
            assert!(answers > 0, "a client got no answer at all");
        }
    }
}

/// Long limits: a busy machine is no fault here.
fn patient() -> FailoverOptions {
    FailoverOptions {
        health_check_timeout: Duration::from_secs(20),
        lock_lease: Duration::from_secs(10),
        prepare_timeout: Duration::from_secs(5),
        pause_timeout: Duration::from_secs(10),
        pause_expiry: Duration::from_secs(50),
        resume_timeout: Duration::from_secs(10),
        pacemaker_timeout: Duration::from_secs(10),
        verify_timeout: Duration::from_secs(10),
        watch_interval: Duration::from_millis(50),
        ..options("growth")
    }
}

/// Milliseconds of the steps that grow, of the time during which clients wait, and of it all.
#[derive(Debug, Clone, Copy)]
struct Times {
    checks: u64,
    pause: u64,
    follow: u64,
    resume: u64,
    held: u64,
    whole: u64,
}

async fn move_once(etcd: &Arc<Etcd>, cluster: &FakeCluster, hosts: &[Host]) -> Times {
    let registered = async || etcd.get_prefix("/agents/").await.map_or(0, |all| all.entries.len());
    // The simulated cluster has five agents of its own.
    let all = hosts.len() + 5;
    eventually(Duration::from_secs(120), "every proxy follows and is registered", async || {
        serve(cluster, hosts).await && registered().await == all
    })
    .await;
    let report = move_when_healthy(etcd).await;
    assert_eq!(report.exit, Exit::Done, "{report}{}", hosts[0].log());
    assert!(serve(cluster, hosts).await, "some PgBouncer does not serve: {report}");
    times(&report)
}

/// A failover. Proxies that were just started, all at once on a few processors, may have waited too
/// long for etcd; while one says so the failover refuses and touches nothing.
async fn move_when_healthy(etcd: &Arc<Etcd>) -> Report {
    let end = Instant::now() + HEALTHY_LIMIT;
    loop {
        let (_switch, stop) = Stop::new();
        let (etcd, progress) = (etcd.clone(), Arc::new(Silent));
        let report = failover::run(patient(), etcd, None, progress, stop, discard()).await;
        if report.exit != Exit::Refused || Instant::now() > end {
            return report;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Whether every PgBouncer points all its databases at the primary and serves its clients.
async fn serve(cluster: &FakeCluster, hosts: &[Host]) -> bool {
    let primary = address(&cluster.primary());
    for host in hosts {
        if !host.bouncer.serves(primary).await {
            return false;
        }
    }
    true
}

fn times(report: &Report) -> Times {
    let step = |name: &str| {
        let steps = &mut report.steps.iter();
        steps.find(|step| step.step == name).expect("a step of that name").duration_ms
    };
    Times {
        checks: step("checks"),
        pause: step("pause"),
        follow: step("follow"),
        resume: step("resume"),
        held: report.clients_held_ms.expect("clients were held"),
        whole: report.duration_ms,
    }
}

fn median(times: &[Times], of: impl Fn(&Times) -> u64) -> u64 {
    let mut values: Vec<u64> = times.iter().map(of).collect();
    values.sort_unstable();
    values[values.len() / 2]
}

fn sizes() -> Vec<usize> {
    let given = std::env::var("PGCM_PROXIES").unwrap_or_default();
    let sizes: Vec<usize> =
        given.split_whitespace().map(|size| size.parse().expect("a number of proxies")).collect();
    if sizes.is_empty() { vec![10, 40] } else { sizes }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_that_clients_wait_grows_no_worse_than_the_number_of_proxies() {
    let server = start_etcd().await;
    let etcd = server.client();
    let cluster = FakeCluster::start(etcd.clone()).await;
    let postgres = start_postgres().await;
    let mut hosts = vec![Host::real(&server, &postgres).await];
    eventually(Duration::from_secs(20), "the real PgBouncer serves", async || {
        serve(&cluster, &hosts).await
    })
    .await;
    let clients = Clients::start(hosts[0].port()).await;
    let mut grown: Vec<(usize, u64)> = Vec::new();
    let mut rows: Vec<Value> = Vec::new();
    for size in sizes() {
        for number in hosts.len()..size {
            hosts.push(Host::simulated(number, &server));
        }
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            all.push(move_once(&etcd, &cluster, &hosts).await);
        }
        let held = median(&all, |times| times.held);
        rows.push(json!({
            "proxies": size,
            "checks_ms": median(&all, |times| times.checks),
            "pause_ms": median(&all, |times| times.pause),
            "follow_ms": median(&all, |times| times.follow),
            "resume_ms": median(&all, |times| times.resume),
            "held_ms": held,
            "whole_ms": median(&all, |times| times.whole),
        }));
        println!("{size} proxies: {all:?}");
        grown.push((size, held));
    }
    println!("growth: {}", Value::from(rows));
    clients.stop().await;
    judge(&grown);
}

fn judge(grown: &[(usize, u64)]) {
    for pair in grown.windows(2) {
        let [(few, before), (many, after)] = [pair[0], pair[1]];
        let linear = before * u64::try_from(many).unwrap() / u64::try_from(few).unwrap();
        assert!(after <= linear * NOISE, "{few} proxies take {before} ms, {many} take {after} ms");
    }
    let &(size, held) = grown.last().expect("some number of proxies");
    assert!(held < HELD_LIMIT_MS, "{size} proxies take {held} ms");
}
