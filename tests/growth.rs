//! How the steps during which clients wait grow with the number of proxies.
//!
//! The proxies are real processes and so is etcd; PgBouncer's consoles and the Postgres nodes are
//! simulated. PGCM_PROXIES in the environment names other numbers of proxies (`make bench`).
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{fmt::Write as _, fs, path::PathBuf, sync::Arc, time::Duration};

use pgcm::{
    edge::etcd::Etcd,
    exit::Exit,
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
    fake_cluster::{FakeCluster, address},
    fake_console::FakeConsole,
    process::Process,
};

const DATABASES: usize = 50;
const WAITING_CLIENTS: usize = 1_000;
/// Failovers with each number of proxies; the middle one counts.
const ROUNDS: usize = 5;
const TOGETHER_LIMIT_MS: u64 = 3_000;
/// How far beyond linear growth a step may seem to grow on a machine that others use, too. Four times
/// as many proxies in quadratic time would be four times beyond it.
const NOISE: u64 = 2;

/// A `pgcm proxy` of its own, and the PgBouncer that it thinks it has.
struct Host {
    console: FakeConsole,
    _proxy: Process,
    dir: tempfile::TempDir,
}

impl Host {
    fn start(number: usize, etcd: &EtcdServer) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let [socket, template, file, config, log] =
            ["console", "template", "pgbouncer.ini", "config.toml", "log"]
                .map(|name| dir.path().join(name));
        let mut databases = String::from("[databases]\n");
        for database in 0..DATABASES {
            let _ = writeln!(databases, "app{database} = host={{{{.Host}}}} port=5432");
        }
        fs::write(&template, format!("{databases}\n[pgbouncer]\n")).unwrap();
        let text = format!(
            "[node]\nname = \"app{number:03}\"\naddress = \"127.0.0.1\"\n\
             [etcd]\nendpoints = [\"{}\"]\nnamespace = \"/postgres\"\n\
             [pgbouncer]\nadmin-sockets = [{socket:?}]\n\
             [proxy]\ntemplates = [{{ source = {template:?}, target = {file:?} }}]\n\
             [api]\nproxy-listen = \"127.0.0.1:0\"\n[web]\nproxy-listen = \"\"\n",
            etcd.url()
        );
        fs::write(&config, text).unwrap();
        let console = FakeConsole::start(&socket, file, WAITING_CLIENTS);
        let pgcm = PathBuf::from(env!("CARGO_BIN_EXE_pgcm"));
        let args = ["proxy", "--config-file", config.to_str().unwrap()];
        let proxy = Process::start(&pgcm, &args, &log, false);
        Self { console, _proxy: proxy, dir }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

fn options() -> FailoverOptions {
    FailoverOptions {
        holder: "growth".to_owned(),
        endpoints: Vec::new(),
        target: None,
        dry_run: false,
        overrides: Vec::new(),
        expected_agents: Vec::new(),
        attempts: 1,
        attempt_backoff: Duration::from_millis(100),
        terminate_after: None,
        health_check_timeout: Duration::from_secs(20),
        lock_timeout: Duration::ZERO,
        lock_lease: Duration::from_secs(10),
        prepare_timeout: Duration::from_secs(5),
        pause_timeout: Duration::from_secs(10),
        pause_expiry: Duration::from_secs(50),
        resume_timeout: Duration::from_secs(10),
        pacemaker_timeout: Duration::from_secs(10),
        verify_timeout: Duration::from_secs(10),
        watch_interval: Duration::from_millis(50),
        constraint_lifetime: Duration::from_secs(60),
    }
}

/// Milliseconds of the steps during which clients wait.
#[derive(Debug, Clone, Copy)]
struct Times {
    pause: u64,
    follow: u64,
    resume: u64,
    together: u64,
}

async fn move_once(etcd: &Arc<Etcd>, cluster: &FakeCluster, hosts: &[Host]) -> Times {
    let registered = async || etcd.get_prefix("/agents/").await.map_or(0, |all| all.entries.len());
    // The simulated cluster has five agents of its own.
    let all = hosts.len() + 5;
    eventually(Duration::from_secs(120), "every proxy follows and is registered", async || {
        follow(cluster, hosts) && registered().await == all
    })
    .await;
    let (_switch, stop) = Stop::new();
    let report =
        failover::run(options(), etcd.clone(), None, Arc::new(Silent), stop, discard()).await;
    assert_eq!(report.exit, Exit::Done, "{report}{}", hosts[0].log());
    assert!(follow(cluster, hosts), "some PgBouncer does not follow: {report}");
    assert!(!hosts.iter().any(|host| host.console.is_paused()), "some PgBouncer holds: {report}");
    times(&report)
}

/// Whether every PgBouncer points all its databases at the primary.
fn follow(cluster: &FakeCluster, hosts: &[Host]) -> bool {
    let primary = address(&cluster.primary());
    hosts.iter().all(|host| host.console.databases_at(primary) == DATABASES)
}

fn times(report: &Report) -> Times {
    let step = |name: &str| {
        let steps = &mut report.steps.iter();
        steps.find(|step| step.step == name).expect("a step of that name").duration_ms
    };
    Times {
        pause: step("pause"),
        follow: step("follow"),
        resume: step("resume"),
        together: report.clients_held_ms.expect("clients were held"),
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
    let mut hosts = Vec::new();
    let mut grown: Vec<(usize, u64)> = Vec::new();
    let mut rows: Vec<Value> = Vec::new();
    for size in sizes() {
        for number in hosts.len()..size {
            hosts.push(Host::start(number, &server));
        }
        let mut all = Vec::new();
        for _ in 0..ROUNDS {
            all.push(move_once(&etcd, &cluster, &hosts).await);
        }
        let together = median(&all, |times| times.together);
        rows.push(json!({
            "proxies": size,
            "pause_ms": median(&all, |times| times.pause),
            "follow_ms": median(&all, |times| times.follow),
            "resume_ms": median(&all, |times| times.resume),
            "total_ms": together,
        }));
        println!("{size} proxies: {all:?}");
        grown.push((size, together));
    }
    println!("growth: {}", Value::from(rows));
    for pair in grown.windows(2) {
        let [(few, before), (many, after)] = [pair[0], pair[1]];
        let linear = before * u64::try_from(many).unwrap() / u64::try_from(few).unwrap();
        assert!(after <= linear * NOISE, "{few} proxies take {before} ms, {many} take {after} ms");
    }
    let (size, together) = grown.pop().expect("some number of proxies");
    assert!(together < TOGETHER_LIMIT_MS, "{size} proxies take {together} ms");
}
