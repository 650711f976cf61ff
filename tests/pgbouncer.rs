//! Pause and resume against real PgBouncer and Postgres processes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use pgcm::{
    edge::{clock, pgbouncer::ConsoleError},
    model::{attempt::Attempt, console::Flow, fence::LockSeen, finding::Finding, pause::Claim},
    telemetry::log::discard,
    work::{
        checks::{Terms, pgbouncer as checks},
        fence::SharedGate,
        pauser::{PauseError, Pauser, PauserOptions},
    },
};
use support::{
    eventually, free_port,
    pgbouncer::{Pgbouncer, start_pgbouncer},
    postgres::{Postgres, connect, start_postgres, value},
};

const SHORT: Duration = Duration::from_millis(300);
const LONG: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

async fn setup() -> (Postgres, Pgbouncer) {
    let postgres = start_postgres().await;
    let pgbouncer = start_pgbouncer(free_port(), postgres.port, "").await;
    (postgres, pgbouncer)
}

fn pauser(pgbouncers: &[&Pgbouncer]) -> Pauser {
    let options = PauserOptions {
        consoles: pgbouncers.iter().map(|pgbouncer| pgbouncer.console()).collect(),
        resume_limit: 2 * SECOND,
        adopt_ceiling: 2 * SECOND,
    };
    Pauser::new(options, SharedGate::default(), discard())
}

fn claim(attempt: &str, token: i64) -> Claim {
    Claim { attempt: attempt.into(), token }
}

async fn flow(pgbouncer: &Pgbouncer) -> Flow {
    pgbouncer.console().connect().await.unwrap().flow().await.unwrap()
}

