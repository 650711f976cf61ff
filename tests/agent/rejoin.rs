//! What a start does with data directories that somebody, or something, left half made.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::PathBuf,
    process::{Child, Stdio},
};

use super::{
    SECONDS,
    cluster::{Cluster, address, eventually, version},
    follows,
};

/// pg01 wrote what the new primary pg02 never had, and has stopped.
fn diverged() -> Cluster {
    let cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    cluster.sql("pg01", "set synchronous_commit = local; create table only_here as select 1");
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg02", "start").with(0);
    cluster.act("pg02", "promote").with(0);
    cluster.act("pg02", "monitor").with(8);
    cluster.sql(
        "pg02",
        "create table only_there as select repeat('x', 1000) from generate_series(1, 6000)",
    );
    cluster
}

fn mark(cluster: &Cluster) -> PathBuf {
    cluster.path("pg01-data.pgcm-rewind/mark")
}

/// Starts pg01 with a pg_rewind that is killed when it writes its first 2 MiB into one file.
fn cut_a_rewind_short(cluster: &mut Cluster) {
    cluster.parameters.insert("rewind", "true".to_owned());
    let script = "case $* in *--dry-run*) ;; *) ulimit -f 4096 ;; esac\nexec $REAL \"$@\"";
    let programs = cluster.programs_with("pg_rewind", script);
    let cut = cluster.act_with("pg01", "start", &[("OCF_RESKEY_bindir", &programs)]).with(1);
    assert!(cut.reason().starts_with("an unfinished pg_rewind"), "{}", cut.stderr);
    // Under the node's name the copy would pass for the standby.
    let copies = cut.commands().contains("application_name=pg_basebackup");
    assert!(copies, "{}", cut.stderr);
    let wal = fs::read_dir(cluster.data("pg01").join("pg_wal")).expect("listed");
    let emptied = wal.filter(|entry| {
        let entry = entry.as_ref().expect("listed");
        entry.metadata().expect("there").len() == 0
    });
    assert!(emptied.count() > 0, "pg_rewind was to be cut short after it emptied WAL");
    assert!(mark(cluster).exists());
}

/// Before Postgres 14 pg_rewind replaces the control file among the first; what was cut short then
/// cannot be told from another server's files, and is refused for good.
fn is_lost_for_good(cluster: &Cluster) -> bool {
    if version() >= 14 {
        return false;
    }
    let refused = cluster.act("pg01", "start").with(1);
    assert!(refused.reason().contains("was changed since"), "{}", refused.reason());
    assert!(cluster.data("pg01").join("PG_VERSION").exists(), "PGDATA is never deleted");
    true
}

fn rejoins(cluster: &Cluster) {
    follows(cluster, "pg02", "pg01");
    eventually(SECONDS, "pg01 has what pg02 wrote", || {
        cluster.sql("pg01", "select count(*) from only_there") == "6000"
    });
    assert_eq!(cluster.sql("pg01", "select to_regclass('only_here') is null"), "t");
    assert!(!cluster.path("pg01-data.pgcm-rewind").exists());
}

#[test]
fn a_rewind_that_was_cut_short_is_never_started_and_is_repeated() {
    let mut cluster = diverged();
    cut_a_rewind_short(&mut cluster);
    if is_lost_for_good(&cluster) {
        return;
    }
    cluster.act("pg01", "monitor").with(7);
    cluster.act("pg01", "promote").with(7);
    cluster.act("pg01", "stop").with(0);

    // Not without a primary, not where rewinding was forbidden since, not from a later timeline.
    cluster.set_attribute("pg02", "Postgresql-status", "STOP");
    let alone = cluster.act("pg01", "start").with(1);
    assert!(alone.reason().contains("no primary"), "{}", alone.reason());
    cluster.set_attribute("pg02", "Postgresql-status", "PRI");
    cluster.parameters.insert("rewind", "false".to_owned());
    let forbidden = cluster.act("pg01", "start").with(1);
    assert!(forbidden.reason().contains("rewind is false"), "{}", forbidden.reason());
    cluster.parameters.insert("rewind", "true".to_owned());

    cluster.act("pg01", "start").with(0);
    rejoins(&cluster);
}

#[test]
fn a_rewind_is_not_repeated_from_a_primary_that_came_later() {
    let mut cluster = diverged();
    cut_a_rewind_short(&mut cluster);
    if is_lost_for_good(&cluster) {
        return;
    }
    let text = fs::read_to_string(mark(&cluster)).expect("a mark");
    let (others, _) = text.split_once("source_timeline=").expect("a source");
    fs::write(mark(&cluster), format!("{others}source_timeline=1\n")).expect("written");
    let refused = cluster.act("pg01", "start").with(1);
    assert!(refused.reason().contains("from timeline 1 to"), "{}", refused.reason());
}

