//! A planned change of primary, action by action.

use std::{fs, time::Duration};

use nix::sys::signal::Signal;

use super::{
    PROBE, SECONDS, attributes,
    cluster::{Cluster, address, eventually},
    follows,
};

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

#[test]
fn a_server_that_was_started_past_pacemaker_takes_no_right_of_the_primarys() {
    let mut cluster = Cluster::pair();
    cluster.parameters.insert("rewind", "true".to_owned());
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg02", "promote").with(0);
    follows(&cluster, "pg02", "pg01");
    cluster.settle("pg02", "pg01");
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg02", "monitor").with(8);
    let told = || {
        ["pg01", "pg02"].map(|node| {
            ["Postgresql-status", "Postgresql-data-status", "master-Postgresql"]
                .map(|name| cluster.attribute(node, name))
        })
    };
    let before = told();
    // As a distribution's own service does after a reboot.
    cluster.start_as_primary("pg01");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(told(), before);
    cluster.act("pg01", "demote").with(0);
    assert_eq!(told(), before);
    cluster.act_with("pg01", "monitor", PROBE).with(7);

    cluster.start_as_primary("pg01");
    cluster.act("pg01", "start").with(0);
    follows(&cluster, "pg02", "pg01");
    assert_eq!(cluster.sql("pg01", "select pg_is_in_recovery()"), "t");
    assert_eq!(told()[1], before[1]);
}

#[test]
fn a_standby_that_was_promoted_by_hand_takes_no_right_of_the_primarys() {
    for strict in ["false", "true"] {
        let mut cluster = Cluster::pair();
        cluster.parameters.insert("strict", strict.to_owned());
        cluster.parameters.insert("rewind", "true".to_owned());
        cluster.sql("pg02", "select pg_promote()");
        let claim = || cluster.attribute("pg01", "Postgresql-data-status");
        let score = || cluster.attribute("pg01", "master-Postgresql");
        let refused = cluster.act("pg02", "monitor").with(8);
        assert!(refused.stderr.contains("pg01 is the primary"), "{}", refused.stderr);
        assert_eq!((claim().as_deref(), score().as_deref()), (Some("LATEST"), Some("1000")));
        cluster.act("pg01", "monitor").with(8);
        cluster.act("pg02", "demote").with(0);
        assert_eq!((claim().as_deref(), score().as_deref()), (Some("LATEST"), Some("1000")));
        cluster.act("pg02", "start").with(0);
        follows(&cluster, "pg01", "pg02");
    }
}

#[test]
fn where_a_restored_backup_was_to_end_no_standby_ends() {
    let cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    let auto = cluster.data("pg02").join("postgresql.auto.conf");
    let old = fs::read_to_string(&auto).expect("copied");
    fs::write(&auto, format!("{old}recovery_target_time = '2020-01-01 00:00:00+00'\n"))
        .expect("written");
    // With this file beside it somebody recovers to there.
    let signal = cluster.data("pg02").join("recovery.signal");
    fs::write(&signal, "").expect("written");
    let refused = cluster.act("pg02", "start").with(1);
    assert!(refused.reason().contains("recovery_target_time = '2020"), "{}", refused.reason());
    fs::remove_file(signal).expect("removed");
    let started = cluster.act("pg02", "start").with(0);
    assert!(started.stderr.contains("agent.start.target"), "{}", started.stderr);
    cluster.settle("pg01", "pg02");
    cluster.sql("pg01", "create table t as select 1 as n");
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg02", "promote").with(0);
    assert_eq!(cluster.sql("pg02", "select count(*) from t"), "1");
}

#[test]
fn files_in_another_encoding_are_read_and_kept() {
    let cluster = Cluster::pair();
    let comment = b"# Gr\xfc\xdfe\n";
    let files = ["pg01", "pg02"].map(|node| {
        ["postgresql.conf", "postgresql.auto.conf"].map(|file| cluster.data(node).join(file))
    });
    for file in files.as_flattened() {
        let old = fs::read(file).expect("there");
        fs::write(file, [comment, &old[..]].concat()).expect("written");
    }
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg02", "promote").with(0);
    follows(&cluster, "pg02", "pg01");
    cluster.settle("pg02", "pg01");
    for file in files.as_flattened() {
        let kept = fs::read(file).expect("there");
        assert!(kept.starts_with(comment), "{}", file.display());
    }
}

/// How Pacemaker comes to have no transient attributes in the CIB while Postgres goes on. It only probes then.
type Loss = fn(&Cluster);

/// In maintenance mode it is restarted, and nobody knows them any more; or a controller dies alone.
const LOSSES: [(&str, Loss); 2] = [
    ("restarted", Cluster::forget_transient_attributes),
    ("without controller", Cluster::lose_transient_attributes),
];

