//! The steps of a planned failover against a real etcd and agents that can be told to fail.

mod support;

use std::{sync::Arc, time::Duration};

use pgcm::{
    edge::etcd::Put,
    exit::Exit,
    model::{attempt::LOCK, finding::Severity},
    telemetry::log::discard,
    work::{
        failover::{self, FailoverOptions, progress::Silent},
        history,
        shutdown::Stop,
    },
};
use support::{
    etcd::{client, start_etcd},
    eventually,
    failover::{EXPIRY, SOON, is_locked, options, run, run_until, start, told},
    fake_cluster::{FakeCluster, Fault},
};

#[tokio::test]
async fn clients_are_held_app_tier_first_and_freed_before_anything_else_is_put_away() {
    let (_process, etcd, cluster) = start().await;
    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::Done, "{report}");
    assert_eq!(cluster.primary(), "pg02");
    let at = |call: &str| cluster.place(call);
    for node in ["pg01", "pg02"] {
        assert!(at(&format!("{node}/supervise prepare")) < at("app01/proxy pause"));
        assert!(at("app01/proxy pause") < at(&format!("{node}/proxy pause")));
        assert!(at(&format!("{node}/proxy pause")) < at("pg01/supervise migrate"));
    }
    for proxy in ["app01/proxy", "pg01/proxy", "pg02/proxy"] {
        assert!(at("pg01/supervise migrate") < at(&format!("{proxy} follow")));
        assert!(at(&format!("{proxy} follow")) < at(&format!("{proxy} resume")));
        assert!(cluster.last_place(&format!("{proxy} resume")) < at("pg01/supervise unmigrate"));
    }
    assert!(cluster.paused().is_empty() && !cluster.has_constraint() && !is_locked(&etcd).await);
    assert!(report.clients_held_ms.is_some() && report.dirty.is_empty(), "{report}");

    let json = serde_json::to_value(&report).expect("JSON");
    assert_eq!((&json["outcome"], &json["exit_code"]), (&"done".into(), &0.into()), "{json}");
    let history = etcd.get_prefix("/history/").await.expect("etcd answers");
    assert_eq!(history.entries.len(), 1);
    assert!(history.entries[0].value.contains("\"step\":\"verify\""), "{:?}", history.entries);
    let (_, entries, odd) = history::read(&etcd).await.expect("etcd answers");
    assert!(odd.is_empty() && entries[0].change.steps.len() == 9, "{entries:?} {odd:?}");
    assert_eq!(entries[0].change.clients_held_ms, report.clients_held_ms);
    // And back.
    let report = run(&etcd, options("two")).await;
    assert_eq!((report.exit, cluster.primary().as_str()), (Exit::Done, "pg01"), "{report}");
}

