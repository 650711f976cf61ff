//! What a RELOAD of a real PgBouncer brings about, and how it shows.

mod support;

use std::{fs, time::Duration};

use pgcm::{
    model::pgbouncer_ini,
    work::reload::{File, Process, ReloadError, follow},
};
use support::{
    eventually, free_port,
    pgbouncer::{Pgbouncer, start_pgbouncer},
    postgres::{connect, start_postgres},
};
use tokio_postgres::{Client, Config, NoTls, Statement};

const SECOND: Duration = Duration::from_secs(1);

fn file(pgbouncer: &Pgbouncer) -> File {
    let text = fs::read_to_string(&pgbouncer.file).expect("readable");
    let databases = pgbouncer_ini::parse(&text).expect("an ini file");
    File { path: pgbouncer.file.clone(), databases, text }
}

/// Replaces `old` in PgBouncer's file by `new`, and makes it follow.
async fn change(
    pgbouncer: &Pgbouncer,
    processes: &mut Vec<Process>,
    (old, new): (&str, &str),
) -> Result<(), ReloadError> {
    let text = file(pgbouncer).text.replace(old, new);
    fs::write(&pgbouncer.file, text).expect("writable");
    follow(processes, &file(pgbouncer), true).await.remove(0)
}

/// What a proxy makes of PgBouncer that starts now: a look, a RELOAD if that tells something, and another look.
async fn looked_at(pgbouncer: &Pgbouncer) -> Result<(), ReloadError> {
    let mut processes = vec![Process::new(pgbouncer.console())];
    let mut last = Ok(());
    for _ in 0..3 {
        last = follow(&mut processes, &file(pgbouncer), false).await.remove(0);
    }
    last
}

#[tokio::test]
async fn what_is_set_on_the_console_or_in_a_file_of_its_own_is_not_taken_for_half_a_file() {
    let mut pgbouncer = start_pgbouncer(free_port(), 5432, "log_connections = 0").await;
    let mut console = Config::new();
    console.host_path(pgbouncer.dir()).port(pgbouncer.port).user("pgbouncer").dbname("pgbouncer");
    let (console, connection) = console.connect(NoTls).await.expect("a console");
    tokio::spawn(connection);
    console.simple_query("SET log_connections = 1").await.expect("the default");
    looked_at(&pgbouncer).await.expect("to the end of its file");
    // A file for each process, as those have that share a port.
    let rendered = pgbouncer.file.clone();
    let own = rendered.with_extension("own");
    let text = format!("%include {}\nlog_connections = 1\n", rendered.display());
    fs::write(&own, text).expect("written");
    pgbouncer.stop();
    pgbouncer.file = own;
    pgbouncer.start().await;
    pgbouncer.file = rendered;
    looked_at(&pgbouncer).await.expect("it includes the file to its end");
}

#[tokio::test]
async fn a_file_that_is_read_by_half_is_told_until_it_is_mended() {
    let pgbouncer = start_pgbouncer(free_port(), 5432, "").await;
    let mut processes = vec![Process::new(pgbouncer.console())];
    change(&pgbouncer, &mut processes, ("", "")).await.expect("it follows");
    let bad = ("pool_mode = transaction", "pool_mode = nonsense");
    let complains = change(&pgbouncer, &mut processes, bad).await;
    let looked = follow(&mut processes, &file(&pgbouncer), false).await.remove(0);
    let error = complains.and(looked).expect_err("only half of it");
    match &error {
        // 1.25 says so by itself.
        ReloadError::Complains { .. } => {}
        // What stands after the line at fault has no effect either.
        ReloadError::HalfRead { keys, .. } => {
            let named = |key: &str| keys.iter().any(|named| named == key);
            assert!(named("pool_mode") && named("server_login_retry"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    // Whoever starts later, and has no reason to RELOAD, sees it as well.
    let later = looked_at(&pgbouncer).await;
    let told_by_reload = matches!(error, ReloadError::Complains { .. });
    assert!(told_by_reload || matches!(later, Err(ReloadError::HalfRead { .. })), "{later:?}");
    let good = ("pool_mode = nonsense", "pool_mode = transaction");
    change(&pgbouncer, &mut processes, good).await.expect("it follows again");
    let mended = follow(&mut processes, &file(&pgbouncer), false).await.remove(0);
    mended.expect("to the end of its file");
}

/// The port of the Postgres that a statement reached.
async fn reached(client: &Client, statement: &Statement) -> i32 {
    client.query_one(statement, &[]).await.expect("an answer").get(0)
}

#[tokio::test]
async fn a_prepared_statement_goes_on_at_the_new_primary() {
    let (one, two) = (start_postgres().await, start_postgres().await);
    let pgbouncer = start_pgbouncer(free_port(), one.port, "max_prepared_statements = 10").await;
    let mut processes = vec![Process::new(pgbouncer.console())];
    let client = connect(pgbouncer.port, "app").await.expect("a client");
    let statement = client.prepare("SELECT inet_server_port()").await.expect("prepared");
    assert_eq!(reached(&client, &statement).await, i32::from(one.port));

    let session = pgbouncer.console().connect().await.expect("a console");
    session.pause(SECOND).await.expect("paused");
    let move_on = async {
        eventually(5 * SECOND, "the statement waits", || async {
            let pools = session.pools().await.expect("shown");
            pools.iter().any(|pool| pool.waiting_clients == 1)
        })
        .await;
        let (old, new) = (format!("port={}", one.port), format!("port={}", two.port));
        change(&pgbouncer, &mut processes, (&old, &new)).await.expect("it follows");
        session.resume().await.expect("resumed");
    };
    let (port, ()) = tokio::join!(reached(&client, &statement), move_on);
    assert_eq!(port, i32::from(two.port));
    assert_eq!(reached(&client, &statement).await, i32::from(two.port));
}
