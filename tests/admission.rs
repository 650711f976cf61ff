//! What lets a planned failover begin, and again: overrides, the lock, attempts. A real etcd, and
//! agents that can be told to fail.

mod support;

use std::{sync::Arc, time::Duration};

use pgcm::{
    edge::{
        etcd::Etcd,
        lock::{Acquired, Lock, LockError, LockOptions},
    },
    exit::Exit,
    model::{
        attempt::{Attempt, LOCK},
        finding::Severity,
    },
    telemetry::log::discard,
    work::{
        failover::{
            self, FailoverOptions,
            progress::{Event, Progress},
        },
        history,
        shutdown::Stop,
    },
};
use support::{
    etcd::{client, start_etcd},
    eventually,
    failover::{SOON, is_locked, options, run, start, told},
    fake_cluster::Fault,
};

#[tokio::test]
async fn attempts_are_made_while_only_transactions_stand_in_the_way() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("pause", Fault::Busy);
    let patient = FailoverOptions { attempts: 3, ..options("one") };
    let report = run(&etcd, patient.clone()).await;
    assert_eq!(report.exit, Exit::PutBack, "{report}");
    assert_eq!(report.earlier.len(), 2, "{report}");
    assert!(report.to_string().contains("attempt 2 undone after"), "{report}");
    assert!(cluster.paused().is_empty() && !is_locked(&etcd).await);
    // Each attempt was undone before the next: it resumed what it paused, and let the lock go.
    let calls = cluster.calls();
    let turns: Vec<&str> = calls
        .iter()
        .filter_map(|call| call.strip_prefix("app01/proxy "))
        .filter(|call| ["pause", "resume"].contains(call))
        .collect();
    assert_eq!(turns, ["pause", "resume"].repeat(3));
    // The transaction ends while the next run waits for its second attempt.
    let (report, ()) = tokio::join!(run(&etcd, patient.clone()), async {
        let pauses = || async {
            cluster.calls().iter().filter(|call| *call == "app01/proxy resume").count() == 4
        };
        eventually(SOON, "the first attempt was undone", pauses).await;
        cluster.heal();
    });
    assert_eq!((report.exit, report.earlier.len()), (Exit::Done, 1), "{report}");
    // Anything else ends it at once.
    cluster.fault("migrate", Fault::Fail);
    let report = run(&etcd, patient).await;
    assert_eq!((report.exit, report.earlier.len()), (Exit::PutBack, 0), "{report}");
}

#[derive(Default)]
struct Backoff(tokio::sync::Notify);

impl Progress for Backoff {
    fn tell(&self, event: &Event<'_>) {
        if matches!(event, Event::Again { .. }) {
            self.0.notify_one();
        }
    }
}

#[tokio::test]
async fn a_stop_between_two_attempts_is_heeded() {
    let (_process, etcd, cluster) = start().await;
    cluster.refuse("pg01/supervise", "open-transactions");
    let (switch, stop) = Stop::new();
    let patient = FailoverOptions { attempts: 9, attempt_backoff: SOON * 10, ..options("one") };
    let progress = Arc::new(Backoff::default());
    let run = failover::run(patient, etcd.clone(), None, progress.clone(), stop, discard());
    let (report, ()) = tokio::join!(run, async {
        progress.0.notified().await;
        switch.send(true).expect("somebody listens");
    });
    assert_eq!(report.exit, Exit::Refused, "{report}");
    assert!(cluster.changes().is_empty());
}

