//! The resource agent's actions against real Postgres instances, without a cluster around them.
//!
//! Pacemaker's tools work on a CIB in a file. Runs as root, as the agent does.

mod busy;
mod cluster;
mod conformance;
mod cost;
mod matrix;
mod quorum;
mod rejoin;
mod slots;
mod tail;
mod validation;

use std::{fs, process::Stdio, time::Duration};

use cluster::{Cluster, address, eventually};
use nix::sys::signal::Signal;

const PROBE: &[(&str, &str)] = &[("OCF_RESKEY_CRM_meta_interval", "0")];
const SECONDS: Duration = Duration::from_secs(20);

#[track_caller]
fn attributes(cluster: &Cluster, node: &str, status: &str, data: &str, score: &str) {
    let value = |name| cluster.attribute(node, name).unwrap_or_default();
    assert_eq!(
        [value("Postgresql-status"), value("Postgresql-data-status"), value("master-Postgresql")],
        [status, data, score],
        "{node}"
    );
}

/// Waits until `node` streams from a server that is not in recovery.
fn follows(cluster: &Cluster, primary: &str, node: &str) {
    let query = format!(
        "select count(*) from pg_stat_replication where application_name = '{node}' \
         and state = 'streaming'"
    );
    eventually(SECONDS, &format!("{node} streams from {primary}"), || {
        cluster.act(node, "monitor").with(0);
        cluster.sql(primary, &query) == "1"
    });
}

#[test]
fn a_virgin_cluster_gets_its_first_primary_and_a_synchronous_standby() {
    let cluster = Cluster::new();
    cluster.act_with("pg01", "monitor", PROBE).with(7);
    cluster.act("pg01", "start").with(0);
    cluster.act_with("pg01", "monitor", PROBE).with(0);
    attributes(&cluster, "pg01", "HS:alone", "LATEST", "1000");
    cluster.act("pg01", "promote").with(0);
    cluster.act_with("pg01", "monitor", PROBE).with(8);
    cluster.act("pg01", "monitor").with(8);
    attributes(&cluster, "pg01", "PRI", "LATEST", "1000");
    let baseline = cluster.attribute("pg01", "Postgresql-master-baseline").expect("set");
    assert!(baseline.len() == 16 && baseline.chars().all(|c| c.is_ascii_hexdigit()), "{baseline}");

    cluster.add("pg02");
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("-INFINITY"));
    cluster.settle("pg01", "pg02");
    attributes(&cluster, "pg02", "HS:sync", "STREAMING|SYNC", "100");
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "\"pg02\"");

    cluster.add("pg03");
    follows(&cluster, "pg01", "pg03");
    cluster.act("pg01", "monitor").with(8);
    attributes(&cluster, "pg03", "HS:potential", "STREAMING|POTENTIAL", "-INFINITY");
    cluster.forget_calls();
    cluster.act("pg01", "monitor").with(8);
    let calls = cluster.calls();
    assert_eq!(calls.len(), 1, "a quiet monitor only reads the CIB: {calls:?}");
}

#[test]
fn every_action_from_the_stopped_and_the_missing_state() {
    let cluster = Cluster::new();
    for (action, code) in [("monitor", 7), ("demote", 0), ("promote", 7), ("stop", 0), ("stop", 0)]
    {
        cluster.act("pg01", action).with(code);
    }
    for (action, code) in
        [("monitor", 7), ("start", 5), ("stop", 0), ("notify", 0), ("validate-all", 0)]
    {
        cluster.act("pg03", action).with(code);
    }
    let missing = cluster.act("pg03", "start");
    assert!(missing.reason().contains("pg_basebackup"), "{}", missing.reason());
    cluster.act_with("pg03", "validate-all", &[("OCF_CHECK_LEVEL", "10")]).with(5);
    cluster.act_with("pg01", "validate-all", &[("OCF_CHECK_LEVEL", "10")]).with(0);
    cluster.act("pg01", "no-such-action").with(3);
    cluster.act("pg01", "meta-data").with(0);
    cluster.act_with("pg01", "start", &[("OCF_RESKEY_rep_mode", "perhaps")]).with(6);
}