/// Every call, failing in every way, on every agent that is asked: what the run must end with.
fn matrix() -> Vec<(&'static str, Fault, Exit)> {
    use Fault::{DoneButFails, DoneButHangs, Fail, Hang};
    let mut cases = Vec::new();
    for fault in [Fail, Hang, DoneButFails, DoneButHangs] {
        let done = matches!(fault, DoneButFails | DoneButHangs);
        cases.extend([
            ("health", fault, Exit::Refused),
            ("check", fault, Exit::Refused),
            ("prepare", fault, Exit::PutBack),
            ("pause", fault, Exit::PutBack),
            ("app01/proxy pause", fault, Exit::PutBack),
            ("pg02/proxy pause", fault, Exit::PutBack),
            ("migrate", fault, if done { Exit::NeedsHands } else { Exit::PutBack }),
            ("follow", fault, Exit::NeedsHands),
            ("pg01/proxy follow", fault, Exit::NeedsHands),
            ("resume", fault, Exit::NeedsHands),
            ("app01/proxy resume", fault, Exit::NeedsHands),
            ("unmigrate", fault, Exit::NeedsHands),
            // Another one can do it as well.
            ("pg01/supervise unmigrate", fault, Exit::Done),
            ("settle", fault, Exit::Done),
        ]);
    }
    cases
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fault_in_any_call_leaves_nothing_paused_and_no_lock() {
    let process = start_etcd().await;
    let mut running = tokio::task::JoinSet::new();
    // Few enough at a time for the limits to be about the faults, not about a busy machine.
    let turns = Arc::new(tokio::sync::Semaphore::new(10));
    for (number, (call, fault, expected)) in matrix().into_iter().enumerate() {
        let (etcd, turns) = (client(&process.url(), &format!("/case{number}")), turns.clone());
        running.spawn(async move {
            let _turn = turns.acquire_owned().await.expect("never closed");
            let what = format!("{call} {fault:?}");
            let cluster = FakeCluster::start(etcd.clone()).await;
            cluster.fault(call, fault);
            let report = run(&etcd, options("case")).await;
            assert_eq!(report.exit, expected, "{what}: {report}");
            assert!(!is_locked(&etcd).await, "{what}: {report}");
            eventually(EXPIRY, &format!("{what}: clients flow"), || async {
                cluster.paused().is_empty()
            })
            .await;
            let resume_fails = call.contains("resume");
            if !resume_fails {
                assert!(report.dirty.iter().all(|dirt| !dirt.what.contains("held")), "{report}");
            }
            let follows: Vec<String> =
                cluster.calls().into_iter().filter(|call| call.ends_with("follow")).collect();
            if cluster.primary() == "pg02" {
                assert!(follows.len() >= 3, "{what}: {follows:?}");
            }
            if expected == Exit::PutBack || expected == Exit::Refused {
                assert_eq!(cluster.primary(), "pg01", "{what}");
                assert!(report.dirty.is_empty(), "{what}: {report}");
            }
            if expected == Exit::Refused {
                assert!(cluster.changes().is_empty(), "{what}: {:?}", cluster.changes());
            }
            // Whatever it was, the next one works.
            cluster.heal();
            let report = run(&etcd, options("next")).await;
            assert_eq!(report.exit, Exit::Done, "after {what}: {report}");
        });
    }
    while let Some(ended) = running.join_next().await {
        ended.expect("no case panics");
    }
}

#[tokio::test]
async fn a_pause_that_meets_transactions_names_them() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("app01/proxy pause", Fault::Fail);
    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::PutBack, "{report}");
    assert!(report.to_string().contains("PID 4711"), "{report}");
    assert!(!cluster.calls().iter().any(|call| call.contains("pg01/proxy pause")));
}

#[tokio::test]
async fn a_signal_while_paused_resumes_every_agent() {
    for (fault, exit) in [(Fault::Hang, Exit::PutBack), (Fault::DoneButHangs, Exit::NeedsHands)] {
        let (_process, etcd, cluster) = start().await;
        cluster.fault("migrate", fault);
        let (switch, stop) = Stop::new();
        let patient =
            FailoverOptions { pause_expiry: SOON, pacemaker_timeout: SOON, ..options("one") };
        let (report, ()) = tokio::join!(run_until(&etcd, patient, stop), async {
            eventually(SOON, "the move has begun", || async {
                cluster.calls().contains(&"pg01/supervise migrate".to_owned())
                    && (fault == Fault::Hang || cluster.primary() == "pg02")
            })
            .await;
            assert_eq!(cluster.paused().len(), 3);
            switch.send(true).expect("somebody listens");
        });
        assert_eq!(report.exit, exit, "{report}");
        assert!(cluster.paused().is_empty() && !cluster.has_constraint(), "{report}");
        assert!(!is_locked(&etcd).await);
        assert!(report.duration_ms < 5_000, "the undo waits for nothing: {report}");
        if cluster.primary() == "pg02" {
            // Forward was the only way: followed before clients were let go.
            for proxy in ["app01/proxy", "pg01/proxy", "pg02/proxy"] {
                let follow = cluster.place(&format!("{proxy} follow"));
                assert!(follow < cluster.place(&format!("{proxy} resume")));
            }
        }
    }
}

#[tokio::test]
async fn nobody_else_can_say_that_a_move_under_way_leaves_no_constraint() {
    for fault in [Fault::Hang, Fault::Fail] {
        let (_process, etcd, cluster) = start().await;
        cluster.fault("migrate", Fault::Hang);
        cluster.fault("pg01/supervise unmigrate", fault);
        let report = run(&etcd, options("one")).await;
        assert!(cluster.calls().contains(&"pg02/supervise unmigrate".to_owned()), "{report}");
        assert_eq!(report.exit, Exit::NeedsHands, "{report}");
        let told = |word: &str| report.dirty.iter().any(|dirt| dirt.what.contains(word));
        assert!(told("constraint") && told("pg01/supervise"), "{report}");
        assert!(
            report.dirty[0].remedy.contains("stops to count 60s after it was made"),
            "{report}"
        );
        assert!(cluster.paused().is_empty() && !is_locked(&etcd).await, "{report}");
    }
}