#[tokio::test]
async fn transactions_that_hold_up_the_pause_are_terminated_only_when_asked_for() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("pause", Fault::Busy);
    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::PutBack, "{report}");
    assert!(!cluster.calls().iter().any(|call| call.ends_with("terminate")));
    // Zero: whatever is still open at once.
    for (name, after) in [("two", Duration::from_millis(200)), ("three", Duration::ZERO)] {
        cluster.fault("pause", Fault::Busy);
        let primary = cluster.primary();
        let terminate_after = Some(after);
        let report = run(&etcd, FailoverOptions { terminate_after, ..options(name) }).await;
        assert_eq!(report.exit, Exit::Done, "{report}");
        assert!(report.to_string().contains("TERMINATED: PID 4711 (app on app"), "{report}");
        let calls = cluster.calls();
        let asked: Vec<_> = calls.iter().filter(|call| call.ends_with("terminate")).collect();
        assert_eq!(asked.last(), Some(&&format!("{primary}/supervise terminate")), "{asked:?}");
    }
    let (_, entries, _) = history::read(&etcd).await.expect("etcd answers");
    assert_eq!(entries[0].change.terminated[0].pid, 4711);
}

#[tokio::test]
async fn a_check_that_refuses_is_overridden_by_its_name_alone_and_that_is_remembered() {
    let (_process, etcd, cluster) = start().await;
    cluster.refuse("app01/proxy", "session-pools");
    let named = |name: &str| FailoverOptions { overrides: vec![name.to_owned()], ..options("one") };
    for other in ["archive", "session", "pgbouncer-follows"] {
        let report = run(&etcd, named(other)).await;
        assert_eq!(report.exit, Exit::Refused, "{report}");
    }
    assert!(cluster.changes().is_empty());
    let report = run(&etcd, named("session-pools")).await;
    assert_eq!(report.exit, Exit::Done, "{report}");
    assert!(report.to_string().contains("OVERRIDDEN: app01/proxy: told to refuse"), "{report}");
    let (_, entries, _) = history::read(&etcd).await.expect("etcd answers");
    let text = pgcm::model::history::text(&entries);
    assert!(text.contains("overridden: session-pools (app01/proxy)"), "{text}");
    // Some cannot be, whoever asks.
    for check in ["quorum", "target", "agent-health", "pgbouncer-follows", "primary"] {
        cluster.refuse("app01/proxy", check);
        let report = run(&etcd, named(check)).await;
        assert_eq!(report.exit, Exit::Refused, "{check}: {report}");
    }
    cluster.allow();
}

fn attempt(id: &str) -> Attempt {
    Attempt {
        id: id.to_owned(),
        holder: "pg09:1".to_owned(),
        purpose: "with-lock".to_owned(),
        started_at: "2024-01-01T00:00:00Z".to_owned(),
        step: "running".to_owned(),
        pause_deadline_unix_ms: 0,
    }
}

fn lock(etcd: &Arc<Etcd>, id: &str) -> Lock {
    let options = LockOptions { lease: Duration::from_secs(3), poll: Duration::from_millis(20) };
    Lock::new(etcd.clone(), attempt(id), options)
}

#[tokio::test]
async fn a_lock_held_elsewhere_is_refused_and_stays_its_holders() {
    let (_process, etcd, cluster) = start().await;
    let theirs = lock(&etcd, "theirs");
    let acquired = theirs.acquire(Duration::ZERO).await.expect("etcd answers");
    let before = etcd.get(LOCK).await.expect("etcd answers").expect("held");
    let held = Acquired::Held { token: before.create_revision, waited: false };
    assert_eq!(acquired, held);

    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::Locked, "{report}");
    assert!(report.to_string().contains("pg09:1 holds the lock for `with-lock`"), "{report}");
    assert_eq!(etcd.get(LOCK).await.expect("etcd answers"), Some(before));
    assert!(cluster.calls().is_empty(), "known before anybody is asked");

    // Its lease is renewed, its value kept, and given up only by itself.
    tokio::time::sleep(Duration::from_secs(4)).await;
    theirs.update("still running", 7).await.expect("still held");
    assert!(!theirs.is_lost());
    theirs.release().await.expect("released");
    assert!(!is_locked(&etcd).await);
}

#[derive(Default)]
struct LockBegun(tokio::sync::Notify);

impl Progress for LockBegun {
    fn tell(&self, event: &Event<'_>) {
        if matches!(event, Event::Begun { step: "lock", .. }) {
            self.0.notify_one();
        }
    }
}