#[test]
fn a_data_directory_of_somebody_else_is_not_started() {
    let cluster = Cluster::new();
    let version = cluster.data("pg01").join("PG_VERSION");
    std::os::unix::fs::chown(&version, Some(0), Some(0)).expect("chown");
    let ended = cluster.act("pg01", "start").with(4);
    assert!(ended.reason().contains("chown"), "{}", ended.reason());
}

#[test]
fn actions_can_be_repeated() {
    let cluster = Cluster::pair();
    for (node, action) in
        [("pg01", "start"), ("pg01", "promote"), ("pg02", "start"), ("pg02", "demote")]
    {
        cluster.act(node, action).with(0);
    }
    cluster.act("pg01", "monitor").with(8);
    cluster.act("pg02", "monitor").with(0);
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg01", "monitor").with(7);
    assert_eq!(cluster.attribute("pg01", "Postgresql-status").as_deref(), Some("STOP"));
    assert_eq!(cluster.attribute("pg01", "master-Postgresql"), None);
}

#[test]
fn a_switchover_there_and_back_brings_the_old_primary_back_at_once() {
    let cluster = Cluster::pair();
    cluster.sql("pg01", "create table t as select generate_series(1, 1000) as n");
    for (old, new) in [("pg01", "pg02"), ("pg02", "pg01")] {
        cluster.sql(old, "checkpoint");
        cluster.sql(new, "checkpoint");
        let demoted = cluster.act(old, "demote").with(0);
        assert!(demoted.stderr.contains("agent.demote.proven"), "{}", demoted.stderr);
        let promoted = cluster.act(new, "promote").with(0);
        eprintln!("demote {:?}, promote {:?}", demoted.took, promoted.took);
        cluster.act(new, "monitor").with(8);
        assert_eq!(cluster.sql(new, "select count(*) from t"), "1000");
        assert_eq!(cluster.attribute(new, "Postgresql-data-status").as_deref(), Some("LATEST"));
        assert_eq!(cluster.attribute(old, "Postgresql-shutdown-lsn"), None);
        follows(&cluster, new, old);
        cluster.settle(new, old);
        attributes(&cluster, old, "HS:sync", "STREAMING|SYNC", "100");
    }
    let begun = std::time::Instant::now();
    cluster.act("pg01", "monitor").with(8);
    eprintln!("monitor {:?}", begun.elapsed());
}

/// A promotion in which writes of claims take half a second, with the calls of Pacemaker's tools; each
/// shows the history of the new timeline as it was then, which is there once the promotion has begun.
fn slow_promotion(cluster: &Cluster, node: &str, timeline: &str) -> Vec<String> {
    fs::write(cluster.path("slow-writes"), "").expect("written");
    cluster.forget_calls();
    let history = cluster.data(node).join("pg_wal").join(timeline).display().to_string();
    assert!(!std::path::Path::new(&history).exists(), "{history}");
    cluster.act_with(node, "promote", &[("PGCM_TEST_WITNESS", &history)]).with(0);
    assert!(std::path::Path::new(&history).exists(), "{history}");
    fs::remove_file(cluster.path("slow-writes")).expect("removed");
    cluster.calls()
}

#[test]
fn a_promotion_begins_once_the_claims_are_in_the_cib_and_tells_the_rest_later() {
    let cluster = Cluster::pair();
    cluster.act("pg01", "demote").with(0);
    let calls = slow_promotion(&cluster, "pg02", "00000003.history");
    let ends =
        |call: &&String| call.contains("--node pg01") && call.contains("--update=DISCONNECT");
    let end = calls.iter().find(ends).unwrap_or_else(|| panic!("no end of a claim: {calls:#?}"));
    assert!(end.ends_with("[]"), "the promotion had begun: {end}");
    // Its own claim is complete: who was synchronous holds everything.
    assert_eq!(
        cluster.attribute("pg02", "Postgresql-data-status").as_deref(),
        Some("STREAMING|SYNC")
    );
    assert_eq!(calls.len(), 4, "clients wait for each of these: {calls:#?}");
    assert_eq!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("-INFINITY"));

    cluster.act("pg02", "monitor").with(8);
    attributes(&cluster, "pg02", "PRI", "LATEST", "1000");
    assert_ne!(cluster.attribute("pg01", "Postgresql-status").as_deref(), Some("PRI"));
    let baseline = cluster.attribute("pg02", "Postgresql-master-baseline").expect("set");
    let history = fs::read_to_string(cluster.data("pg02").join("pg_wal/00000003.history"));
    let history = history.expect("there");
    let began = history.lines().last().and_then(|line| line.split_whitespace().nth(1));
    let began = began.and_then(|began| began.strip_prefix("0/"));
    assert_eq!(began.map(|began| format!("{began:0>16}")), Some(baseline), "{history}");
}

