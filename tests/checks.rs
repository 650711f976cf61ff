//! What a supervise finds in the way of a planned failover: real Postgres, recorded Pacemaker.

mod support;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use nix::sys::signal::Signal;
use pgcm::{
    edge::{
        etcd::{Etcd, Put},
        pacemaker::{Pacemaker, PacemakerOptions},
        postgres::{Postgres, PostgresOptions},
    },
    model::{
        cluster::{ClusterView, Primary, Standby},
        crm_mon::PacemakerView,
        finding::{
            Finding,
            Severity::{self, Refuse, Warn},
        },
        health::Verdict,
        primary::LocalFacts,
    },
    work::{
        checks::{Terms, supervise::SuperviseChecks},
        publish::CLUSTER,
    },
};
use support::{
    etcd::{client, start_etcd},
    eventually,
    postgres::{Postgres as Server, connect, start_postgres, start_postgres_with, start_standby},
    process::{Process, directory, directory_in, postgres_binary},
    stage::{HEALTHY, Scene, World},
};

const LIMIT: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(20);

/// Pacemaker that says `crm_mon`; its facts of Postgres are not used here.
fn scene(crm_mon: &str, constraints: &[&str]) -> Scene {
    Scene(Arc::new(Mutex::new(World {
        crm_mon: (0, crm_mon.to_owned()),
        constraints: constraints.iter().map(|&xml| xml.to_owned()).collect(),
        asked: 0,
        modify_takes: Duration::ZERO,
        calls: Vec::new(),
        facts: LocalFacts {
            in_recovery: true,
            writable: false,
            timeline: 0,
            system_identifier: String::new(),
            standbys: Vec::new(),
        },
    })))
}

/// The checks of the supervise on `node`, whose Postgres is `server`, where no etcd answers.
fn checks(node: &str, server: &Server, scene: Scene) -> SuperviseChecks<Scene> {
    checks_with(client("http://127.0.0.1:1", "/postgres"), node, server, scene)
}

fn checks_with(
    etcd: Arc<Etcd>,
    node: &str,
    server: &Server,
    scene: Scene,
) -> SuperviseChecks<Scene> {
    checks_as("postgres", etcd, node, server, scene)
}

/// The same, where supervise logs in to Postgres as `user`.
fn checks_as(
    user: &str,
    etcd: Arc<Etcd>,
    node: &str,
    server: &Server,
    scene: Scene,
) -> SuperviseChecks<Scene> {
    let options = PacemakerOptions { resource: "Postgresql".to_owned(), limit: LIMIT };
    let postgres = Postgres::new(PostgresOptions {
        socket_dir: server.socket_dir().to_owned(),
        port: server.port,
        user: user.to_owned(),
        database: "postgres".to_owned(),
        query_timeout: LIMIT,
    });
    let pacemaker = Arc::new(Pacemaker::new(scene, options));
    SuperviseChecks::new(node.to_owned(), pacemaker, Arc::new(postgres), etcd, Vec::new())
}

fn terms(target: &str) -> Terms {
    Terms {
        pause_timeout: Duration::from_secs(1),
        pause_expiry: Duration::from_secs(25),
        target: Some(target.to_owned()),
    }
}

/// The finding of `check`, with its severity and a word that names the remedy.
fn told(findings: &[Finding], check: &str, severity: Severity, words: &str) -> bool {
    findings.iter().any(|finding| {
        (finding.check.as_str(), finding.severity) == (check, severity)
            && finding.message.contains(words)
    })
}

async fn finds(checks: &SuperviseChecks<Scene>, check: &str, severity: Severity, words: &str) {
    let what = format!("{check} {severity:?} {words}");
    eventually(SOON, &what, || async {
        told(&checks.findings(&terms("pg02")).await, check, severity, words)
    })
    .await;
}