#[tokio::test]
async fn who_waited_for_the_lock_checks_again() {
    let (_process, etcd, cluster) = start().await;
    let theirs = lock(&etcd, "theirs");
    theirs.acquire(Duration::ZERO).await.expect("etcd answers");
    let waiting = FailoverOptions { lock_timeout: SOON, ..options("one") };
    let (_switch, stop) = Stop::new();
    let progress = Arc::new(LockBegun::default());
    let run = failover::run(waiting, etcd.clone(), None, progress.clone(), stop, discard());
    let (report, ()) = tokio::join!(run, async {
        progress.0.notified().await;
        // Its first look at the lock cannot be seen from outside; it takes a few milliseconds.
        tokio::time::sleep(Duration::from_millis(500)).await;
        theirs.release().await.expect("released");
    });
    assert_eq!(report.exit, Exit::Done, "{report}");
    assert_eq!(cluster.calls().iter().filter(|call| call.ends_with("health")).count(), 10);
}

#[tokio::test]
async fn of_two_at_once_one_moves_and_the_other_is_locked_out() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("migrate", Fault::Slow);
    let (one, two) = tokio::join!(run(&etcd, options("one")), run(&etcd, options("two")));
    let mut exits = [one.exit as u8, two.exit as u8];
    exits.sort_unstable();
    assert_eq!(exits, [0, 5], "{one}\n{two}");
    assert_eq!(cluster.primary(), "pg02");
    assert!(!is_locked(&etcd).await);
}

#[tokio::test]
async fn a_primary_that_changed_after_the_checks_is_refused() {
    let (_process, etcd, cluster) = start().await;
    let theirs = lock(&etcd, "theirs");
    theirs.acquire(Duration::ZERO).await.expect("etcd answers");
    // The target was a standby when the command was typed; now it is the primary.
    let target = Some("pg02".to_owned());
    let waiting = FailoverOptions { lock_timeout: SOON, target, ..options("one") };
    let (report, ()) = tokio::join!(run(&etcd, waiting), async {
        eventually(SOON, "the checks have run", || async {
            cluster.calls().iter().filter(|call| call.ends_with("check")).count() == 5
        })
        .await;
        cluster.move_primary("pg02").await;
        theirs.release().await.expect("released");
    });
    assert_eq!(report.exit, Exit::Refused, "{report}");
    // Seen by the second checks if it waited for the lock, else by the look after it got it.
    let told = ["pg02 is the primary already", "the primary changed from pg01 to pg02"];
    assert!(told.iter().any(|told| report.to_string().contains(told)), "{report}");
    assert!(cluster.changes().is_empty() && !is_locked(&etcd).await);
}

#[tokio::test]
async fn a_dry_run_changes_nothing_and_tells_the_plan() {
    let (_process, etcd, cluster) = start().await;
    let before = etcd.get_prefix("/").await.expect("etcd answers").revision;
    let report = run(&etcd, FailoverOptions { dry_run: true, ..options("one") }).await;
    assert_eq!((report.exit, report.outcome), (Exit::Done, "planned"), "{report}");
    assert!(cluster.changes().is_empty(), "{:?}", cluster.changes());
    assert_eq!(etcd.get_prefix("/").await.expect("etcd answers").revision, before);
    let text = report.to_string();
    assert!(text.contains("move the primary from pg01 to pg02"), "{text}");
    assert!(text.find("app01/proxy").expect("named") < text.find("pg01/proxy").expect("named"));
    assert!(text.contains("no failover is on record"), "{text}");
    // Durations come from what was done before.
    assert_eq!(run(&etcd, options("two")).await.exit, Exit::Done);
    let report = run(&etcd, FailoverOptions { dry_run: true, ..options("three") }).await;
    assert!(report.to_string().contains("as 1 failovers on record took"), "{report}");
    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!(json["plan"]["expected"]["steps"][4]["step"], "migrate", "{json}");
}

