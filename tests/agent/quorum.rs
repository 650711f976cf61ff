//! Quorum mode, and what elections make of claims, with three Postgres instances.

use std::{fs, process::Stdio, time::Duration};

use crate::{
    SECONDS, attributes,
    cluster::{Cluster, eventually},
    follows,
};

/// pg01 as primary; pg02 and pg03 are its quorum, of which one is waited for.
fn three() -> Cluster {
    let mut cluster = Cluster::new();
    cluster.parameters.insert("rep_mode", "quorum".to_owned());
    cluster.act("pg01", "start").with(0);
    cluster.act("pg01", "promote").with(0);
    cluster.add("pg02");
    cluster.add("pg03");
    settle(&cluster, "pg01", "1 of pg02,pg03 on timeline 2");
    for node in ["pg02", "pg03"] {
        attributes(&cluster, node, "HS:quorum", "STREAMING|QUORUM", "100");
    }
    cluster
}

/// Lets the primary's monitor run until its claim is `claim`.
#[track_caller]
fn settle(cluster: &Cluster, primary: &str, claim: &str) {
    eventually(SECONDS, claim, || {
        for node in ["pg01", "pg02", "pg03"].iter().filter(|node| cluster.pid(node).is_some()) {
            cluster.act(node, "monitor");
        }
        let names = cluster.sql(primary, "show synchronous_standby_names");
        let members = claim.split(" of ").nth(1).and_then(|rest| rest.split(' ').next());
        let written = cluster.attribute(primary, "Postgresql-quorum");
        written.as_deref() == Some(claim)
            && names.replace('"', "").ends_with(&format!("({})", members.unwrap_or_default()))
    });
    cluster.act(primary, "monitor").with(8);
}

/// Lets pg03 receive nothing more from pg01, while pg02 goes on.
fn cut_off_pg03(cluster: &Cluster) {
    cluster.refuse_replication("pg01");
    let walsenders = "select count(*) from pg_stat_replication where application_name = 'pg03'";
    cluster.sql(
        "pg01",
        "select pg_terminate_backend(pid) from pg_stat_replication where application_name = 'pg03'",
    );
    eventually(SECONDS, "pg03 streams no more", || cluster.sql("pg01", walsenders) == "0");
}

/// pg01 is gone after a commit that pg02 has and pg03 has not.
fn lost_with_pg03_behind(cluster: &Cluster) {
    cut_off_pg03(cluster);
    cluster.sql("pg01", "create table acknowledged as select generate_series(1, 1000) as n");
    cluster.crash("pg01");
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg01", "stop").with(0);
}

#[test]
fn a_member_that_is_behind_gets_what_the_most_advanced_holds_before_it_is_promoted() {
    let cluster = three();
    lost_with_pg03_behind(&cluster);
    assert_eq!(cluster.sql("pg03", "select to_regclass('acknowledged') is null"), "t");
    let promoted = cluster.act("pg03", "promote").with(0);
    for event in ["agent.election.catch_up", "agent.election.caught_up"] {
        assert!(promoted.stderr.contains(event), "{event}: {}", promoted.stderr);
    }
    assert_eq!(cluster.sql("pg03", "select count(*) from acknowledged"), "1000");

    // Nothing of this election is left for the next.
    for node in ["pg01", "pg02", "pg03"] {
        assert_eq!(cluster.attribute(node, "Postgresql-quorum"), None, "{node}");
    }
    assert_eq!(cluster.attribute("pg01", "Postgresql-data-status").as_deref(), Some("DISCONNECT"));
    cluster.crash("pg03");
    cluster.set_attribute("pg02", "master-Postgresql", "1000");
    let refused = cluster.act("pg02", "promote").with(1);
    assert!(refused.reason().contains("pg03 may"), "{}", refused.reason());
}