#[tokio::test]
async fn what_would_make_the_shutdown_long_is_named_with_its_remedy() {
    let settings = [
        "wal_level=logical",
        "max_prepared_transactions=5",
        "archive_mode=on",
        "archive_command=false",
    ];
    let server = start_postgres_with(directory(), &settings).await;
    let checks = checks("pg01", &server, scene(HEALTHY, &[]));
    let quiet = checks.findings(&terms("pg02")).await;
    for check in ["prepared-transactions", "archive", "logical-replication", "walsenders"] {
        assert!(!quiet.iter().any(|finding| finding.check == check), "{check}: {quiet:?}");
    }
    let sql = connect(server.port, "postgres").await.expect("connected");
    let prepare = "BEGIN; CREATE TABLE t (n int, words text); PREPARE TRANSACTION 'order-17'";
    sql.batch_execute(prepare).await.expect("prepared");
    finds(&checks, "prepared-transactions", Warn, "order-17; commit them or roll them back").await;
    sql.batch_execute("COMMIT PREPARED 'order-17'").await.expect("committed");
    sql.batch_execute("SELECT pg_switch_wal()").await.expect("switched");
    finds(&checks, "archive", Refuse, "archive_command fails on 0000").await;

    let port = server.port.to_string();
    let dir = directory();
    let log = dir.path().join("log");
    let receive = |program: &str, args: &[&str]| {
        let common = ["-h", "127.0.0.1", "-p", port.as_str(), "-U", "postgres"];
        Process::start(&postgres_binary(program), &[&common, args].concat(), &log, true)
    };
    let into = dir.path().to_str().expect("UTF-8");
    let _archive = receive("pg_receivewal", &["-D", into]);
    finds(&checks, "walsenders", Warn, "\"pg_receivewal\" (PID ").await;
    let slot = ["-d", "postgres", "-S", "feed"];
    let create = [&slot[..], &["--create-slot", "-P", "test_decoding"]].concat();
    receive("pg_recvlogical", &create).finish("pg_recvlogical");
    let sink = dir.path().join("feed");
    let start = [&slot[..], &["--start", "-f", sink.to_str().expect("UTF-8")]].concat();
    let feed = receive("pg_recvlogical", &start);
    finds(&checks, "logical-replication", Warn, "SELECT pg_terminate_backend(").await;
    // A subscriber that hangs would hold the shutdown for ever.
    feed.signal(Signal::SIGSTOP);
    let fill = "INSERT INTO t SELECT n, repeat(md5(n::text), 40) FROM generate_series(1, 20000) n";
    sql.batch_execute(fill).await.expect("inserted");
    finds(&checks, "logical-replication", Refuse, "MB behind; wait until it has caught up").await;
}

#[tokio::test]
async fn an_archive_that_does_not_keep_up_warns_at_first_and_then_refuses() {
    let settings = ["archive_mode=on", "archive_command=sleep 60"];
    let server = start_postgres_with(directory(), &settings).await;
    let checks = checks("pg01", &server, scene(HEALTHY, &[]));
    let sql = connect(server.port, "postgres").await.expect("connected");
    let fill = async |segments: usize| {
        for _ in 0..segments {
            // A segment to which nothing was written is not switched.
            sql.batch_execute("SELECT pg_logical_emit_message(false, '', '')").await.expect("sent");
            sql.batch_execute("SELECT pg_switch_wal()").await.expect("switched");
        }
    };
    for (more, severity, words) in [
        (2, Warn, "2 WAL segments wait for the archive, and a shutdown waits for them; see that"),
        (18, Warn, "20 WAL segments wait for the archive"),
        (
            1,
            Refuse,
            "21 WAL segments wait for the archive, and a shutdown waits for them; wait until",
        ),
    ] {
        fill(more).await;
        let found = checks.findings(&terms("pg02")).await;
        assert!(told(&found, "archive", severity, words), "{words}: {found:?}");
    }
}