#[tokio::test]
async fn a_dry_run_tells_who_holds_the_lock_and_ends_as_the_run_would() {
    let (_process, etcd, cluster) = start().await;
    let theirs = lock(&etcd, "theirs");
    theirs.acquire(Duration::ZERO).await.expect("etcd answers");
    let dry = FailoverOptions { dry_run: true, ..options("one") };
    let holder = "pg09:1 holds the lock for `with-lock` since 2024-01-01T00:00:00Z, now at step \
                  `running`";
    let report = run(&etcd, dry.clone()).await;
    assert_eq!(report.exit, Exit::Locked, "{report}");
    let words = told(&report, "lock", Severity::Refuse);
    assert_eq!(
        words,
        format!("{holder}; wait until it is free, see `pgcm status`, or use --lock-timeout")
    );
    assert!(report.to_string().contains("move the primary from pg01 to pg02"), "{report}");
    cluster.refuse("app01/proxy", "session-pools");
    let report = run(&etcd, dry.clone()).await;
    assert_eq!(report.exit, Exit::Locked, "{report}");

    let patient = FailoverOptions { lock_timeout: SOON, ..dry };
    assert_eq!(run(&etcd, patient.clone()).await.exit, Exit::Refused);
    cluster.allow();
    let report = run(&etcd, patient.clone()).await;
    assert_eq!(report.exit, Exit::Done, "{report}");
    let words = told(&report, "lock", Severity::Warn);
    assert_eq!(words, format!("{holder}; the failover would wait for it, at most 10s"));
    theirs.release().await.expect("released");
    let report = run(&etcd, patient).await;
    assert!(!report.findings.iter().any(|found| found.finding.check == "lock"), "{report}");
    assert!(cluster.changes().is_empty(), "{:?}", cluster.changes());
}

#[tokio::test]
async fn without_etcd_nothing_begins() {
    let etcd = client("http://127.0.0.1:1", "/postgres");
    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::Unreachable, "{report}");
}

#[tokio::test]
async fn an_unfit_cluster_is_refused_with_every_reason() {
    let (_process, etcd, cluster) = start().await;
    let missing = etcd.get("/agents/pg02/supervise").await.expect("etcd").expect("there");
    let gone = pgcm::edge::etcd::Expect::ModRevision(missing.mod_revision);
    etcd.delete_if(&missing.key, gone).await.expect("deleted");
    let target = Some("pg09".to_owned());
    let report = run(&etcd, FailoverOptions { target, ..options("one") }).await;
    assert_eq!(report.exit, Exit::Refused, "{report}");
    let text = report.to_string();
    assert!(text.contains("no `pgcm supervise` of pg02 was found"), "{text}");
    assert!(text.contains("pg09 is no connected standby (pg02)"), "{text}");
    assert!(cluster.changes().is_empty() && !is_locked(&etcd).await);
}

#[tokio::test]
async fn a_lock_taken_away_is_noticed_and_never_written_again() {
    let process = start_etcd().await;
    let etcd = process.client();
    let ours = lock(&etcd, "ours");
    ours.acquire(Duration::ZERO).await.expect("etcd answers");
    let entry = etcd.get(LOCK).await.expect("etcd answers").expect("held");
    let there = pgcm::edge::etcd::Expect::CreateRevision(entry.create_revision);
    etcd.delete_if(LOCK, there).await.expect("deleted");
    let theirs = lock(&etcd, "theirs");
    theirs.acquire(Duration::ZERO).await.expect("etcd answers");
    let error = ours.update("pause", 1).await.expect_err("not ours any more");
    assert!(matches!(error, LockError::Lost), "{error}");
    assert!(ours.is_lost() && *ours.lost().borrow());
    ours.release().await.expect("gives up its own");
    assert!(is_locked(&etcd).await, "theirs stays");
    assert!(theirs.fencing_token() > ours.fencing_token());
}