/// A client with an open transaction, and the PID of its backend.
async fn transaction(pgbouncer: &Pgbouncer) -> (tokio_postgres::Client, u32) {
    let client = connect(pgbouncer.port, "app").await.unwrap();
    client.simple_query("BEGIN").await.unwrap();
    let pid = value(&client, "SELECT pg_backend_pid()").await.parse().unwrap();
    (client, pid)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_pgbouncer_holds_queries_until_the_resume() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    let client = Arc::new(connect(pgbouncer.port, "app").await.unwrap());
    assert_eq!(value(&client, "SELECT 1").await, "1");
    assert_eq!(pauser.pause(&claim("a", 1), SECOND, LONG).await.unwrap(), 1);
    assert_eq!(flow(&pgbouncer).await, Flow::Held);
    assert!(pauser.status().borrow().paused);
    let mut query = tokio::spawn({
        let client = Arc::clone(&client);
        async move { value(&client, "SELECT 2").await }
    });
    let held = tokio::time::timeout(SHORT, &mut query).await;
    assert!(held.is_err(), "nothing answers while it is paused: {held:?}");
    pauser.resume(&claim("a", 1)).await.unwrap();
    assert_eq!(query.await.unwrap(), "2");
    pauser.resume(&claim("a", 1)).await.expect("a second resume is fine");
    assert!(!pauser.status().borrow().paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_pause_of_a_draining_pool_is_not_a_success() {
    let (_postgres, pgbouncer) = setup().await;
    let (client, _) = transaction(&pgbouncer).await;
    let by_hand = pgbouncer.console().connect().await.unwrap();
    let draining = tokio::spawn(async move { by_hand.pause(LONG).await });
    eventually(SECOND, "the pool drains", || async { flow(&pgbouncer).await == Flow::Held }).await;
    let again = pgbouncer.console().connect().await.unwrap();
    assert!(matches!(again.pause(SECOND).await, Err(ConsoleError::AlreadyPaused)));
    let error = pauser(&[&pgbouncer]).pause(&claim("a", 1), SHORT, LONG).await.unwrap_err();
    assert!(matches!(error, PauseError::Busy { .. }), "{error:?}");
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
    client.simple_query("COMMIT").await.unwrap();
    draining.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_timed_out_pause_names_the_backend_and_leaves_everything_running() {
    let (_postgres, pgbouncer) = setup().await;
    let (client, pid) = transaction(&pgbouncer).await;
    let pauser = pauser(&[&pgbouncer]);
    let error = pauser.pause(&claim("a", 1), SHORT, LONG).await.unwrap_err();
    let PauseError::Busy { blockers } = &error else { panic!("{error:?}") };
    assert_eq!(blockers.len(), 1);
    assert_eq!(blockers[0].pid, Some(pid));
    assert_eq!(blockers[0].client.as_deref(), Some("127.0.0.1"));
    assert!(error.to_string().contains(&format!("backend PID {pid} (user postgres")), "{error}");
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
    client.simple_query("COMMIT").await.expect("the transaction can still commit");
    assert!(!pauser.status().borrow().paused);
    let other = connect(pgbouncer.port, "app").await.unwrap();
    assert_eq!(value(&other, "SELECT 1").await, "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_ends_by_its_expiry() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    let begun = Instant::now();
    pauser.pause(&claim("a", 1), SHORT, SECOND).await.unwrap();
    let client = connect(pgbouncer.port, "app").await.unwrap();
    assert_eq!(value(&client, "SELECT 1").await, "1");
    assert!(begun.elapsed() >= SECOND && begun.elapsed() < 3 * SECOND, "{:?}", begun.elapsed());
    let status = pauser.status();
    eventually(SECOND, "the expiry is counted", || async { status.borrow().expiries == 1 }).await;
    assert!(!status.borrow().paused);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_expiry_never_ends_the_next_attempts_pause() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.pause(&claim("a", 1), SHORT, SECOND).await.unwrap();
    pauser.resume(&claim("a", 1)).await.unwrap();
    pauser.pause(&claim("b", 2), SHORT, LONG).await.unwrap();
    // Waiting for something not to happen: well past the first expiry.
    tokio::time::sleep(SECOND + SHORT).await;
    assert_eq!(flow(&pgbouncer).await, Flow::Held);
    assert_eq!(pauser.status().borrow().expiries, 0);
    pauser.resume(&claim("b", 2)).await.unwrap();
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_token_is_refused_and_touches_nothing() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.pause(&claim("new", 7), SHORT, LONG).await.unwrap();
    let error = pauser.resume(&claim("old", 6)).await.unwrap_err();
    assert!(matches!(error, PauseError::Stale(_)), "{error:?}");
    let error = pauser.pause(&claim("old", 6), SHORT, LONG).await.unwrap_err();
    assert!(matches!(error, PauseError::Stale(_)), "{error:?}");
    let error = pauser.pause(&claim("twin", 7), SHORT, LONG).await.unwrap_err();
    assert!(matches!(&error, PauseError::Taken { attempt } if attempt == "new"), "{error:?}");
    assert_eq!(flow(&pgbouncer).await, Flow::Held);
    pauser.resume(&claim("new", 7)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_out_of_range_are_refused() {
    let pgbouncer = Pgbouncer::new(free_port(), "", "");
    let pauser = pauser(&[&pgbouncer]);
    for (timeout, expiry) in [(Duration::ZERO, SECOND), (SECOND, Duration::ZERO), (LONG, SECOND)] {
        let error = pauser.pause(&claim("a", 1), timeout, expiry).await.unwrap_err();
        assert!(matches!(error, PauseError::Limits { .. }), "{error:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resume_ends_a_pause_that_is_still_draining() {
    let (_postgres, pgbouncer) = setup().await;
    let (client, _) = transaction(&pgbouncer).await;
    let pauser = pauser(&[&pgbouncer]);
    let pausing = tokio::spawn({
        let pauser = pauser.clone();
        async move { pauser.pause(&claim("a", 1), LONG / 2, LONG).await }
    });
    eventually(SECOND, "the pool drains", || async { flow(&pgbouncer).await == Flow::Held }).await;
    pauser.resume(&claim("a", 1)).await.unwrap();
    let error = pausing.await.unwrap().unwrap_err();
    assert!(matches!(error, PauseError::Superseded), "{error:?}");
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
    client.simple_query("COMMIT").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_arrives_after_its_own_resume_holds_nobody() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.resume(&claim("a", 1)).await.unwrap();
    let error = pauser.pause(&claim("a", 1), SHORT, LONG).await.unwrap_err();
    assert!(matches!(error, PauseError::Ended { .. }), "{error:?}");
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
    pauser.pause(&claim("b", 2), SHORT, LONG).await.expect("the next attempt is free to pause");
    pauser.resume(&claim("b", 2)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_agent_resumes_an_orphaned_pause() {
    let (_postgres, pgbouncer) = setup().await;
    pgbouncer.console().connect().await.unwrap().pause(SECOND).await.unwrap();
    pauser(&[&pgbouncer]).recover(None).await;
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
}

fn attempt(deadline: u64) -> Attempt {
    Attempt {
        id: "live".into(),
        holder: "h".into(),
        purpose: "failover".into(),
        started_at: String::new(),
        step: "pause".into(),
        pause_deadline_unix_ms: deadline,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_agent_leaves_a_live_attempts_pause_until_its_deadline() {
    let (_postgres, pgbouncer) = setup().await;
    pgbouncer.console().connect().await.unwrap().pause(SECOND).await.unwrap();
    let pauser = pauser(&[&pgbouncer]);
    pauser.recover(Some((attempt(clock::unix_ms() + 1_000), 5))).await;
    assert_eq!(flow(&pgbouncer).await, Flow::Held);
    assert!(matches!(pauser.resume(&claim("old", 4)).await, Err(PauseError::Stale(_))));
    eventually(3 * SECOND, "the deadline ends the pause", || async {
        flow(&pgbouncer).await == Flow::Active
    })
    .await;
    pgbouncer.console().connect().await.unwrap().pause(SECOND).await.unwrap();
    pauser.recover(Some((attempt(clock::unix_ms() - 1), 5))).await;
    assert_eq!(flow(&pgbouncer).await, Flow::Active, "a deadline in the past owns nothing");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_agent_leaves_traffic_that_flows_to_whoever_pauses_it() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.recover(Some((attempt(clock::unix_ms() + 60_000), 5))).await;
    assert!(!pauser.status().borrow().paused);
    tokio::time::timeout(SECOND, pauser.drain()).await.expect("nothing to wait for");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_ahead_elsewhere_does_not_lengthen_an_adopted_pause() {
    let (_postgres, pgbouncer) = setup().await;
    pgbouncer.console().connect().await.unwrap().pause(SECOND).await.unwrap();
    let pauser = pauser(&[&pgbouncer]);
    let begun = Instant::now();
    pauser.recover(Some((attempt(clock::unix_ms() + 3_600_000), 5))).await;
    assert_eq!(flow(&pgbouncer).await, Flow::Held);
    eventually(5 * SECOND, "the ceiling ends the pause", || async {
        flow(&pgbouncer).await == Flow::Active
    })
    .await;
    assert!(begun.elapsed() >= 2 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_adopted_pause_ends_also_when_a_failover_began_and_stopped_since() {
    let (_postgres, pgbouncer) = setup().await;
    pgbouncer.console().connect().await.unwrap().pause(SECOND).await.unwrap();
    let gate = SharedGate::default();
    let options = PauserOptions {
        consoles: vec![pgbouncer.console()],
        resume_limit: SECOND,
        adopt_ceiling: 2 * SECOND,
    };
    let pauser = Pauser::new(options, gate.clone(), discard());
    pauser.recover(Some((attempt(clock::unix_ms() + 1_000), 5))).await;
    gate.lock().heed(LockSeen::Failover { token: 6 });
    // Its own pause may be in force, made by another agent of this machine.
    let begun = Instant::now();
    eventually(5 * SECOND, "the ceiling ends the pause", || async {
        flow(&pgbouncer).await == Flow::Active
    })
    .await;
    assert!(begun.elapsed() >= 2 * SECOND, "{:?}", begun.elapsed());
    eventually(SECOND, "nothing is held", || async { !pauser.status().borrow().paused }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stops_takes_its_pause_along() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.pause(&claim("a", 1), SHORT, LONG).await.unwrap();
    pauser.stop().await;
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_is_asked_to_stop_leaves_its_pause_to_whoever_ends_it() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.pause(&claim("a", 1), SHORT, LONG).await.unwrap();
    let draining = tokio::spawn({
        let pauser = pauser.clone();
        async move { pauser.drain().await }
    });
    // Until then its own attempt may ask again; another would take the pause over.
    let refused = || async {
        let error = pauser.pause(&claim("a", 1), SHORT, LONG).await;
        matches!(error, Err(PauseError::Closing))
    };
    eventually(SECOND, "none begins", refused).await;
    assert!(!draining.is_finished() && flow(&pgbouncer).await == Flow::Held);
    pauser.resume(&claim("a", 1)).await.unwrap();
    draining.await.unwrap();
    assert_eq!(flow(&pgbouncer).await, Flow::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_only_one_of_two_processes_can_make_is_undone_on_both() {
    let postgres = start_postgres().await;
    let port = free_port();
    let one = start_pgbouncer(port, postgres.port, "so_reuseport = 1").await;
    let mut two = start_pgbouncer(port, postgres.port, "so_reuseport = 1").await;
    let pauser = pauser(&[&one, &two]);
    assert_eq!(pauser.pause(&claim("a", 1), SECOND, LONG).await.unwrap(), 2);
    assert_eq!((flow(&one).await, flow(&two).await), (Flow::Held, Flow::Held));
    pauser.resume(&claim("a", 1)).await.unwrap();
    assert_eq!((flow(&one).await, flow(&two).await), (Flow::Active, Flow::Active));
    two.stop();
    let error = pauser.pause(&claim("b", 2), SECOND, LONG).await.unwrap_err();
    assert!(error.to_string().contains(two.socket().to_str().unwrap()), "{error}");
    assert_eq!(flow(&one).await, Flow::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_pgbouncer_is_resumed_when_it_thaws() {
    let (_postgres, pgbouncer) = setup().await;
    let pauser = pauser(&[&pgbouncer]);
    pauser.pause(&claim("a", 1), SHORT, LONG).await.unwrap();
    pgbouncer.signal(Signal::SIGSTOP);
    let error = pauser.resume(&claim("a", 1)).await.unwrap_err();
    assert!(matches!(error, PauseError::Stuck { .. }), "{error:?}");
    assert!(pauser.status().borrow().paused);
    pgbouncer.signal(Signal::SIGCONT);
    eventually(10 * SECOND, "it flows again by itself", || async {
        flow(&pgbouncer).await == Flow::Active
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pgbouncer_that_waits_for_clients_to_leave_is_named_and_not_paused() {
    let (_postgres, pgbouncer) = setup().await;
    let client = connect(pgbouncer.port, "app").await.unwrap();
    assert_eq!(value(&client, "SELECT 1").await, "1");
    let version = pgbouncer.console().connect().await.unwrap().version().await.unwrap();
    let minor: u32 = version.split('.').nth(1).unwrap().parse().unwrap();
    // From 1.23 on it serves those that are there, but lets nobody resume it any more; before, it ends.
    pgbouncer.signal(Signal::SIGTERM);
    eventually(SECOND, "the signal is seen", || async { pgbouncer.log().contains("SIGTERM") })
        .await;
    let terms = Terms { pause_timeout: SECOND, pause_expiry: 25 * SECOND, target: None };
    let found = checks::findings(&[pgbouncer.console()], &terms, false).await;
    let told = |finding: &Finding| {
        finding.check == "pgbouncer-answer"
            && finding.message.contains("start it, or take its socket")
    };
    assert!(found.iter().any(told), "{found:?}");
    let error = pauser(&[&pgbouncer]).pause(&claim("a", 1), SECOND, LONG).await.unwrap_err();
    assert!(matches!(error, PauseError::Console { .. }), "{error:?}");
    let goes_on = client.simple_query("SELECT 2").await.is_ok();
    assert_eq!(goes_on, minor >= 23, "{version}");
}