#[tokio::test]
async fn a_transaction_older_than_the_pause_may_last_refuses_by_pid_user_and_query() {
    let server = start_postgres().await;
    let checks = checks("pg01", &server, scene(HEALTHY, &[]));
    let sql = connect(server.port, "postgres").await.expect("connected");
    sql.batch_execute("BEGIN; CREATE TABLE t (n int)").await.expect("begun");
    finds(&checks, "open-transactions", Refuse, "(postgres on postgres, ").await;
    finds(&checks, "open-transactions", Refuse, "CREATE TABLE t (n int); end them").await;
    sql.batch_execute("COMMIT").await.expect("committed");
    let found = checks.findings(&terms("pg02")).await;
    assert!(!found.iter().any(|finding| finding.check == "open-transactions"), "{found:?}");
}

#[tokio::test]
async fn a_standby_that_would_be_promoted_slowly_refuses_where_the_primary_moves_to() {
    let primary = start_postgres().await;
    let sql = connect(primary.port, "postgres").await.expect("connected");
    let standby = start_standby(&primary, "pg02").await;
    sql.batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'pg02'").await.expect("set");
    sql.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
    let on_primary = checks("pg01", &primary, scene(HEALTHY, &[]));
    let on_standby = checks("pg02", &standby, scene(HEALTHY, &[]));
    eventually(SOON, "the standby is synchronous, and nothing is found", || async {
        let found = on_primary.findings(&terms("pg02")).await;
        !found.iter().any(|finding| ["target", "lag"].contains(&finding.check.as_str()))
    })
    .await;
    let found = on_standby.findings(&terms("pg02")).await;
    assert!(!found.iter().any(|finding| finding.check == "delay"), "{found:?}");

    let there = connect(standby.port, "postgres").await.expect("connected");
    there.batch_execute("SELECT pg_wal_replay_pause()").await.expect("paused");
    let remedy = "replay is paused on pg02; run there: SELECT pg_wal_replay_resume()";
    finds(&on_standby, "delay", Refuse, remedy).await;
    let found = on_standby.findings(&terms("pg03")).await;
    assert!(told(&found, "delay", Warn, remedy), "elsewhere it is worth a word: {found:?}");
    sql.batch_execute("CREATE TABLE t (n int, words text)").await.expect("made");
    let fill = "INSERT INTO t SELECT n, repeat(md5(n::text), 40) FROM generate_series(1, 60000) n";
    sql.batch_execute(fill).await.expect("inserted");
    finds(&on_primary, "lag", Refuse, "wait until it has caught up").await;
    there.batch_execute("SELECT pg_wal_replay_resume()").await.expect("resumed");
    let delay = "ALTER SYSTEM SET recovery_min_apply_delay = '5min'";
    there.batch_execute(delay).await.expect("set");
    there.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
    finds(&on_standby, "delay", Refuse, "applies WAL 300s late").await;
}

