//! What a server that died leaves, and how it comes back.

use std::{fs, process::Stdio, time::Duration};

use nix::sys::signal::Signal;

use super::{
    PROBE, SECONDS,
    cluster::{Cluster, address, eventually},
    follows,
};

#[test]
fn backends_without_a_postmaster_are_neither_running_nor_left_behind() {
    let cluster = Cluster::pair();
    let query = "select count(*) from generate_series(1, 3000000000) n";
    let mut busy = cluster.psql("pg01", query).stderr(Stdio::null()).spawn().expect("psql");
    eventually(SECONDS, "the query runs", || {
        cluster.sql("pg01", "select count(*) from pg_stat_activity where query like '%3000000000%'")
            == "2"
    });
    cluster.signal("pg01", Signal::SIGKILL);
    std::thread::sleep(Duration::from_millis(300));
    let ended = cluster.act("pg01", "monitor").with(1);
    assert!(ended.reason().contains("backends"), "{}", ended.reason());
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg01", "monitor").with(7);
    let _ = busy.wait();
}

#[test]
fn a_foreign_process_with_the_old_pid_does_not_stop_a_start() {
    let cluster = Cluster::new();
    #[expect(clippy::disallowed_methods, reason = "any process of the same user will do")]
    let mut stranger = std::process::Command::new("runuser")
        .args(["-u", "postgres", "--", "sleep", "60"])
        .spawn()
        .expect("runuser");
    let text = format!("{}\n{}\n1\n5432\n", stranger.id(), cluster.data("pg01").display());
    fs::write(cluster.data("pg01").join("postmaster.pid"), text).expect("written");
    cluster.act_with("pg01", "monitor", PROBE).with(7);
    cluster.act("pg01", "start").with(0);
    stranger.kill().expect("killed");
    stranger.wait().expect("ended");
}

#[test]
fn a_crashed_primary_with_nothing_of_its_own_comes_back_as_a_standby() {
    let cluster = Cluster::pair();
    cluster.sql("pg01", "create table t as select 1");
    cluster.crash("pg01");
    cluster.act("pg01", "monitor").with(7);
    cluster.act("pg01", "demote").with(0);
    assert_eq!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("-INFINITY"));
    cluster.act("pg01", "stop").with(0);
    // Received is not yet replayed; promotion replays everything.
    cluster.act("pg02", "promote").with(0);
    assert_eq!(cluster.attribute("pg01", "Postgresql-data-status").as_deref(), Some("DISCONNECT"));
    assert_eq!(cluster.sql("pg02", "select count(*) from t"), "1");
    cluster.act("pg01", "start").with(0);
    follows(&cluster, "pg02", "pg01");
    cluster.settle("pg02", "pg01");
}

#[test]
fn a_new_primary_that_dies_before_its_first_monitor_keeps_what_it_wrote() {
    let cluster = Cluster::pair();
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg02", "promote").with(0);
    assert_eq!(cluster.attribute("pg01", "Postgresql-status").as_deref(), Some("PRI"));
    // Clients commit, and the old primary, still called one, has not received it.
    cluster.refuse_replication("pg02");
    cluster.sql("pg02", "select pg_terminate_backend(pid) from pg_stat_replication");
    cluster.sql("pg02", "create table t as select 1");
    cluster.crash("pg02");
    cluster.act("pg02", "demote").with(0);
    cluster.act("pg02", "stop").with(0);
    cluster.act_with("pg02", "start", &[("OCF_RESKEY_rewind", "true")]).with(0);
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
    cluster.act("pg02", "promote").with(0);
    assert_eq!(cluster.sql("pg02", "select count(*) from t"), "1");
}

#[test]
fn a_crashed_primary_without_an_heir_is_ready_to_be_promoted_again() {
    let cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    cluster.act("pg01", "monitor").with(8);
    cluster.sql("pg01", "create table t as select 1");
    cluster.crash("pg01");
    cluster.act("pg01", "demote").with(0);
    assert_eq!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("1000"));
    cluster.act("pg01", "promote").with(0);
    assert_eq!(cluster.sql("pg01", "select count(*) from t"), "1");
}

#[test]
fn a_diverged_primary_stays_stopped_unless_it_may_be_rewound() {
    let mut cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    cluster.sql("pg01", "set synchronous_commit = local; create table only_here as select 1");
    cluster.crash("pg01");
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg02", "start").with(0);
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
    cluster.act("pg02", "promote").with(0);
    cluster.act("pg02", "monitor").with(8);
    cluster.sql("pg02", "create table only_there as select 1");
    let refused = cluster.act("pg01", "start").with(1);
    let reason = refused.reason();
    assert!(reason.contains("pg_rewind") && reason.contains(&address("pg02")), "{reason}");
    cluster.act("pg01", "monitor").with(7);

    cluster.parameters.insert("rewind", "true".to_owned());
    cluster.act("pg01", "start").with(0);
    follows(&cluster, "pg02", "pg01");
    assert_eq!(cluster.sql("pg01", "select count(*) from only_there"), "1");
    assert_eq!(cluster.sql("pg01", "select to_regclass('only_here') is null"), "t");
}

#[test]
fn a_running_standby_that_diverged_fails_its_monitor() {
    let cluster = Cluster::pair();
    // pg02 is promoted behind the agent's back of pg01, which becomes a standby by itself.
    cluster.sql("pg02", "select pg_promote()");
    cluster.sql("pg01", "set synchronous_commit = local; create table only_here as select 1");
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg01", "start").with(0);
    cluster.set_attribute("pg02", "Postgresql-status", "PRI");
    cluster.act("pg01", "monitor").with(0);
    eventually(SECONDS, "pg01 is found to have diverged", || {
        cluster.act("pg01", "monitor").reason().contains("cannot follow")
    });
    let found = cluster.act("pg01", "monitor").with(1).reason();
    assert!(found.contains("timeline 2"), "{found}");
}