#[test]
fn a_primary_whose_standby_misses_the_last_bytes_goes_on_as_primary() {
    let cluster = Cluster::pair();
    // Nobody streams any more, so that nothing keeps the shutdown from being clean.
    cluster.refuse_replication("pg01");
    cluster.sql("pg01", "select pg_terminate_backend(pid) from pg_stat_replication");
    eventually(SECONDS, "pg02 streams no more", || {
        cluster.sql("pg01", "select count(*) from pg_stat_replication") == "0"
    });
    cluster.sql("pg01", "set synchronous_commit = local; create table last_bytes as select 1");
    let demoted = cluster.act("pg01", "demote").with(0);
    for event in ["agent.demote.unproven", "agent.demote.undo"] {
        assert!(demoted.stderr.contains(event), "{}", demoted.stderr);
    }
    attributes(&cluster, "pg02", "HS:sync", "DISCONNECT", "-INFINITY");
    assert_eq!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("1000"));

    cluster.act("pg01", "promote").with(0);
    cluster.accept_replication("pg01");
    follows(&cluster, "pg01", "pg02");
    cluster.settle("pg01", "pg02");
    assert_eq!(cluster.sql("pg01", "select count(*) from last_bytes"), "1");
    eventually(SECONDS, "pg02 has the last bytes", || {
        cluster.sql("pg02", "select to_regclass('last_bytes') is not null") == "t"
    });
}

#[test]
fn a_shutdown_cut_short_after_its_checkpoint_is_judged_by_position_too() {
    let cluster = Cluster::pair();
    cluster.sql("pg01", "create table t as select generate_series(1, 1000) as n");
    let walreceiver = cluster.sql("pg02", "select pid from pg_stat_wal_receiver");
    let pid = nix::unistd::Pid::from_raw(walreceiver.parse().expect("a pid"));
    nix::sys::signal::kill(pid, Signal::SIGSTOP).expect("stopped");
    // The shutdown waits for the standby's receipt, so that it has to be cut short.
    let ended = cluster.act_with("pg01", "demote", &[("OCF_RESKEY_CRM_meta_timeout", "6000")]);
    nix::sys::signal::kill(pid, Signal::SIGCONT).expect("continued");
    for event in ["agent.shutdown.escalate", "agent.demote.unproven", "agent.demote.undo"] {
        assert!(ended.stderr.contains(event), "{event}: {}", ended.stderr);
    }
    ended.with(0);
    attributes(&cluster, "pg02", "HS:sync", "DISCONNECT", "-INFINITY");
    assert_eq!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("1000"));
    cluster.act("pg01", "promote").with(0);
    assert_eq!(cluster.sql("pg01", "select count(*) from t"), "1000");
    cluster.settle("pg01", "pg02");
}

#[test]
fn a_standby_behind_a_stopped_primary_is_not_promoted() {
    let cluster = Cluster::pair();
    cluster.act("pg01", "stop").with(0);
    cluster.set_attribute("pg01", "Postgresql-shutdown-lsn", "2:00000000FF000000");
    let ended = cluster.act("pg02", "promote").with(1);
    assert!(ended.reason().contains("pg01 stopped at 0/FF000000"), "{}", ended.reason());
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("-INFINITY"));
    cluster.act("pg02", "monitor").with(0);
}

#[test]
fn without_quorum_the_primary_goes_on_waiting_for_a_lost_standby() {
    let cluster = Cluster::pair();
    cluster.crash("pg02");
    fs::write(cluster.path("quorum"), "0").expect("written");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "\"pg02\"");
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
    fs::remove_file(cluster.path("quorum")).expect("removed");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
}