#[tokio::test]
async fn a_slot_that_does_not_survive_is_told_and_a_copy_counts_once_it_is_whole() {
    let primary = start_postgres_with(directory(), &["wal_level=logical"]).await;
    let sql = connect(primary.port, "postgres").await.expect("connected");
    sql.batch_execute("SELECT pg_create_physical_replication_slot('pg02')").await.expect("made");
    // The standby gets them with its copy of the data directory.
    for setting in ["wal_level = logical", "primary_slot_name = pg02", "hot_standby_feedback = on"]
    {
        sql.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.expect("set");
    }
    let standby = start_standby(&primary, "pg02").await;
    let there = connect(standby.port, "postgres").await.expect("connected");
    let source = format!("host=127.0.0.1 port={} user=postgres dbname=postgres", primary.port);
    let follow = format!("ALTER SYSTEM SET primary_conninfo = '{source}'");
    there.batch_execute(&follow).await.expect("set");
    there.batch_execute("SELECT pg_reload_conf()").await.expect("reloaded");
    let on_primary = checks("pg01", &primary, scene(HEALTHY, &[]));
    let on_standby = checks("pg02", &standby, scene(HEALTHY, &[]));
    let make =
        "SELECT pg_create_logical_replication_slot('cdc', 'test_decoding', failover => true)";
    sql.batch_execute(make).await.expect("made");
    let found = on_primary.findings(&terms("pg02")).await;
    assert!(!found.iter().any(|finding| finding.check == "logical-slots"), "{found:?}");
    assert_eq!(on_primary.failover_slots().await, ["cdc"]);
    assert!(on_standby.failover_slots().await.is_empty());
    // A copy is whole once a consumer has moved the slot beyond what the standby reserved.
    eventually(SOON, "the standby has a whole copy", || async {
        sql.batch_execute("SELECT pg_log_standby_snapshot()").await.expect("logged");
        let advance = "SELECT pg_replication_slot_advance('cdc', pg_current_wal_lsn())";
        sql.batch_execute(advance).await.expect("moved");
        let _ = there.batch_execute("SELECT pg_sync_replication_slots()").await;
        on_standby.failover_slots().await == ["cdc"]
    })
    .await;
    let make = "SELECT pg_create_logical_replication_slot('feed', 'test_decoding')";
    sql.batch_execute(make).await.expect("made");
    finds(&on_primary, "logical-slots", Refuse, "the logical slots feed: their subscribers").await;
    assert_eq!(on_primary.failover_slots().await, ["cdc"]);
    // One that nobody can come back for is not told.
    let make = "SELECT pg_create_logical_replication_slot('brief', 'test_decoding', true)";
    sql.batch_execute(make).await.expect("made");
    let found = on_primary.findings(&terms("pg02")).await;
    assert!(!found.iter().any(|finding| finding.message.contains("brief")), "{found:?}");
}

#[tokio::test]
async fn a_file_system_that_is_nearly_full_refuses_on_the_primary_and_where_it_moves_to() {
    // 256 MB in the container that tests run in, and a cluster needs some of that.
    let server = start_postgres_with(directory_in(Path::new("/dev/shm")), &[]).await;
    let words = "MB are free at /dev/shm/";
    // The terms name pg02.
    for node in ["pg01", "pg02"] {
        let checks = checks(node, &server, scene(HEALTHY, &[]));
        finds(&checks, "disk-space", Refuse, words).await;
    }
    let elsewhere = checks("pg03", &server, scene(HEALTHY, &[]));
    finds(&elsewhere, "disk-space", Warn, words).await;
}

async fn publish(etcd: &Etcd, primary: &str, standbys: Vec<Standby>) {
    let address = "127.0.0.1".parse().expect("an address");
    let view = ClusterView {
        primary: Primary { name: primary.to_owned(), address, timeline: 1 },
        standbys,
        offline: Vec::new(),
        quorum: true,
        system_identifier: "7".to_owned(),
        observed_at: String::new(),
    };
    let value = serde_json::to_string(&view).expect("JSON");
    let put = Put { key: CLUSTER.to_owned(), value, lease: 0 };
    etcd.put_if(&[], &[put]).await.expect("etcd takes it");
}

#[tokio::test]
async fn another_primary_than_the_published_one_refuses() {
    let server = start_postgres().await;
    let process = start_etcd().await;
    let etcd = process.client();
    for node in ["pg01", "pg02"] {
        let checks = checks_with(etcd.clone(), node, &server, scene(HEALTHY, &[]));
        publish(&etcd, "pg03", Vec::new()).await;
        let found = checks.findings(&terms("pg02")).await;
        let words = "Pacemaker has promoted pg01, but pg03 is published";
        assert!(told(&found, "primary-disagreement", Refuse, words), "{node}: {found:?}");
        publish(&etcd, "pg01", Vec::new()).await;
        let found = checks.findings(&terms("pg02")).await;
        assert!(!found.iter().any(|one| one.check == "primary-disagreement"), "{node}: {found:?}");
    }
}