#[test]
fn the_most_advanced_member_is_promoted_at_once() {
    let cluster = three();
    lost_with_pg03_behind(&cluster);
    // Figures of an earlier election, and of a node that nobody can ask, do not count.
    cluster.set_attribute("pg03", "Postgresql-master-baseline", "00000000FF000000");
    cluster.set_attribute("pg03", "Postgresql-shutdown-lsn", "1:00000000FF000000");
    cluster.set_attribute("pg01", "Postgresql-shutdown-lsn", "2:00000000FF000000");
    cluster.set_attribute("pg03", "master-Postgresql", "1000");
    let promoted = cluster.act("pg02", "promote").with(0);
    assert!(promoted.stderr.contains("agent.promote.without"), "{}", promoted.stderr);
    assert!(!promoted.stderr.contains("agent.election.catch_up"), "{}", promoted.stderr);
    assert_eq!(cluster.sql("pg02", "select count(*) from acknowledged"), "1000");
    follows(&cluster, "pg02", "pg03");
    // The first monitor of the new primary takes the marks of stopped ones away.
    settle(&cluster, "pg02", "1 of pg03 on timeline 3");
    assert_eq!(cluster.attribute("pg03", "Postgresql-shutdown-lsn"), None);
    cluster.act("pg01", "start").with(0);
    follows(&cluster, "pg02", "pg01");
    settle(&cluster, "pg02", "1 of pg01,pg03 on timeline 3");
    assert_eq!(cluster.attribute("pg01", "Postgresql-quorum"), None);
}

#[test]
fn too_few_seen_is_a_bounded_refusal_that_names_them_and_heals() {
    let cluster = three();
    cluster.crash("pg03");
    cluster.crash("pg01");
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg01", "stop").with(0);
    let patience = [("OCF_RESKEY_CRM_meta_timeout", "9000")];
    let refused = cluster.act_with("pg02", "promote", &patience).with(1);
    assert!(refused.took < Duration::from_secs(9), "{:?}", refused.took);
    let reason = refused.reason();
    for part in ["pg03 (", "Start one of them, or pg01", "crm_attribute -N pg02", "2 of these"] {
        assert!(reason.contains(part), "{part}: {reason}");
    }
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("-INFINITY"));
    let waits = cluster.act("pg02", "monitor").with(0);
    assert!(waits.stderr.contains("agent.election.wait"), "{}", waits.stderr);

    cluster.act("pg03", "start").with(0);
    assert_eq!(cluster.attribute("pg03", "master-Postgresql").as_deref(), Some("100"));
    cluster.act("pg02", "monitor").with(0);
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
    cluster.act("pg02", "promote").with(0);
}

#[test]
fn a_lost_member_neither_blocks_the_others_nor_is_promoted_itself() {
    let cluster = three();
    cluster.crash("pg03");
    settle(&cluster, "pg01", "1 of pg02 on timeline 2");
    attributes(&cluster, "pg03", "HS:quorum", "DISCONNECT", "-INFINITY");
    cluster.sql("pg01", "create table acknowledged as select 1 as n");
    cluster.crash("pg01");
    cluster.act("pg03", "stop").with(0);
    cluster.act("pg03", "start").with(0);
    // A score that was set in a race.
    cluster.set_attribute("pg03", "master-Postgresql", "1000");
    let refused = cluster.act("pg03", "promote").with(1);
    assert!(refused.reason().contains("pg01 may"), "{}", refused.reason());
    cluster.crash("pg03");
    cluster.act("pg02", "promote").with(0);
    assert_eq!(cluster.sql("pg02", "select n from acknowledged"), "1");
}

#[test]
fn in_a_switchover_the_last_primary_stands_for_an_absent_member() {
    let cluster = three();
    cluster.crash("pg03");
    let demoted = cluster.act("pg01", "demote").with(0);
    assert!(!demoted.stderr.contains("agent.demote.undo"), "{}", demoted.stderr);
    assert!(cluster.attribute("pg01", "Postgresql-shutdown-lsn").is_some());
    cluster.act("pg02", "promote").with(0);
    cluster.act("pg02", "monitor").with(8);
    assert_eq!(cluster.attribute("pg01", "Postgresql-shutdown-lsn"), None);
    follows(&cluster, "pg02", "pg01");
    settle(&cluster, "pg02", "1 of pg01 on timeline 3");
}