#[test]
fn a_rewind_that_was_cut_short_before_a_reboot_waits_for_a_base_backup() {
    let mut cluster = diverged();
    cut_a_rewind_short(&mut cluster);
    if is_lost_for_good(&cluster) {
        return;
    }
    let text = fs::read_to_string(mark(&cluster)).expect("a mark");
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id");
    fs::write(mark(&cluster), text.replace(boot.trim(), "another-boot")).expect("written");
    for _ in 0..2 {
        let refused = cluster.act("pg01", "start").with(1);
        assert!(refused.reason().contains("restarted since"), "{}", refused.reason());
    }
    assert!(cluster.data("pg01").join("PG_VERSION").exists(), "PGDATA is never deleted");

    // What the commands say.
    fs::rename(cluster.data("pg01"), cluster.path("pg01-data.old")).expect("moved");
    let mut copy = cluster.basebackup_from("pg02", "pg01", &["-N"]);
    assert!(copy.status().expect("pg_basebackup").success());
    cluster.act("pg01", "start").with(0);
    rejoins(&cluster);
}

#[test]
fn a_rewind_that_was_killed_while_it_synced_is_finished() {
    let mut cluster = diverged();
    cluster.parameters.insert("rewind", "true".to_owned());
    let script = "$REAL \"$@\" || exit\ncase $* in *--dry-run*) ;; *) kill -9 $$ ;; esac";
    let programs = cluster.programs_with("pg_rewind", script);
    cluster.act_with("pg01", "start", &[("OCF_RESKEY_bindir", &programs)]).with(1);
    assert!(mark(&cluster).exists());
    let finished = cluster.act("pg01", "start").with(0);
    assert!(finished.stderr.contains("agent.rewind.finish"), "{}", finished.stderr);
    rejoins(&cluster);
}

#[test]
fn a_rewind_that_is_not_possible_changes_nothing() {
    let mut cluster = diverged();
    cluster.parameters.insert("rewind", "true".to_owned());
    let programs =
        cluster.programs_with("pg_rewind", "echo 'pg_rewind: error: no rights' >&2; exit 1");
    let refused = cluster.act_with("pg01", "start", &[("OCF_RESKEY_bindir", &programs)]).with(1);
    assert!(refused.reason().contains("nothing changed"), "{}", refused.reason());
    assert!(refused.reason().contains("no rights"), "{}", refused.reason());
    assert!(!mark(&cluster).exists());
    cluster.act("pg01", "start").with(0);
    rejoins(&cluster);
}

/// Starts a slow pg_basebackup of pg01 for pg02 and waits until it has copied something.
fn begin_backup(cluster: &Cluster) -> Child {
    let mut backup = cluster.basebackup("pg02", &["-N", "--max-rate=2M"]);
    let child = backup.stderr(Stdio::null()).spawn().expect("pg_basebackup");
    eventually(SECONDS, "the backup has begun", || {
        cluster.data("pg02").join("PG_VERSION").exists()
    });
    child
}

fn lonely_primary() -> Cluster {
    let cluster = Cluster::new();
    cluster.act("pg01", "start").with(0);
    cluster.act("pg01", "promote").with(0);
    cluster.act("pg01", "monitor").with(8);
    cluster
}

#[track_caller]
fn refused_as(cluster: &Cluster, words: &str) {
    for _ in 0..2 {
        let refused = cluster.act("pg02", "start").with(1);
        assert!(refused.reason().contains(words), "{}", refused.reason());
        assert!(refused.commands().contains("pg_basebackup"), "{}", refused.stderr);
        assert!(refused.commands().contains(&address("pg01")), "{}", refused.stderr);
    }
    for (action, code) in [("promote", 7), ("demote", 0), ("monitor", 7), ("stop", 0)] {
        cluster.act("pg02", action).with(code);
    }
}

#[test]
fn a_base_backup_that_was_killed_is_refused() {
    let cluster = lonely_primary();
    let mut backup = begin_backup(&cluster);
    // While it runs it is waited for.
    let short = [("OCF_RESKEY_CRM_meta_timeout", "4000")];
    let process = || {
        let reason = cluster.act_with("pg02", "start", &short).with(1).reason();
        let pid = reason.split("pg_basebackup (process ").nth(1)?.split(')').next()?;
        pid.parse::<i32>().ok()
    };
    assert!(process().is_some(), "pg_basebackup is seen");
    backup.kill().expect("killed");
    backup.wait().expect("ended");
    // The process that receives WAL outlives the other, and would for ever.
    let orphan = nix::unistd::Pid::from_raw(process().expect("a process left behind"));
    nix::sys::signal::kill(orphan, nix::sys::signal::SIGKILL).expect("killed");
    eventually(SECONDS, "the process that receives WAL ends", || process().is_none());
    refused_as(&cluster, "half-finished base backup");
}

