//! A busy server is not a dead one.

use std::{process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{
    SECONDS,
    cluster::{Cluster, eventually},
};

/// As Pacemaker calls a monitor that has 10 s.
const MONITOR: &[(&str, &str)] =
    &[("OCF_RESKEY_CRM_meta_timeout", "10000"), ("OCF_RESKEY_CRM_meta_interval", "3000")];

fn pid_of(cluster: &Cluster, backend_type: &str) -> Pid {
    let query = format!("select pid from pg_stat_activity where backend_type = '{backend_type}'");
    Pid::from_raw(cluster.sql("pg01", &query).parse().expect("a pid"))
}

/// Stops `pid`, runs monitors for a while, and lets it go on.
fn monitors_while_stopped(cluster: &Cluster, pid: Pid, times: u32) {
    kill(pid, Signal::SIGSTOP).expect("stopped");
    let ended: Vec<_> = (0..times).map(|_| cluster.act_with("pg01", "monitor", MONITOR)).collect();
    kill(pid, Signal::SIGCONT).expect("continued");
    for ended in ended {
        assert!(ended.took < Duration::from_secs(9), "{:?}", ended.took);
        ended.with(8);
    }
}

#[test]
fn a_primary_out_of_ordinary_slots_still_lets_go_of_a_lost_standby() {
    let cluster = Cluster::pair();
    cluster.sql("pg01", "create role app login");
    let mut sleepers = Vec::new();
    eventually(SECONDS, "all ordinary slots are taken", || {
        let psql = |query| {
            let mut psql = cluster.psql("pg01", query);
            psql.args(["-U", "app"]).stdout(Stdio::null());
            psql
        };
        sleepers.push(psql("select pg_sleep(60)").stderr(Stdio::null()).spawn().expect("psql"));
        let output = psql("select 1").output().expect("psql");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        // Before 16 and since then.
        said.contains("reserved for")
    });
    cluster.crash("pg02");
    let ended = cluster.act_with("pg01", "monitor", MONITOR).with(8);
    assert!(!ended.stderr.contains("agent.monitor.busy"), "{}", ended.stderr);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("-INFINITY"));
    for sleeper in &mut sleepers {
        sleeper.kill().expect("killed");
        sleeper.wait().expect("ended");
    }
}

#[test]
fn a_stopped_backend_with_a_lock_demotes_nobody_and_stops_no_duty() {
    let cluster = Cluster::pair();
    cluster.sql("pg01", "create table t as select 1 as n");
    let mut holder = cluster.psql("pg01", "begin; lock table t; select pg_sleep(600)");
    let mut holder = holder.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("psql");
    let find = "select max(pid) from pg_locks where relation = 't'::regclass and granted";
    eventually(SECONDS, "the lock is held", || !cluster.sql("pg01", find).is_empty());
    let pid = Pid::from_raw(cluster.sql("pg01", find).parse().expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("stopped");
    cluster.act_with("pg01", "monitor", MONITOR).with(8);
    cluster.crash("pg02");
    cluster.act_with("pg01", "monitor", MONITOR).with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
    kill(pid, Signal::SIGCONT).expect("continued");
    holder.kill().expect("killed");
    holder.wait().expect("ended");
}

#[test]
fn a_checkpointer_or_walwriter_that_hangs_demotes_nobody() {
    let cluster = Cluster::pair();
    for backend_type in ["checkpointer", "walwriter", "background writer"] {
        monitors_while_stopped(&cluster, pid_of(&cluster, backend_type), 2);
    }
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
}

#[test]
fn a_postmaster_that_hangs_demotes_nobody() {
    let cluster = Cluster::pair();
    let pid = Pid::from_raw(cluster.pid("pg01").expect("a postmaster"));
    monitors_while_stopped(&cluster, pid, 2);
    cluster.act("pg01", "monitor").with(8);
    let standby = Pid::from_raw(cluster.pid("pg02").expect("a postmaster"));
    kill(standby, Signal::SIGSTOP).expect("stopped");
    let ended = cluster.act_with("pg02", "monitor", MONITOR);
    kill(standby, Signal::SIGCONT).expect("continued");
    ended.with(0);
}

#[test]
fn a_demote_does_not_restart_a_standby() {
    let cluster = Cluster::pair();
    let before = cluster.pid("pg02");
    cluster.act("pg02", "demote").with(0);
    assert_eq!(cluster.pid("pg02"), before);
}

#[test]
fn a_busy_primary_is_not_demoted() {
    let cluster = Cluster::pair();
    let mut sleepers = Vec::new();
    eventually(SECONDS, "all slots are taken", || {
        // One more each time: a look may itself hold the slot that a sleeper wanted.
        let mut psql = cluster.psql("pg01", "select pg_sleep(60)");
        psql.stdout(Stdio::null()).stderr(Stdio::null());
        sleepers.push(psql.spawn().expect("psql"));
        let output = cluster.psql("pg01", "select 1").output().expect("psql");
        String::from_utf8_lossy(&output.stderr).contains("too many clients")
    });
    cluster.act("pg01", "monitor").with(8);
    for sleeper in &mut sleepers {
        sleeper.kill().expect("killed");
        sleeper.wait().expect("ended");
    }
    cluster.signal("pg01", Signal::SIGSTOP);
    let ended = cluster.act_with(
        "pg01",
        "monitor",
        &[("OCF_RESKEY_CRM_meta_timeout", "4000"), ("OCF_RESKEY_CRM_meta_interval", "3000")],
    );
    cluster.signal("pg01", Signal::SIGCONT);
    assert!(ended.took < Duration::from_secs(4), "{:?}", ended.took);
    ended.with(8);
    cluster.act("pg01", "monitor").with(8);
}

#[test]
fn a_busy_standby_is_not_taken_for_a_primary() {
    let cluster = Cluster::pair();
    cluster.signal("pg02", Signal::SIGSTOP);
    let ended = cluster.act_with("pg02", "monitor", &[("OCF_RESKEY_CRM_meta_timeout", "4000")]);
    cluster.signal("pg02", Signal::SIGCONT);
    ended.with(0);
    cluster.act("pg02", "monitor").with(0);
}
