//! Replication slots: WAL survives for those who need it, and for nobody else.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    SECONDS,
    cluster::{Cluster, eventually, version},
    follows,
};

/// Nothing but slots keeps WAL.
const CONFIG: &str = "wal_keep_size = 0\nmin_wal_size = '32MB'\nmax_wal_size = '64MB'\n";

/// How long the server may take to copy a logical slot: it sleeps up to 30 s between looks.
const COPIED: Duration = Duration::from_secs(100);

fn cluster_of(standbys: &[&str], parameters: &[(&'static str, &str)], config: &str) -> Cluster {
    let mut cluster = Cluster::new();
    for (name, value) in parameters {
        cluster.parameters.insert(name, (*value).to_owned());
    }
    cluster.configure("pg01", &format!("{CONFIG}{config}"));
    cluster.act("pg01", "start").with(0);
    cluster.act("pg01", "promote").with(0);
    cluster.act("pg01", "monitor").with(8);
    for standby in standbys {
        cluster.add(standby);
        follows(&cluster, "pg01", standby);
    }
    cluster.settle("pg01", "pg02");
    cluster
}

fn slots(cluster: &Cluster, node: &str, condition: &str) -> String {
    cluster.sql(
        node,
        &format!(
            "select coalesce(string_agg(slot_name, ' ' order by slot_name), '') \
             from pg_replication_slots where {condition}"
        ),
    )
}

/// Lets WAL grow by `segments` files of 16 MB.
fn grow(cluster: &Cluster, primary: &str, segments: u32) {
    for _ in 0..segments {
        cluster.sql(primary, "select pg_logical_emit_message(false, 'grow', 'by a file')");
        cluster.sql(primary, "select pg_switch_wal()");
    }
    cluster.sql(primary, "checkpoint");
}

/// Whether a standby was told that the WAL it needs is gone.
fn lacks_wal(cluster: &Cluster, standby: &str) -> bool {
    let log = fs::read_to_string(cluster.path(&format!("{standby}.log"))).expect("a log");
    log.contains("has already been removed")
}

/// Waits until a standby has what its primary wrote, or never will.
fn catches_up(cluster: &Cluster, primary: &str, standby: &str) {
    let position = cluster.sql(primary, "select pg_current_wal_flush_lsn()");
    eventually(SECONDS, &format!("{standby} has replayed"), || {
        cluster.sql(standby, &format!("select pg_last_wal_replay_lsn() >= '{position}'")) == "t"
            || lacks_wal(cluster, standby)
    });
}

/// Lets a standby forget the WAL that it may forget.
fn forget_wal(cluster: &Cluster, primary: &str, standby: &str) {
    catches_up(cluster, primary, standby);
    cluster.sql(standby, "checkpoint");
}

/// How many bytes of WAL a slot keeps.
fn keeps(cluster: &Cluster, node: &str, slot: &str) -> i64 {
    let now = "case when pg_is_in_recovery() then pg_last_wal_replay_lsn() \
               else pg_current_wal_lsn() end";
    let kept = cluster.sql(
        node,
        &format!(
            "select pg_wal_lsn_diff({now}, restart_lsn)::bigint from pg_replication_slots \
             where slot_name = '{slot}'"
        ),
    );
    kept.parse().unwrap_or_else(|_| panic!("{slot} on {node} keeps `{kept}`"))
}

fn switch_over(cluster: &Cluster, old: &str, new: &str) {
    cluster.act(old, "demote").with(0);
    cluster.act(new, "promote").with(0);
    cluster.act(new, "monitor").with(8);
}

fn slots_everywhere(cluster: &Cluster, primary: &str, standbys: [&str; 2]) {
    eventually(SECONDS, "every node keeps a slot for each other node", || {
        cluster.act(primary, "monitor").with(8);
        for standby in standbys {
            cluster.act(standby, "monitor").with(0);
        }
        let active = standbys.map(|node| format!("pgcm_{node}")).join(" ");
        let [one, other] = standbys;
        let reserved = "restart_lsn is not null";
        let kept = |a: &str, b: &str| {
            let mut names = [format!("pgcm_{a}"), format!("pgcm_{b}")];
            names.sort();
            names.join(" ")
        };
        slots(cluster, primary, "active") == active
            && slots(cluster, one, reserved) == kept(primary, other)
            && slots(cluster, other, reserved) == kept(primary, one)
    });
}

#[test]
fn every_node_keeps_a_slot_for_each_other_one_before_and_after_a_switchover() {
    let on = [("replication_slots", "true")];
    let cluster = cluster_of(&["pg02", "pg03"], &on, "");
    slots_everywhere(&cluster, "pg01", ["pg02", "pg03"]);
    cluster.forget_calls();
    cluster.act("pg01", "monitor").with(8);
    cluster.act("pg02", "monitor").with(0);
    let calls = cluster.calls();
    assert_eq!(calls.len(), 2, "quiet monitors only read the CIB: {calls:?}");

    switch_over(&cluster, "pg01", "pg02");
    for standby in ["pg01", "pg03"] {
        follows(&cluster, "pg02", standby);
    }
    slots_everywhere(&cluster, "pg02", ["pg01", "pg03"]);
}

/// Whether pg03 streams from pg02 after it was away while pg02 became the primary and wrote.
fn comes_back_to_the_new_primary(parameters: &[(&'static str, &str)]) -> bool {
    let cluster = cluster_of(&["pg02", "pg03"], parameters, "");
    for _ in 0..2 {
        cluster.act("pg01", "monitor").with(8);
        cluster.act("pg02", "monitor").with(0);
        cluster.act("pg03", "monitor").with(0);
    }
    cluster.act("pg03", "stop").with(0);
    for _ in 0..5 {
        // The standby that is there shall not lack WAL.
        cluster.sql("pg01", "select pg_switch_wal() from pg_logical_emit_message(false, 'a', 'b')");
        catches_up(&cluster, "pg01", "pg02");
    }
    cluster.sql("pg01", "checkpoint");
    cluster.act("pg02", "monitor").with(0);
    forget_wal(&cluster, "pg01", "pg02");
    if lacks_wal(&cluster, "pg02") {
        // Without slots a standby that is a little slow may be too late as well.
        return false;
    }
    switch_over(&cluster, "pg01", "pg02");
    grow(&cluster, "pg02", 5);
    cluster.act("pg03", "start").with(0);
    let mut streams = false;
    eventually(SECONDS, "pg03 streams, or WAL is missing", || {
        cluster.act("pg03", "monitor").with(0);
        let query = "select count(*) from pg_stat_replication where application_name = 'pg03' \
                     and state = 'streaming' and replay_lsn = pg_current_wal_lsn()";
        streams = cluster.sql("pg02", query) == "1";
        streams || lacks_wal(&cluster, "pg03")
    });
    streams
}

#[test]
fn a_standby_that_was_away_finds_its_wal_on_the_new_primary() {
    assert!(comes_back_to_the_new_primary(&[("replication_slots", "true")]));
}

#[test]
fn without_slots_the_new_primary_has_removed_that_wal() {
    assert!(!comes_back_to_the_new_primary(&[]));
}

#[test]
fn a_former_primary_keeps_no_rows_for_its_former_standbys() {
    let on = [("replication_slots", "true")];
    let config = "hot_standby_feedback = on\nwal_receiver_status_interval = '1s'\n";
    let cluster = cluster_of(&["pg02"], &on, config);
    slots_everywhere_pair(&cluster);
    eventually(SECONDS, "pg02 gives feedback", || {
        slots(&cluster, "pg01", "xmin is not null") == "pgcm_pg02"
    });
    switch_over(&cluster, "pg01", "pg02");
    assert_eq!(slots(&cluster, "pg01", "xmin is not null"), "pgcm_pg02");
    follows(&cluster, "pg02", "pg01");
    eventually(SECONDS, "pg01 keeps no rows by its slots", || {
        cluster.act("pg01", "monitor").with(0);
        slots(&cluster, "pg01", "xmin is not null or catalog_xmin is not null").is_empty()
    });
    assert_eq!(slots(&cluster, "pg01", "restart_lsn is not null"), "pgcm_pg02");
}

#[test]
fn slots_on_a_standby_move_with_their_nodes_and_wait_for_an_absent_one() {
    let on = [("replication_slots", "true")];
    let cluster = cluster_of(&["pg02", "pg03"], &on, "");
    slots_everywhere(&cluster, "pg01", ["pg02", "pg03"]);
    let moved = |slot: &str| {
        eventually(SECONDS, &format!("{slot} moves on pg02"), || {
            cluster.act("pg02", "monitor").with(0);
            keeps(&cluster, "pg02", slot) < 2 * 16 * 1024 * 1024
        });
    };
    grow(&cluster, "pg01", 6);
    forget_wal(&cluster, "pg01", "pg03");
    forget_wal(&cluster, "pg01", "pg02");
    moved("pgcm_pg01");
    moved("pgcm_pg03");

    cluster.act("pg03", "stop").with(0);
    grow(&cluster, "pg01", 6);
    forget_wal(&cluster, "pg01", "pg02");
    moved("pgcm_pg01");
    let kept = keeps(&cluster, "pg02", "pgcm_pg03");
    assert!(kept >= 6 * 16 * 1024 * 1024, "{kept} bytes for the node that is away");
}

#[test]
fn the_slot_of_a_node_that_left_goes_and_foreign_slots_stay() {
    let on = [("replication_slots", "true")];
    let cluster = cluster_of(&["pg02"], &on, "");
    for foreign in ["backup", "pgcmx", "reports_pgcm_pg03"] {
        let create = format!("select pg_create_physical_replication_slot('{foreign}', true)");
        cluster.sql("pg01", &create);
    }
    cluster.sql("pg01", "select pg_create_physical_replication_slot('pgcm_pg01', true)");
    cluster.act("pg01", "monitor").with(8);
    let foreign = "backup pgcm_pg02 pgcmx reports_pgcm_pg03";
    let with_pg03 = "backup pgcm_pg02 pgcm_pg03 pgcmx reports_pgcm_pg03";
    assert_eq!(slots(&cluster, "pg01", "true"), with_pg03);

    cluster.remove_node("pg03");
    fs::write(cluster.path("quorum"), "0").expect("written");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(slots(&cluster, "pg01", "true"), with_pg03, "no quorum, no certainty");
    fs::remove_file(cluster.path("quorum")).expect("removed");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(slots(&cluster, "pg01", "true"), foreign);
}

#[test]
fn a_lost_standby_costs_no_more_wal_than_allowed_and_is_named() {
    let on = [("replication_slots", "true"), ("slot_wal_limit", "32MB"), ("rewind", "true")];
    let cluster = cluster_of(&["pg02"], &on, "");
    cluster.act("pg02", "stop").with(0);
    cluster.act("pg01", "monitor").with(8);
    grow(&cluster, "pg01", 12);
    let on_disk = cluster.sql("pg01", "select sum(size) from pg_ls_waldir()");
    let on_disk: u64 = on_disk.parse().expect("a sum");
    assert!(on_disk < 8 * 16 * 1024 * 1024, "{on_disk} bytes of WAL");

    let ended = cluster.act("pg01", "monitor").with(8);
    for word in ["agent.slots.lost", "pg02", "pg_basebackup", "pgcm_pg02"] {
        assert!(ended.stderr.contains(word), "{word}: {}", ended.stderr);
    }
    assert_eq!(slots(&cluster, "pg01", "wal_status = 'lost'"), "");
    let again = cluster.act("pg01", "monitor").with(8);
    assert!(!again.stderr.contains("agent.slots.lost"), "once is enough: {}", again.stderr);

    cluster.act("pg02", "start").with(0);
    cluster.act("pg01", "monitor").with(8);
    eventually(SECONDS, "pg02 says that it has to be made anew", || {
        let said = cluster.act("pg02", "monitor").with(0).stderr;
        said.contains("agent.slots.behind") && said.contains("pg_basebackup")
    });
    // It goes on asking, and that alone is no news.
    let again = cluster.act("pg01", "monitor").with(8);
    assert!(!again.stderr.contains("agent.slots.lost"), "{}", again.stderr);
}

#[test]
fn slots_go_when_they_are_switched_off_and_come_back_before_they_are_named() {
    let on = [("replication_slots", "true")];
    let mut cluster = cluster_of(&["pg02"], &on, "");
    slots_everywhere_pair(&cluster);
    cluster.parameters.remove("replication_slots");
    eventually(SECONDS, "no slot is left", || {
        cluster.act("pg02", "monitor").with(0);
        cluster.act("pg01", "monitor").with(8);
        ["pg01", "pg02"]
            .iter()
            .all(|node| slots(&cluster, node, "slot_name <> 'pgcm_pg03'").is_empty())
    });
    assert_eq!(cluster.sql("pg02", "show primary_slot_name"), "");
    follows(&cluster, "pg01", "pg02");

    // The standby is first: it makes its slot on the primary itself.
    cluster.parameters.insert("replication_slots", "true".to_owned());
    cluster.act("pg02", "monitor").with(0);
    eventually(SECONDS, "pg02 streams with its slot", || {
        slots(&cluster, "pg01", "active") == "pgcm_pg02"
    });
    let log = fs::read_to_string(cluster.path("pg02.log")).expect("a log");
    assert!(!log.contains("replication slot \"pgcm_pg02\" does not exist"), "{log}");
}

fn slots_everywhere_pair(cluster: &Cluster) {
    eventually(SECONDS, "both have a slot for the other", || {
        cluster.act("pg01", "monitor").with(8);
        cluster.act("pg02", "monitor").with(0);
        slots(cluster, "pg01", "active") == "pgcm_pg02"
            && slots(cluster, "pg02", "restart_lsn is not null") == "pgcm_pg01"
    });
}

const LOGICAL: [(&str, &str); 2] = [("replication_slots", "true"), ("sync_logical_slots", "true")];

#[test]
fn servers_that_cannot_copy_logical_slots_are_not_told_to() {
    // Before 17 they would not start, some of 17 would end while wal_level is too low.
    let cluster = cluster_of(&["pg02"], &LOGICAL, "wal_level = replica\n");
    for node in ["pg01", "pg02"] {
        let text = fs::read_to_string(cluster.data(node).join("pgcm.conf")).expect("written");
        for setting in ["sync_replication_slots", "synchronized_standby_slots"] {
            assert!(!text.contains(setting), "{text}");
        }
        assert_eq!(text.contains("hot_standby_feedback"), version() >= 17, "{text}");
    }
}

/// Reads what the logical slot has for its consumer, and remembers it.
fn consume(cluster: &Cluster, node: &str, seen: &mut Vec<u32>) {
    let changes =
        cluster.sql(node, "select data from pg_logical_slot_get_changes('cdc', null, null)");
    let inserted = changes.lines().filter(|line| line.contains("INSERT"));
    let number = |line: &str| line.rsplit("n[integer]:").next()?.trim().parse::<u32>().ok();
    seen.extend(inserted.filter_map(number));
}

#[test]
fn a_logical_failover_slot_survives_a_switchover_there_and_back() {
    let cluster = cluster_of(&["pg02"], &LOGICAL, "wal_level = logical\n");
    if version() < 17 {
        // Nothing to survive: the parameter is ignored, and the cluster works.
        follows(&cluster, "pg01", "pg02");
        return;
    }
    cluster.sql("pg01", "create table t (n integer)");
    let create = "select pg_create_logical_replication_slot('cdc', 'test_decoding', \
                  failover => true)";
    cluster.sql("pg01", create);
    let (mut written, mut seen) = (0, Vec::new());
    let mut write = |node: &str| {
        written += 1;
        cluster.sql(node, &format!("insert into t values ({written})"));
        written
    };
    for (old, new) in [("pg01", "pg02"), ("pg02", "pg01"), ("pg01", "pg02")] {
        eventually(COPIED, &format!("{new} has a copy of the slot"), || {
            cluster.act(old, "monitor").with(8);
            cluster.act(new, "monitor").with(0);
            write(old);
            consume(&cluster, old, &mut seen);
            cluster.sql(old, "select pg_log_standby_snapshot()");
            slots(&cluster, new, "synced and not temporary and failover") == "cdc"
        });
        let waits_for = cluster.sql(old, "show synchronized_standby_slots");
        assert_eq!(waits_for, format!("pgcm_{new}"));
        cluster.settle(old, new);
        // Nobody has read this one when the role moves.
        write(old);
        switch_over(&cluster, old, new);
        write(new);
        follows(&cluster, new, old);
        cluster.settle(new, old);
        consume(&cluster, new, &mut seen);
    }
    let last = write("pg02");
    consume(&cluster, "pg02", &mut seen);
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, (1..=last).collect::<Vec<u32>>(), "every change was seen");
}

#[test]
fn a_logical_consumer_never_overtakes_the_standby_nor_holds_up_a_switchover() {
    let cluster = cluster_of(&["pg02"], &LOGICAL, "wal_level = logical\n");
    if version() < 17 {
        follows(&cluster, "pg01", "pg02");
        return;
    }
    cluster.sql("pg01", "create table t (n integer)");
    cluster.sql(
        "pg01",
        "select pg_create_logical_replication_slot('cdc', 'test_decoding', failover => true)",
    );
    eventually(SECONDS, "the consumer has to wait for pg02", || {
        cluster.act("pg01", "monitor").with(8);
        cluster.sql("pg01", "show synchronized_standby_slots") == "pgcm_pg02"
    });
    let file = cluster.path("changes");
    let mut consumer = cluster.consumer("pg01", "cdc", &file).spawn().expect("pg_recvlogical");
    let told = |n: u32| {
        let text = fs::read_to_string(&file).unwrap_or_default();
        text.contains(&format!("n[integer]:{n}\n"))
    };
    cluster.sql("pg01", "insert into t values (1)");
    eventually(SECONDS, "the consumer hears of a change", || told(1));

    let walreceiver = cluster.sql("pg02", "select pid from pg_stat_wal_receiver");
    let pid = Pid::from_raw(walreceiver.parse().expect("a pid"));
    kill(pid, Signal::SIGSTOP).expect("stopped");
    cluster.sql("pg01", "set synchronous_commit = local; insert into t values (2)");
    // The first one took a fraction of this.
    std::thread::sleep(Duration::from_secs(2));
    let early = told(2);
    kill(pid, Signal::SIGCONT).expect("continued");
    assert!(!early, "the consumer heard of what the standby did not have");
    eventually(SECONDS, "the consumer hears of it with the standby", || told(2));

    let demoted = cluster.act("pg01", "demote").with(0);
    assert!(demoted.stderr.contains("agent.demote.proven"), "{}", demoted.stderr);
    cluster.act("pg02", "promote").with(0);
    let _ = consumer.kill();
    consumer.wait().expect("ended");
}