#[tokio::test]
async fn without_a_named_target_it_is_the_synchronous_standby_or_whoever_cannot_tell() {
    // Too small a file system, as above: it refuses at the target, and warns elsewhere.
    let server = start_postgres_with(directory_in(Path::new("/dev/shm")), &[]).await;
    let process = start_etcd().await;
    let etcd = process.client();
    let standby = |name: &str, sync_state: &str| Standby {
        name: name.to_owned(),
        address: None,
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        replay_lag_bytes: 0,
    };
    publish(&etcd, "pg01", vec![standby("pg02", "potential"), standby("pg03", "sync")]).await;
    let nobody = client("http://127.0.0.1:1", "/postgres");
    for (etcd, node, severity) in
        [(&etcd, "pg03", Refuse), (&etcd, "pg02", Warn), (&nobody, "pg02", Refuse)]
    {
        let checks = checks_with(etcd.clone(), node, &server, scene(HEALTHY, &[]));
        let open = Terms { target: None, ..terms("") };
        let found = checks.findings(&open).await;
        assert!(told(&found, "disk-space", severity, "MB are free at"), "{node}: {found:?}");
    }
}

#[tokio::test]
async fn what_pacemaker_would_not_do_is_named_with_its_remedy() {
    let server = start_postgres().await;
    let maintenance = include_str!("data/crm_mon/maintenance/pgcm-trixie.xml");
    let failed = include_str!("data/crm_mon/failed-actions/pgcm-trixie.xml");
    let in_standby = include_str!("data/crm_mon/node-in-standby/pgcm-trixie.xml");
    let unfenced = HEALTHY.replace("stonith-enabled=\"true\"", "stonith-enabled=\"false\"");
    let no_device = HEALTHY.replace("\"stonith:", "\"ocf:");
    let failed_fencing = include_str!("data/crm_mon/standby-lost/pgcm-trixie.xml")
        .replace("\"success\"", "\"failed\"");
    let left_alone = HEALTHY.replace("managed=\"true\"", "managed=\"false\"");
    let ban = "<rsc_location id=\"cli-ban-msPostgresql-on-pg02\" rsc=\"msPostgresql\"/>";
    let tie = "<rsc_colocation id=\"tie\" rsc=\"vip\" with-rsc=\"msPostgresql\" \
               with-rsc-role=\"Promoted\" score=\"INFINITY\"/>";
    for (crm_mon, constraint, check, severity, words) in [
        (maintenance, "", "maintenance", Refuse, "--name maintenance-mode --delete"),
        (&left_alone, "", "maintenance", Refuse, "run: crm resource manage Postgresql"),
        (failed, "", "fail-count", Warn, "run: crm_resource --cleanup --node"),
        (in_standby, "", "nodes", Warn, "is in standby mode"),
        (&unfenced, "", "fencing", Warn, "a lost node may go on taking writes"),
        (&no_device, "", "fencing", Warn, "no fencing device is started"),
        (&failed_fencing, "", "fencing", Warn, "run: stonith_admin --cleanup --history pg03"),
        (HEALTHY, ban, "constraints", Refuse, "@id='cli-ban-msPostgresql-on-pg02'"),
        (HEALTHY, tie, "constraints", Warn, "tie allows a primary only where vip can run"),
    ] {
        let view = PacemakerView::parse(crm_mon, "Postgresql").expect("recorded");
        let primary = view.promoted().first().map(|&node| node.to_owned()).expect("one");
        let checks = checks(&primary, &server, scene(crm_mon, &[constraint]));
        let found = checks.findings(&terms("pg02")).await;
        assert!(told(&found, check, severity, words), "{check}: {found:?}");
        let quiet = self::checks("pg01", &server, scene(HEALTHY, &[]));
        let quiet = quiet.findings(&terms("pg02")).await;
        assert!(!quiet.iter().any(|finding| finding.check == check), "{check}: {quiet:?}");
    }
}