#[test]
fn a_probe_keeps_a_primary_promoted_whose_score_was_lost() {
    for (loss, lose) in LOSSES {
        let cluster = Cluster::pair();
        lose(&cluster);
        cluster.act_with("pg01", "monitor", PROBE).with(8);
        let score = cluster.attribute("pg01", "master-Postgresql");
        assert_eq!(score.as_deref(), Some("1000"), "{loss}");
        let told = cluster.attribute("pg01", "Postgresql-address");
        assert_eq!(told, Some(address("pg01")), "{loss}");
    }
}

#[test]
fn a_probe_of_a_standby_gives_it_no_score() {
    let cluster = Cluster::pair();
    cluster.forget_transient_attributes();
    cluster.act_with("pg02", "monitor", PROBE).with(0);
    assert_eq!(cluster.attribute("pg02", "master-Postgresql"), None);
}

#[test]
fn a_switchover_is_proven_although_pacemaker_lost_all_transient_attributes() {
    for (loss, lose) in LOSSES {
        eprintln!("{loss}");
        let cluster = Cluster::pair();
        lose(&cluster);
        cluster.act("pg02", "monitor").with(0);
        cluster.settle("pg01", "pg02");
        attributes(&cluster, "pg02", "HS:sync", "STREAMING|SYNC", "100");
        let demoted = cluster.act("pg01", "demote").with(0);
        assert!(demoted.stderr.contains("agent.demote.proven"), "{}", demoted.stderr);
    }
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
    assert_eq!(calls.len(), 2, "clients wait for each of these: {calls:#?}");

    cluster.act("pg02", "monitor").with(8);
    attributes(&cluster, "pg02", "PRI", "LATEST", "1000");
    assert_ne!(cluster.attribute("pg01", "master-Postgresql").as_deref(), Some("1000"));
    assert_ne!(cluster.attribute("pg01", "Postgresql-status").as_deref(), Some("PRI"));
    let baseline = cluster.attribute("pg02", "Postgresql-master-baseline").expect("set");
    let history = fs::read_to_string(cluster.data("pg02").join("pg_wal/00000003.history"));
    let history = history.expect("there");
    let began = history.lines().last().and_then(|line| line.split_whitespace().nth(1));
    let began = began.and_then(|began| began.strip_prefix("0/"));
    assert_eq!(began.map(|began| format!("{began:0>16}")), Some(baseline), "{history}");
}

#[test]
fn a_demoted_primary_leaves_the_second_after_to_its_heir() {
    let cluster = Cluster::pair();
    cluster.act("pg01", "demote").with(0);
    cluster.forget_calls();
    let demoted = std::time::Instant::now();
    cluster.act("pg01", "monitor").with(0);
    let took = demoted.elapsed();
    assert!(took < Duration::from_secs(1), "this machine took {took:?} for a monitor");
    assert_eq!(cluster.calls(), [""; 0], "clients wait, and it asks and tells");
}

#[test]
fn a_standby_that_is_no_heir_leaves_the_second_after_a_demotion_to_the_heir() {
    let cluster = Cluster::pair();
    cluster.add("pg03");
    eventually(SECONDS, "pg03 is known as one that nobody waits for", || {
        cluster.act("pg01", "monitor").with(8);
        cluster.attribute("pg03", "Postgresql-status").as_deref() == Some("HS:potential")
    });
    // A demoted primary would serve it as a standby, with nothing to send.
    cluster.refuse_replication("pg01");
    cluster.act("pg01", "demote").with(0);
    eventually(SECONDS, "pg03 has lost its primary", || {
        cluster.sql("pg03", "select count(*) from pg_stat_wal_receiver") == "0"
    });
    cluster.forget_calls();
    let monitored = std::thread::scope(|scope| {
        let monitor = scope.spawn(|| cluster.act("pg03", "monitor").with(0));
        std::thread::sleep(Duration::from_millis(500));
        let calls = cluster.calls();
        assert!(calls.len() <= 1, "clients wait, and it asks and tells: {calls:#?}");
        monitor.join().expect("ended")
    });
    assert!(monitored.took >= Duration::from_secs(1), "{:?}", monitored.took);
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
fn a_notified_standby_follows_the_new_primary_at_once() {
    let cluster = Cluster::pair();
    cluster.add("pg03");
    follows(&cluster, "pg01", "pg03");
    cluster.act("pg01", "demote").with(0);
    cluster.act_with("pg02", "promote", &[("OCF_RESKEY_CRM_meta_notify", "true")]).with(0);
    let post = [
        ("OCF_RESKEY_CRM_meta_notify_type", "post"),
        ("OCF_RESKEY_CRM_meta_notify_operation", "promote"),
    ];
    cluster.act_with("pg03", "notify", &post).with(0);
    let conninfo = fs::read_to_string(cluster.data("pg03").join("pgcm.conf")).expect("written");
    assert!(conninfo.contains(&format!("host={}", address("pg02"))), "{conninfo}");
    follows(&cluster, "pg02", "pg03");
}
