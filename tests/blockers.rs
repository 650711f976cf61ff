//! Terminating what holds up a pause: real Postgres, real PgBouncer.

mod support;

use std::time::Duration;

use pgcm::{
    edge::postgres::{Postgres, PostgresOptions},
    model::{console::Backend, pause::Claim},
    telemetry::log::discard,
    work::{
        fence::SharedGate,
        pauser::{Pauser, PauserOptions},
    },
};
use support::{
    eventually, free_port,
    pgbouncer::start_pgbouncer,
    postgres::{Postgres as Server, connect, start_postgres, value},
};

const LIMIT: Duration = Duration::from_secs(5);
const AT_ONCE: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(60);

fn postgres(server: &Server) -> Postgres {
    Postgres::new(PostgresOptions {
        socket_dir: server.socket_dir().to_owned(),
        port: server.port,
        user: "postgres".to_owned(),
        database: "postgres".to_owned(),
        query_timeout: LIMIT,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_holds_up_the_pause_is_terminated_and_nothing_else() {
    let server = start_postgres().await;
    let pgbouncer = start_pgbouncer(free_port(), server.port, "").await;
    let options = PauserOptions {
        consoles: vec![pgbouncer.console()],
        resume_limit: LIMIT,
        adopt_ceiling: LIMIT,
    };
    let pauser = Pauser::new(options, SharedGate::default(), discard());
    let pooled = connect(pgbouncer.port, "app").await.expect("connected");
    pooled.batch_execute("BEGIN; CREATE TABLE t (n int)").await.expect("begun");
    let pid = value(&pooled, "SELECT pg_backend_pid()").await;
    // Beside the pooler, as open, and no trouble to the pause.
    let direct = connect(server.port, "postgres").await.expect("connected");
    direct.batch_execute("BEGIN; CREATE TABLE u (n int)").await.expect("begun");

    let claim = Claim { attempt: "a".to_owned(), token: 1 };
    let pausing = tokio::spawn({
        let (pauser, claim) = (pauser.clone(), claim.clone());
        async move { pauser.pause(&claim, LONG / 2, LONG).await }
    });
    let found = || async { !pauser.blockers().await.is_empty() };
    eventually(LIMIT, "PgBouncer names its connection", found).await;
    let backends: Vec<Backend> =
        pauser.blockers().await.iter().filter_map(|blocker| blocker.backend()).collect();
    assert_eq!(backends.len(), 1, "{backends:?}");
    // The same PID on another machine is another process.
    let elsewhere = Backend { port: backends[0].port ^ 1, ..backends[0] };
    let asked = postgres(&server);
    assert_eq!(asked.terminate(&[elsewhere], AT_ONCE).await.expect("an answer"), []);
    // It may end by itself yet.
    assert_eq!(asked.terminate(&backends, LONG).await.expect("an answer"), []);
    let ended = asked.terminate(&backends, AT_ONCE).await.expect("an answer");
    let [ended] = &ended[..] else { panic!("{ended:?}") };
    assert_eq!((ended.pid.to_string(), ended.state.as_str()), (pid, "idle in transaction"));
    assert_eq!(pausing.await.expect("no panic").expect("the way is clear"), 1);
    pauser.resume(&claim).await.expect("resumed");
    direct.batch_execute("COMMIT").await.expect("it was left alone");
    assert_eq!(asked.terminate(&backends, AT_ONCE).await.expect("an answer"), [], "gone by now");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_waits_for_a_standby_is_left_alone() {
    let server = start_postgres().await;
    let admin = connect(server.port, "postgres").await.expect("connected");
    admin.batch_execute("CREATE TABLE t (n int)").await.expect("made");
    admin
        .batch_execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        .await
        .expect("set");
    value(&admin, "SELECT pg_reload_conf()").await;
    let client = connect(server.port, "postgres").await.expect("connected");
    let pid: u32 = value(&client, "SELECT pg_backend_pid()").await.parse().expect("a PID");
    let address = format!("SELECT client_port FROM pg_stat_activity WHERE pid = {pid}");
    let port: u16 = value(&admin, &address).await.parse().expect("a port");
    let waits = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'"
    );
    let admin = &admin;
    let is_waiting = || async { value(admin, &waits).await == "1" };
    eventually(LIMIT, "the standby's name is known", || async {
        value(admin, "SHOW synchronous_standby_names").await == "nobody"
    })
    .await;
    let committing =
        tokio::spawn(async move { client.batch_execute("INSERT INTO t VALUES (1)").await });
    eventually(LIMIT, "the commit waits", is_waiting).await;
    let backend = Backend { pid, port };
    assert_eq!(postgres(&server).terminate(&[backend], AT_ONCE).await.expect("an answer"), []);
    assert!(is_waiting().await, "it waits on");
    let free = "SET synchronous_commit = local; ALTER SYSTEM RESET synchronous_standby_names";
    for statement in free.split("; ") {
        admin.batch_execute(statement).await.expect("set");
    }
    value(admin, "SELECT pg_reload_conf()").await;
    committing.await.expect("no panic").expect("committed, and told so");
}