#[test]
fn a_base_backup_that_was_killed_while_it_waited_for_wal_is_refused() {
    let cluster = lonely_primary();
    assert!(cluster.basebackup("pg02", &["-N"]).status().expect("pg_basebackup").success());
    // The manifest gets its name when everything else is written and synced.
    let manifest = cluster.data("pg02").join("backup_manifest");
    fs::rename(&manifest, cluster.data("pg02").join("backup_manifest.tmp")).expect("renamed");
    refused_as(&cluster, "did not get to its end");
}

#[test]
fn a_base_backup_without_its_label_is_refused() {
    let cluster = lonely_primary();
    assert!(cluster.basebackup("pg02", &["-N"]).status().expect("pg_basebackup").success());
    fs::remove_file(cluster.data("pg02").join("backup_label")).expect("removed");
    refused_as(&cluster, "backup_label was removed");
}

#[test]
fn a_damaged_control_file_is_refused() {
    let cluster = lonely_primary();
    assert!(cluster.basebackup("pg02", &["-N"]).status().expect("pg_basebackup").success());
    let path = cluster.data("pg02").join("global/pg_control");
    let mut bytes = fs::read(&path).expect("a control file");
    bytes[40] ^= 1;
    fs::write(&path, &bytes).expect("written");
    refused_as(&cluster, "damaged");
    fs::write(&path, &bytes[..100]).expect("written");
    refused_as(&cluster, "damaged");
    fs::remove_file(&path).expect("removed");
    fs::remove_file(cluster.data("pg02").join("backup_label")).expect("removed");
    refused_as(&cluster, "global/pg_control is missing");
}

#[test]
fn a_base_backup_without_a_manifest_starts() {
    let cluster = lonely_primary();
    let mut backup = cluster.basebackup("pg02", &["-N", "--no-manifest"]);
    assert!(backup.status().expect("pg_basebackup").success());
    cluster.act("pg02", "start").with(0);
    cluster.settle("pg01", "pg02");
}

#[test]
fn a_base_backup_that_crashed_in_its_first_recovery_starts_again() {
    let cluster = lonely_primary();
    assert!(cluster.basebackup("pg02", &["-N"]).status().expect("pg_basebackup").success());
    // Nothing streams, so that the end of the backup is never reached.
    cluster.refuse_replication("pg01");
    for wal in fs::read_dir(cluster.data("pg02").join("pg_wal")).expect("listed") {
        let path = wal.expect("listed").path();
        if path.is_file() {
            fs::remove_file(path).expect("removed");
        }
    }
    let short = [("OCF_RESKEY_CRM_meta_timeout", "3000")];
    let waiting = cluster.act_with("pg02", "start", &short).with(1);
    assert!(!waiting.reason().is_empty());
    cluster.act("pg02", "monitor").with(0);
    cluster.crash("pg02");
    cluster.accept_replication("pg01");
    cluster.act("pg02", "start").with(0);
    cluster.settle("pg01", "pg02");
}

#[test]
fn a_failure_leaves_its_commands_for_pgcm_status_until_a_start_succeeds() {
    let cluster = lonely_primary();
    let note = cluster.path("pg02-state/pgcm-Postgresql.failure");
    cluster.act("pg02", "start").with(5);
    let text = fs::read_to_string(&note).expect("a note");
    let source = format!("host={}", address("pg01"));
    for words in
        ["\"node\":\"pg02\"", "\"action\":\"start\"", "does not exist", "pg_basebackup", &source]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
    // supervise runs as the user of Postgres.
    let postgres = nix::unistd::User::from_name("postgres").expect("users").expect("postgres");
    let found = fs::metadata(&note).expect("there");
    assert_eq!((found.uid(), found.mode() & 0o777), (postgres.uid.as_raw(), 0o640));
    cluster.act("pg02", "stop").with(0);
    assert!(note.exists(), "Pacemaker stops what it could not start");
    assert!(cluster.basebackup("pg02", &["-N"]).status().expect("pg_basebackup").success());
    cluster.act("pg02", "start").with(0);
    assert!(!note.exists());
}

#[test]
fn a_standby_with_more_wal_than_can_be_looked_through_starts_all_the_same() {
    let cluster = Cluster::pair();
    cluster.crash("pg02");
    let programs = cluster.programs_with("pg_waldump", "exec sleep 300");
    let slow = [("OCF_RESKEY_bindir", &*programs), ("OCF_RESKEY_CRM_meta_timeout", "20000")];
    let started = cluster.act_with("pg02", "start", &slow).with(0);
    assert!(started.stderr.contains("agent.rejoin.long"), "{}", started.stderr);
    follows(&cluster, "pg01", "pg02");
}