#[test]
fn a_primary_that_loses_quorum_while_it_revokes_goes_on_waiting() {
    let cluster = Cluster::pair();
    cluster.crash("pg02");
    fs::write(cluster.path("quorum-after-write"), "0").expect("written");
    cluster.act("pg01", "monitor").with(8);
    assert!(!cluster.path("quorum-after-write").exists(), "nothing was revoked");
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "\"pg02\"");
    fs::remove_file(cluster.path("quorum")).expect("removed");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
}

#[test]
fn a_revocation_that_no_other_node_has_seen_does_not_count() {
    let cluster = Cluster::pair();
    let before = fs::read(cluster.path("cib.xml")).expect("there");
    cluster.crash("pg02");
    fs::write(cluster.path("cib-of-pg03"), before).expect("written");
    fs::write(cluster.path("cib-of-pg02"), "").expect("written");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.attribute("pg02", "Postgresql-data-status").as_deref(), Some("DISCONNECT"));
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "\"pg02\"");
    fs::remove_file(cluster.path("cib-of-pg03")).expect("removed");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
}

#[test]
fn a_lost_standby_is_unpromotable_in_the_cib_before_the_primary_stops_waiting() {
    let cluster = Cluster::pair();
    cluster.crash("pg02");
    cluster.forget_calls();
    cluster.act("pg01", "monitor").with(8);
    let calls = cluster.calls();
    let at = |what: &str| {
        let found = calls.iter().position(|call| call.contains(what));
        found.unwrap_or_else(|| panic!("no call with {what}: {calls:#?}"))
    };
    let waits = |call: &String| call.contains("synchronous_standby_names = '\"pg02\"'");
    let revoked = at("master-Postgresql --update=-INFINITY --node pg02");
    let written = at("--update=DISCONNECT");
    let confirmed = calls.iter().skip(written + 1).position(|call| call.contains("--query"));
    assert!(waits(&calls[revoked]) && waits(&calls[written]), "{calls:#?}");
    assert!(waits(&calls[written + 1 + confirmed.expect("confirmed")]), "{calls:#?}");
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
    cluster.sql("pg01", "create table nobody_waits ()");
    attributes(&cluster, "pg02", "HS:sync", "DISCONNECT", "-INFINITY");
}

#[test]
fn a_strict_primary_blocks_rather_than_runs_alone() {
    let mut cluster = Cluster::pair();
    cluster.parameters.insert("strict", "true".to_owned());
    cluster.crash("pg02");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "\"pg02\"");
    assert_eq!(cluster.attribute("pg02", "master-Postgresql").as_deref(), Some("100"));
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

#[test]
fn demoting_a_standby_leaves_it_running() {
    let cluster = Cluster::pair();
    let pid = cluster.pid("pg02");
    cluster.act("pg02", "demote").with(0);
    assert_eq!(cluster.pid("pg02"), pid);
}

#[test]
fn a_stray_standby_signal_does_not_keep_a_primary_from_being_demoted() {
    let cluster = Cluster::pair();
    fs::write(cluster.data("pg01").join("standby.signal"), "").expect("written");
    let pid = cluster.pid("pg01");
    cluster.act("pg01", "demote").with(0);
    assert_ne!(cluster.pid("pg01"), pid);
    assert_eq!(cluster.sql("pg01", "select pg_is_in_recovery()"), "t");
}

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
    cluster.act("pg02", "monitor").with(8);
    cluster.act("pg01", "start").with(0);
    follows(&cluster, "pg02", "pg01");
    cluster.settle("pg02", "pg01");
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

#[test]
fn a_notified_standby_follows_the_new_primary_at_once() {
    let cluster = Cluster::pair();
    cluster.add("pg03");
    follows(&cluster, "pg01", "pg03");
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg02", "promote").with(0);
    let post = [
        ("OCF_RESKEY_CRM_meta_notify_type", "post"),
        ("OCF_RESKEY_CRM_meta_notify_operation", "promote"),
    ];
    cluster.act_with("pg03", "notify", &post).with(0);
    let conninfo = fs::read_to_string(cluster.data("pg03").join("pgcm.conf")).expect("written");
    assert!(conninfo.contains(&format!("host={}", address("pg02"))), "{conninfo}");
    follows(&cluster, "pg02", "pg03");
}