#[tokio::test]
async fn a_constraint_that_cannot_be_removed_is_left_alone_once_the_lock_is_released() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("unmigrate", Fault::Fail);
    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::NeedsHands, "{report}");
    let asked = cluster.calls().into_iter().filter(|call| call.ends_with("unmigrate"));
    // Its own agent, then all that are left; nobody again without the lock.
    assert_eq!(asked.count(), 3, "{report}");
    let told = report.dirty.iter().any(|dirt| dirt.remedy.contains("supervise removes it"));
    assert!(told, "{report}");
}

#[tokio::test]
async fn a_lost_lease_ends_all_action_but_letting_clients_go() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("migrate", Fault::Hang);
    let patient = FailoverOptions { pause_expiry: SOON, pacemaker_timeout: SOON, ..options("one") };
    let (report, ()) = tokio::join!(run(&etcd, patient), async {
        eventually(SOON, "the move has begun", || async {
            cluster.calls().contains(&"pg01/supervise migrate".to_owned())
        })
        .await;
        let lock = etcd.get(LOCK).await.expect("etcd answers").expect("held");
        etcd.revoke(lock.lease).await.expect("revoked");
    });
    assert_eq!(report.exit, Exit::NeedsHands, "{report}");
    let stopped = report.stopped.as_ref().expect("it stopped");
    assert!(stopped.reason.contains("lock was lost"), "{report}");
    assert!(!cluster.calls().iter().any(|call| call.ends_with("unmigrate")), "{report}");
    assert!(cluster.paused().is_empty(), "{report}");
    cluster.heal();
    let report = run(&etcd, options("next")).await;
    assert_eq!(report.exit, Exit::Done, "{report}");
}

#[tokio::test]
async fn a_failover_that_is_killed_while_it_moves_is_on_record() {
    let (_process, etcd, cluster) = start().await;
    cluster.fault("migrate", Fault::DoneButHangs);
    let (_switch, stop) = Stop::new();
    let log = discard();
    let running = failover::run(options("one"), etcd.clone(), None, Arc::new(Silent), stop, log);
    let running = tokio::spawn(running);
    eventually(SOON, "the move has happened", || async { cluster.primary() == "pg02" }).await;
    running.abort();
    let (_, entries, _) = history::read(&etcd).await.expect("etcd answers");
    let changes: Vec<&str> = entries.iter().map(|entry| entry.change.outcome.as_str()).collect();
    assert_eq!(changes, ["running"]);
    assert_eq!(entries[0].change.ended_at, None);
}

#[tokio::test]
async fn moves_on_record_that_take_longer_than_the_pause_refuse() {
    let (_process, etcd, cluster) = start().await;
    assert_eq!(run(&etcd, options("one")).await.exit, Exit::Done);
    let (snapshot, _, _) = history::read(&etcd).await.expect("etcd answers");
    let done = snapshot.entries.first().expect("on record");
    let mut change: serde_json::Value = serde_json::from_str(&done.value).expect("JSON");
    for step in change["steps"].as_array_mut().expect("steps") {
        if step["step"] == "migrate" {
            step["duration_ms"] = 700.into();
        }
    }
    let put = Put { key: done.key.clone(), value: change.to_string(), lease: 0 };
    etcd.put_if(&[], &[put]).await.expect("written");
    let begun = cluster.changes().len();
    // Twice 0.7 s do not fit into what is left of it.
    let brief = FailoverOptions { pause_expiry: Duration::from_millis(1500), ..options("two") };
    for dry_run in [true, false] {
        let report = run(&etcd, FailoverOptions { dry_run, ..brief.clone() }).await;
        assert_eq!(report.exit, Exit::Refused, "{report}");
        let words = told(&report, "move-time", Severity::Refuse);
        assert!(words.contains("1.4s would be needed; raise failover.pause-expiry"), "{words}");
    }
    assert_eq!(cluster.changes().len(), begun, "nobody was held");
    assert_eq!(run(&etcd, options("three")).await.exit, Exit::Done);
}
