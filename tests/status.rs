//! `pgcm status --watch` and `--check` as a user runs them, against a real etcd.

mod support;

use std::{
    io::{BufRead, BufReader, Read},
    sync::Arc,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgcm::{
    edge::etcd::{Expect, Put},
    model::cluster::{CLUSTER, ClusterView},
};
use support::{
    etcd::start_etcd,
    fake_cluster::{FakeCluster, Fault},
    free_port,
    pgcm::{Pgcm, end},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_check_answers_by_its_exit_code() {
    let mut server = start_etcd().await;
    let pgcm = Pgcm::new(&server);
    let (status, stdout, _) = pgcm.run(&["status", "--check", "cluster"]);
    assert_eq!(status, 4, "{stdout}");
    let cluster = FakeCluster::start(server.client()).await;
    cluster.publish_address().await;
    let asked = |args: &[&str], expected: i32, words: &str| {
        let (status, stdout, stderr) = pgcm.run(&[&["status", "--check"], args].concat());
        assert_eq!(status, expected, "{args:?}: {stdout}{stderr}");
        assert!(stdout.contains(words), "{args:?}: {stdout}");
    };
    asked(&["primary"], 0, "yes: pg01 is the primary on timeline 1");
    asked(&["primary", "--node", "pg02"], 4, "no: pg01 is the primary, not pg02");
    asked(&["standby", "--node", "pg02"], 0, "yes: pg02 streams from pg01 (sync)");
    asked(
        &["standby", "--output", "json"],
        4,
        "{\"reason\":\"pg01 is the primary\",\"yes\":false}",
    );
    asked(&["cluster"], 0, "yes: no problem is known");
    cluster.fault("pg02/supervise health", Fault::Fail);
    asked(&["cluster"], 4, "no: supervise on pg02 is failed");
    asked(&["standby", "--node", "pg02"], 4, "no: the supervise of pg02 does not answer");
    cluster.heal();
    let entry = server.client().get("/agents/app01/proxy").await.expect("etcd").expect("there");
    let there = Expect::ModRevision(entry.mod_revision);
    server.client().delete_if(&entry.key, there).await.expect("deleted");
    asked(&["cluster"], 4, "no: app01/proxy is expected (failover.expected-agents)");
    server.stop();
    let (status, _, stderr) = pgcm.run(&["status", "--check", "primary"]);
    assert_eq!(status, 3, "{stderr}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_dead_primary_left_in_etcd_is_no_cluster_without_a_problem() {
    let server = start_etcd().await;
    let (etcd, pgcm) = (server.client(), Pgcm::new(&server));
    let _cluster = FakeCluster::start(Arc::clone(&etcd)).await;
    let answer = || {
        let (status, stdout, stderr) = pgcm.run(&["status", "--check", "cluster"]);
        (status, stdout + &stderr)
    };
    assert_eq!(answer().0, 0, "{}", answer().1);
    let entry = etcd.get(CLUSTER).await.expect("etcd").expect("published");
    let mut view: ClusterView = serde_json::from_str(&entry.value).expect("a view");
    let write = async |key: &str, value: String| {
        let put = Put { key: key.to_owned(), value, lease: 0 };
        etcd.put_if(&[], &[put]).await.expect("etcd takes it");
    };
    "2026-01-01T00:00:00Z".clone_into(&mut view.observed_at);
    write(CLUSTER, serde_json::to_string(&view).expect("JSON")).await;
    let (status, words) = answer();
    assert_eq!(status, 4, "{words}");
    let old = "no: what is published was last seen at 2026-01-01T00:00:00Z, ";
    assert!(words.contains(old), "{words}");
    assert!(words.contains("and pg01 may not be the primary any more"), "{words}");
    write(CLUSTER, entry.value).await;
    assert_eq!(answer().0, 0, "{}", answer().1);
    let agent = etcd.get("/agents/pg02/supervise").await.expect("etcd").expect("there");
    let there = Expect::ModRevision(agent.mod_revision);
    etcd.delete_if(&agent.key, there).await.expect("deleted");
    let (status, words) = answer();
    assert_eq!(status, 4, "{words}");
    assert!(words.contains("no `pgcm supervise` of pg02 is registered"), "{words}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_member_of_etcd_that_is_lost_is_told() {
    let server = start_etcd().await;
    let pgcm = Pgcm::new(&server);
    let _cluster = FakeCluster::start(server.client()).await;
    let failover = || pgcm.run(&["failover", "--dry-run", "--output", "json"]);
    assert_eq!(pgcm.run(&["status", "--check", "cluster"]).0, 0);
    let (status, report, _) = failover();
    assert_eq!((status, report.contains("etcd-members")), (0, false), "{report}");

    let lost = format!("http://127.0.0.1:{}", free_port());
    pgcm.knows_member(&lost);
    let told = format!("a member of etcd does not serve ({lost}: ");
    for args in [&["status"][..], &["status", "--check", "cluster"]] {
        let (_, stdout, stderr) = pgcm.run(args);
        assert!(stdout.contains(&told), "{args:?}: {stdout}{stderr}");
    }
    assert_eq!(pgcm.run(&["status", "--check", "cluster"]).0, 4);
    let (status, report, stderr) = failover();
    assert_eq!(status, 0, "{report}{stderr}");
    let report: serde_json::Value = serde_json::from_str(&report).expect("JSON");
    let findings = report["findings"].as_array().expect("findings");
    let found = findings.iter().find(|found| found["check"] == "etcd-members").expect("found");
    assert_eq!(found["severity"], "warn", "{found}");
    assert!(found["message"].as_str().expect("words").contains(&told), "{found}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_etcd_that_refuses_leaves_the_answer_unknown() {
    let server = start_etcd().await;
    let pgcm = Pgcm::new(&server);
    let _cluster = FakeCluster::start(server.client()).await;
    let mut root = etcd_client::Client::connect([server.url()], None).await.expect("etcd");
    root.user_add("root", "right", None).await.expect("a user");
    root.role_add("root").await.expect("a role");
    root.user_grant_role("root", "root").await.expect("granted");
    root.auth_enable().await.expect("enabled");
    for (password, expected) in [("wrong", 3), ("right", 0)] {
        pgcm.log_in("root", password);
        for args in [&["status"][..], &["status", "--check", "cluster"], &["history"]] {
            let (status, stdout, stderr) = pgcm.run(args);
            assert_eq!(status, expected, "{password}, {args:?}: {stdout}{stderr}");
            assert_eq!(stderr.contains("etcd refused"), expected == 3, "{password}: {stderr}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_a_change_at_once_and_ends_on_ctrl_c() {
    let server = start_etcd().await;
    let pgcm = Pgcm::new(&server);
    let cluster = FakeCluster::start(server.client()).await;
    let mut child = pgcm.start(&["status", "--watch", "--output", "json"]);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a PID"));
    let mut lines = BufReader::new(child.stdout.take().expect("piped"));
    let next = |lines: &mut BufReader<_>, wanted: &str| {
        let mut line = String::new();
        while !line.contains(wanted) {
            line.clear();
            // The container's limit ends a watch that says nothing.
            assert_ne!(lines.read_line(&mut line).expect("readable"), 0, "it ended");
        }
    };
    let mut lines = tokio::task::spawn_blocking(move || {
        next(&mut lines, "\"primary\":{\"name\":\"pg01\"");
        lines
    })
    .await
    .expect("no panic");
    let moved = Arc::clone(&cluster);
    moved.move_primary("pg02").await;
    let seen = tokio::task::spawn_blocking(move || {
        next(&mut lines, "\"primary\":{\"name\":\"pg02\"");
        lines
    });
    let seen = tokio::time::timeout(Duration::from_secs(20), seen).await;
    let mut rest = seen.expect("the change is shown").expect("no panic");
    kill(pid, Signal::SIGINT).expect("it is there");
    rest.read_to_string(&mut String::new()).expect("it ends");
    assert_eq!(end(child).0, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_an_outage_of_etcd() {
    let mut server = start_etcd().await;
    let pgcm = Pgcm::new(&server);
    let mut child = pgcm.start(&["status", "--watch"]);
    let pid = Pid::from_raw(i32::try_from(child.id()).expect("a PID"));
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    server.stop();
    let reading = tokio::task::spawn_blocking(move || {
        let mut wanted = ["etcd does not answer", "Primary   none published"].into_iter();
        let first = wanted.next().expect("two");
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains(first))), "{first}");
        (lines, wanted)
    });
    let (mut lines, mut wanted) = reading.await.expect("no panic");
    server.start().await;
    let reading = tokio::task::spawn_blocking(move || {
        let second = wanted.next().expect("two");
        assert!(lines.any(|line| line.is_ok_and(|line| line.contains(second))), "{second}");
        // Kept open: a closed pipe would end the watch.
        lines
    });
    let lines = reading.await.expect("no panic");
    kill(pid, Signal::SIGINT).expect("it is there");
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    drop(lines);
}