#[tokio::test]
async fn what_pins_the_primary_is_in_the_health_of_the_dcs_supervise_alone() {
    let server = start_postgres().await;
    let ban = "<rsc_location id=\"cli-ban-msPostgresql-on-pg02\" rsc=\"msPostgresql\"/>";
    let expired = "<rsc_location id=\"cli-prefer-msPostgresql\" rsc=\"msPostgresql\"><rule id=\"r\">\
                   <date_expression id=\"d\" operation=\"lt\" end=\"2001-01-01T00:00:00Z\"/></rule></rsc_location>";
    let constraints = async |node: &str, text: &str| {
        let health = checks(node, &server, scene(HEALTHY, &[text])).health().await;
        let found = health.components.into_iter().find(|one| one.name == "constraints")?;
        Some((found.verdict, found.message))
    };
    let (verdict, message) = constraints("pg01", ban).await.expect("it is the DC");
    assert_eq!(verdict, Verdict::Degraded);
    assert!(message.contains("@id='cli-ban-msPostgresql-on-pg02'"), "{message}");
    for harmless in ["", expired] {
        let (verdict, message) = constraints("pg01", harmless).await.expect("it is the DC");
        assert_eq!(verdict, Verdict::Healthy, "{message}");
    }
    assert_eq!(constraints("pg02", ban).await, None);
}

#[tokio::test]
async fn a_cluster_without_one_primary_or_without_quorum_refuses() {
    let server = start_postgres().await;
    let cut_off = include_str!("data/crm_mon/no-quorum-minority/pgcm-trixie.xml");
    let nobody = HEALTHY.replace("role=\"Promoted\"", "role=\"Unpromoted\"");
    let two = HEALTHY.replace("role=\"Unpromoted\"", "role=\"Promoted\"");
    for (node, crm_mon, check, words) in [
        ("pg02", cut_off, "quorum", "bring back enough nodes"),
        ("pg01", &nobody, "primary", "no node is promoted; look at: crm_mon"),
        ("pg01", &two, "primary", "are promoted at once; stop all but one of them"),
    ] {
        let checks = checks(node, &server, scene(crm_mon, &[]));
        let found = checks.findings(&terms("pg02")).await;
        assert!(told(&found, check, Refuse, words), "{check}: {found:?}");
    }
    let away = scene(include_str!("data/crm_mon/pacemaker-stopped/pgsql-trixie.xml"), &[]);
    away.set(|world| world.crm_mon.0 = 102);
    let found = checks("pg01", &server, away).findings(&terms("pg02")).await;
    assert!(told(&found, "pacemaker", Refuse, "look there at: crm_mon"), "{found:?}");
}

#[tokio::test]
async fn a_postgres_that_does_not_answer_refuses_on_the_primary_and_is_told_elsewhere() {
    let server = start_postgres().await;
    server.signal(Signal::SIGSTOP);
    for (node, severity) in [("pg01", Refuse), ("pg02", Warn)] {
        let checks = checks(node, &server, scene(HEALTHY, &[]));
        let found = checks.findings(&terms("pg03")).await;
        let words = "look at the log of Postgres there";
        assert!(told(&found, "postgres", severity, words), "{node}: {found:?}");
    }
    server.signal(Signal::SIGCONT);
}

#[tokio::test]
async fn a_postgres_that_answers_by_half_refuses_where_the_primary_is_or_goes() {
    let server = start_postgres().await;
    let session = connect(server.port, "postgres").await.unwrap();
    // Whoever is no superuser may not ask for `data_directory`.
    session.simple_query("CREATE ROLE plain LOGIN").await.unwrap();
    for (node, target, severity) in
        [("pg01", "pg03", Refuse), ("pg02", "pg03", Warn), ("pg02", "pg02", Refuse)]
    {
        let nobody = client("http://127.0.0.1:1", "/postgres");
        let checks = checks_as("plain", nobody, node, &server, scene(HEALTHY, &[]));
        let found = checks.findings(&terms(target)).await;
        assert!(told(&found, "postgres", severity, "data_directory"), "{node}: {found:?}");
        let refused = found.iter().any(|f| f.check == "postgres" && f.severity == Refuse);
        assert_eq!(refused, severity == Refuse, "{node}: {found:?}");
    }
}