#[test]
fn a_switchover_with_all_members_changes_no_attribute_before_the_promotion() {
    let cluster = three();
    cluster.forget_calls();
    let demoted = cluster.act("pg01", "demote").with(0);
    let changes = cluster.calls();
    let changes: Vec<_> = changes.iter().filter(|call| !call.contains("--query")).collect();
    assert!(changes.is_empty(), "{changes:#?}");
    cluster.forget_calls();
    let slow = cluster.path("slow-writes");
    fs::write(&slow, "").expect("written");
    cluster.act("pg02", "promote").with(0);
    fs::remove_file(slow).expect("removed");
    eprintln!("demote {:?}", demoted.took);
    // Should it die on the way, somebody has a claim all the time.
    let calls = cluster.calls();
    let changes: Vec<_> = calls.iter().filter(|call| !call.contains("--query")).collect();
    assert!(changes.len() > 1 && changes[0].contains("LATEST"), "{changes:#?}");
    assert!(!changes[1..].iter().any(|call| call.contains("LATEST")), "{changes:#?}");
    cluster.act("pg02", "monitor").with(8);
    follows(&cluster, "pg02", "pg01");
    follows(&cluster, "pg02", "pg03");
    settle(&cluster, "pg02", "1 of pg01,pg03 on timeline 3");
}

#[test]
fn a_member_that_was_promoted_by_hand_is_not_taken_for_promoted() {
    let cluster = three();
    cluster.sql("pg02", "select pg_promote()");
    cluster.crash("pg01");
    let refused = cluster.act("pg02", "promote").with(1);
    assert!(refused.reason().contains("without having been promoted"), "{}", refused.reason());
    let claim = cluster.attribute("pg02", "Postgresql-data-status");
    assert_eq!(claim.as_deref(), Some("STREAMING|QUORUM"));
}

#[test]
fn after_all_nodes_restarted_claims_decide_and_members_are_elected() {
    let cluster = three();
    lost_with_pg03_behind(&cluster);
    cluster.crash("pg02");
    cluster.crash("pg03");
    cluster.forget_transient_attributes();
    cluster.act("pg03", "start").with(0);
    assert_eq!(cluster.attribute("pg03", "master-Postgresql").as_deref(), Some("-INFINITY"));
    cluster.act("pg02", "start").with(0);
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
    // A member that has just started may not answer in time.
    eventually(SECONDS, "pg03 comes after pg02", || {
        cluster.act("pg03", "monitor").with(0);
        cluster.attribute("pg03", "master-Postgresql").as_deref() == Some("10")
    });
    cluster.act("pg01", "start").with(0);
    assert_eq!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("50"));
    cluster.act("pg01", "promote").with(0);
    assert_eq!(cluster.sql("pg01", "select count(*) from acknowledged"), "1000");
    assert_eq!(cluster.attribute("pg01", "Postgresql-quorum"), None);
}

#[test]
fn the_mode_changes_while_the_cluster_runs() {
    let mut cluster = three();
    let mut switch = |mode: &str, names: &[&str], words: [[&str; 2]; 2]| {
        cluster.parameters.insert("rep_mode", mode.to_owned());
        for node in ["pg02", "pg03"] {
            cluster.act(node, "monitor").with(0);
        }
        eventually(SECONDS, mode, || {
            cluster.act("pg01", "monitor").with(8);
            let value = |node, name| cluster.attribute(node, name).unwrap_or_default();
            ["pg02", "pg03"].iter().zip(words).all(|(node, [status, score])| {
                value(node, "Postgresql-status") == status
                    && value(node, "master-Postgresql") == score
            }) && names.contains(&cluster.sql("pg01", "show synchronous_standby_names").as_str())
        });
        cluster.sql("pg01", &format!("create table in_{mode}_{} ()", names[0].len()));
        cluster.attribute("pg01", "Postgresql-quorum")
    };
    let quorum = [["HS:quorum", "100"]; 2];
    let any = "ANY 1 (\"pg02\",\"pg03\")";
    let claim = Some("1 of pg02,pg03 on timeline 2".to_owned());
    let sync = [["HS:sync", "100"], ["HS:potential", "-INFINITY"]];
    assert_eq!(switch("sync", &["\"pg02\""], sync), None);
    assert_eq!(switch("quorum", &[any], quorum), claim);
    assert_eq!(switch("async", &[""], [["HS:async", "100"]; 2]), None);
    cluster.sql("pg01", "drop table in_quorum_21");
    let mut again = |mode: &str, names: &str| {
        cluster.parameters.insert("rep_mode", mode.to_owned());
        eventually(SECONDS, mode, || {
            cluster.act("pg01", "monitor").with(8);
            cluster.sql("pg01", "show synchronous_standby_names") == names
        });
    };
    again("quorum", any);
    settle(&cluster, "pg01", "1 of pg02,pg03 on timeline 2");
    attributes(&cluster, "pg03", "HS:quorum", "STREAMING|QUORUM", "100");
}

