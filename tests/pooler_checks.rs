//! What the checks find of a PgBouncer and its configuration, each provoked on a real one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use nix::sys::signal::Signal;
use pgcm::{
    model::finding::{Finding, Severity},
    work::checks::{Terms, pgbouncer as checks},
};
use support::{
    eventually, free_port,
    pgbouncer::start_pgbouncer,
    postgres::{connect, start_postgres, value},
};

const SECOND: Duration = Duration::from_secs(1);
const TERMS: Terms =
    Terms { pause_timeout: SECOND, pause_expiry: Duration::from_secs(25), target: None };

#[tokio::test(flavor = "multi_thread")]
async fn checks_name_what_would_make_a_pause_hurt() {
    let postgres = start_postgres().await;
    let extra = "query_wait_timeout = 10\nquery_timeout = 7\nclient_login_timeout = 9\n\
                 server_login_retry = 15\npool_mode = session";
    let pgbouncer = start_pgbouncer(free_port(), postgres.port, extra).await;
    let client = connect(pgbouncer.port, "app").await.unwrap();
    assert_eq!(value(&client, "SELECT 1").await, "1");
    pgbouncer.console().connect().await.unwrap();
    let consoles = [pgbouncer.console()];
    let found = checks::findings(&consoles, &TERMS, false).await;
    let names: Vec<&str> = found.iter().map(|finding| finding.check.as_str()).collect();
    for expected in ["client-limits", "login-retry", "session-pools"] {
        assert!(names.contains(&expected), "{expected} in {names:?}");
    }
    for limit in
        ["query_wait_timeout is 10 s", "query_timeout is 7 s", "client_login_timeout is 9 s"]
    {
        let told = |finding: &Finding| {
            finding.message.starts_with(limit)
                && finding.message.contains("raise it to at least 50 or lower --pause-expiry")
        };
        assert!(found.iter().any(told), "{limit}: {found:?}");
    }
    for (check, words) in [
        ("login-retry", "server_login_retry is 15 s at "),
        ("login-retry", "set it to 1"),
        ("session-pools", "1 clients of database app, user postgres"),
        ("session-pools", "end them, or set pool_mode to transaction"),
    ] {
        let told = |finding: &Finding| finding.check == check && finding.message.contains(words);
        assert!(found.iter().any(told), "{words}: {found:?}");
    }
    drop(client);
    eventually(SECOND, "the session ends", || async {
        let found = checks::findings(&consoles, &TERMS, false).await;
        !found.iter().any(|finding| finding.check == "session-pools")
    })
    .await;
    consoles[0].connect().await.unwrap().pause(SECOND).await.unwrap();
    let found = checks::findings(&consoles, &TERMS, false).await;
    let told = found.iter().find(|finding| finding.check == "pgbouncer-paused");
    assert!(
        told.is_some_and(|told| told.message.contains("run RESUME on its console")),
        "{found:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_of_a_shared_port_that_are_not_configured_are_named() {
    let postgres = start_postgres().await;
    let port = free_port();
    let one = start_pgbouncer(port, postgres.port, "so_reuseport = 1").await;
    let two = start_pgbouncer(port, postgres.port, "so_reuseport = 1").await;
    let all = checks::findings(&[one.console(), two.console()], &TERMS, false).await;
    assert!(!all.iter().any(|finding| finding.check == "pgbouncer-processes"), "{all:?}");
    let found = checks::findings(&[one.console()], &TERMS, false).await;
    let told = found.iter().find(|finding| finding.check == "pgbouncer-processes");
    let told = told.unwrap_or_else(|| panic!("{found:?}"));
    let words = format!("2 processes listen on port {port}, but pgcm knows the consoles of 1");
    assert!(told.message.starts_with(&words), "{}", told.message);
    assert!(told.message.contains("pgbouncer.admin-sockets"), "{}", told.message);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pgbouncer_that_is_away_or_shuts_down_is_named_with_its_remedy() {
    let postgres = start_postgres().await;
    let mut pgbouncer = start_pgbouncer(free_port(), postgres.port, "").await;
    let consoles = [pgbouncer.console()];
    let client = connect(pgbouncer.port, "app").await.unwrap();
    client.simple_query("BEGIN").await.unwrap();
    value(&client, "SELECT 1").await;
    // The first signal lets transactions end, and new ones no more begin.
    pgbouncer.signal(Signal::SIGINT);
    let found = |check: &'static str, words: &'static str| {
        let consoles = consoles.clone();
        async move {
            let found = checks::findings(&consoles, &TERMS, false).await;
            let told = |finding: &&Finding| finding.check == check;
            found.iter().find(told).is_some_and(|told| told.message.contains(words))
        }
    };
    // Versions differ in whether the console still answers meanwhile.
    eventually(10 * SECOND, "the shutdown is seen", || async {
        found("pgbouncer-paused", "waits for transactions before it shuts down").await
            || found("pgbouncer-answer", "start it, or take its socket from").await
    })
    .await;
    client.simple_query("COMMIT").await.unwrap();
    pgbouncer.stop();
    assert!(found("pgbouncer-answer", "start it, or take its socket from").await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_a_single_user_is_read_from_the_file() {
    let postgres = start_postgres().await;
    let pgbouncer = start_pgbouncer(free_port(), postgres.port, "").await;
    assert_eq!(checks::user_limits(&pgbouncer.file, &TERMS).await, []);
    let file = std::fs::read_to_string(&pgbouncer.file).unwrap();
    let limited = format!("{file}\n[users]\nreports = query_timeout=7\n");
    std::fs::write(&pgbouncer.file, limited).unwrap();
    let found = checks::user_limits(&pgbouncer.file, &TERMS).await;
    let [found] = &found[..] else { panic!("{found:?}") };
    assert_eq!((found.check.as_str(), found.severity), ("client-limits", Severity::Refuse));
    let words = format!("query_timeout is 7 s at {}, user reports", pgbouncer.file.display());
    assert!(found.message.starts_with(&words), "{}", found.message);
    // 1.24 takes such a limit, older ones refuse the whole file.
    let session = pgbouncer.console().connect().await.unwrap();
    let taken = session.reload().await;
    println!("{}: {taken:?}", session.version().await.unwrap());
}
