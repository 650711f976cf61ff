//! What supervise asks Postgres, against a real one.

mod support;

use std::time::Duration;

use pgcm::{
    edge::postgres::{LocalPostgres, Postgres, PostgresError, PostgresOptions},
    error::chain,
};
use support::{
    eventually,
    postgres::{Postgres as Server, connect, start_postgres, value},
};

const LIMIT: Duration = Duration::from_secs(5);

fn postgres(server: &Server, query_timeout: Duration) -> Postgres {
    Postgres::new(PostgresOptions {
        socket_dir: server.socket_dir().to_owned(),
        port: server.port,
        user: "postgres".to_owned(),
        database: "postgres".to_owned(),
        query_timeout,
    })
}

#[tokio::test]
async fn a_primary_states_timeline_identity_and_that_it_takes_writes() {
    let server = start_postgres().await;
    let client = connect(server.port, "postgres").await.expect("connected");
    let facts = postgres(&server, LIMIT).facts().await.expect("facts");
    assert!(!facts.in_recovery && facts.writable && facts.standbys.is_empty(), "{facts:?}");
    assert_eq!(facts.timeline, 1);
    let identity = value(&client, "SELECT system_identifier FROM pg_control_system()").await;
    assert_eq!(facts.system_identifier, identity);
}

#[tokio::test]
async fn a_read_only_primary_takes_no_writes() {
    let server = start_postgres().await;
    let client = connect(server.port, "postgres").await.expect("connected");
    client.batch_execute("ALTER SYSTEM SET default_transaction_read_only = on").await.expect("set");
    value(&client, "SELECT pg_reload_conf()").await;
    let (server, client) = (&server, &client);
    eventually(LIMIT, "the setting holds", || async move {
        // Each connection of its own: a session that is open has read it already.
        let _ = client;
        !postgres(server, LIMIT).facts().await.expect("facts").writable
    })
    .await;
}

#[tokio::test]
async fn an_open_transaction_is_found_with_its_pid() {
    let server = start_postgres().await;
    let client = connect(server.port, "postgres").await.expect("connected");
    let pid = value(&client, "SELECT pg_backend_pid()").await;
    client.batch_execute("BEGIN; CREATE TABLE t (\n  n int)").await.expect("begun");
    let asked = postgres(&server, LIMIT);
    let old = asked.open_transactions(Duration::from_secs(60)).await.expect("a list");
    assert_eq!(old, []);
    let open = asked.open_transactions(Duration::ZERO).await.expect("a list");
    let [open] = &open[..] else { panic!("{open:?}") };
    assert_eq!((open.pid.to_string(), open.state.as_str()), (pid, "idle in transaction"));
    assert_eq!(open.query, "BEGIN; CREATE TABLE t ( n int)");
}

#[tokio::test]
async fn nothing_burdens_an_idle_primary_and_a_checkpoint_ends() {
    let server = start_postgres().await;
    let asked = postgres(&server, LIMIT);
    let burdens = asked.burdens().await.expect("burdens");
    assert_eq!(burdens.prepared_transactions, [] as [String; 0]);
    assert_eq!((burdens.unarchived_segments, burdens.archive_failing), (None, None));
    assert_eq!(asked.walsenders().await.expect("a list"), []);
    assert_eq!(asked.delays().await.expect("delays"), Default::default());
    assert!(asked.checkpoint(LIMIT).await.expect("done") < LIMIT);
    let error = asked.checkpoint(Duration::ZERO).await.expect_err("no time at all");
    assert!(matches!(error, PostgresError::TimedOut { .. }), "{error}");
}

#[tokio::test]
async fn a_connection_that_was_cut_is_not_used_again() {
    let server = start_postgres().await;
    let client = connect(server.port, "postgres").await.expect("connected");
    let asked = postgres(&server, LIMIT);
    asked.facts().await.expect("facts");
    let others = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                  WHERE application_name = 'pgcm supervise'";
    assert_eq!(value(&client, others).await, "1");
    let asked = &asked;
    eventually(LIMIT, "it connects again", || async move { asked.facts().await.is_ok() }).await;
}

#[tokio::test]
async fn a_postgres_that_is_away_is_named_by_its_socket() {
    let dir = tempfile::tempdir().expect("a directory");
    let asked = Postgres::new(PostgresOptions {
        socket_dir: dir.path().to_owned(),
        port: 5432,
        user: "postgres".to_owned(),
        database: "postgres".to_owned(),
        query_timeout: LIMIT,
    });
    let error = asked.facts().await.expect_err("nobody listens");
    assert!(chain(&error).to_string().contains("/.s.PGSQL.5432"), "{}", chain(&error));
}