#[test]
fn a_strict_quorum_blocks_writes_until_enough_standbys_are_back() {
    let mut cluster = three();
    cluster.parameters.insert("strict", "true".to_owned());
    cluster.parameters.insert("quorum_standbys", "2".to_owned());
    settle(&cluster, "pg01", "2 of pg02,pg03 on timeline 2");
    cluster.crash("pg03");
    cluster.act("pg01", "monitor").with(8);
    let names = cluster.sql("pg01", "show synchronous_standby_names");
    assert_eq!(names, "ANY 2 (\"pg02\",\"pg03\")");
    assert_eq!(cluster.attribute("pg03", "master-Postgresql").as_deref(), Some("100"));
    let mut write = cluster
        .psql("pg01", "create table blocked ()")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("psql");
    eventually(SECONDS, "the write waits for a standby", || {
        let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
        cluster.sql("pg01", waits) == "1"
    });
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(write.try_wait().expect("psql"), None, "one standby is not enough");
    cluster.act("pg03", "stop").with(0);
    cluster.act("pg03", "start").with(0);
    eventually(SECONDS, "the write ends", || write.try_wait().expect("psql").is_some());
}

#[test]
fn an_asynchronous_standby_gets_what_others_hold_before_it_is_promoted() {
    let mut cluster = three();
    cluster.parameters.insert("rep_mode", "async".to_owned());
    eventually(SECONDS, "both are asynchronous", || {
        cluster.act("pg01", "monitor").with(8);
        ["pg02", "pg03"]
            .iter()
            .all(|node| cluster.attribute(node, "Postgresql-status").as_deref() == Some("HS:async"))
    });
    cut_off_pg03(&cluster);
    cluster.sql("pg01", "create table written as select generate_series(1, 1000) as n");
    let demoted = cluster.act("pg01", "demote").with(0);
    assert!(!demoted.stderr.contains("agent.demote.undo"), "{}", demoted.stderr);
    let mark = cluster.attribute("pg01", "Postgresql-shutdown-lsn");
    assert!(mark.is_some(), "{}", demoted.stderr);
    let promoted = cluster.act("pg03", "promote").with(0);
    assert!(promoted.stderr.contains("agent.election.caught_up"), "{}", promoted.stderr);
    assert_eq!(cluster.sql("pg03", "select count(*) from written"), "1000");
    cluster.act("pg03", "monitor").with(8);
    assert_eq!(cluster.attribute("pg01", "Postgresql-shutdown-lsn"), None);
    follows(&cluster, "pg03", "pg02");
}

#[test]
fn a_standby_that_is_stopped_lets_the_primary_go_first() {
    let cluster = Cluster::pair();
    let ended = std::thread::scope(|scope| {
        let stopped = scope.spawn(|| cluster.act("pg02", "stop"));
        eventually(SECONDS, "pg02 says that it goes", || {
            cluster.attribute("pg02", "Postgresql-status").as_deref() == Some("STOP")
        });
        cluster.act("pg01", "monitor").with(8);
        stopped.join().expect("no panic")
    });
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
    let when = |node: &str, what: &str| {
        let log = fs::read_to_string(cluster.path(&format!("{node}.log"))).expect("a log");
        let line = log.lines().rfind(|line| line.contains(what)).expect(what);
        line.split(" UTC").next().unwrap_or_default().to_owned()
    };
    let let_go = when("pg01", "\"synchronous_standby_names\" changed to \"\"");
    assert!(let_go <= when("pg02", "fast shutdown request"), "nobody waits for pg02 by then");
    assert!(!ended.stderr.contains("agent.stop.awaited"), "{}", ended.stderr);
    ended.with(0);
    cluster.sql("pg01", "create table nobody_waits ()");
    attributes(&cluster, "pg02", "STOP", "DISCONNECT", "");
    // Whoever does not let go is not waited for too long.
    cluster.act("pg02", "start").with(0);
    cluster.settle("pg01", "pg02");
    let ended = cluster.act("pg02", "stop").with(0);
    assert!(ended.stderr.contains("agent.stop.awaited"), "{}", ended.stderr);
    assert!(fs::exists(cluster.path("pg02-data")).expect("readable"));
}
