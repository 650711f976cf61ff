//! Data directories with which Postgres ends at every start.

use std::fs;

use super::{
    SECONDS,
    cluster::{Cluster, command, eventually, run},
    follows,
};

/// pg03 replayed what pg01 never got to its synchronous standby pg02, and has stopped; then pg01 died, and
/// pg02 is the primary. The WAL of pg03 ends with a whole segment, and so without a trace of its end.
fn ahead_of_the_heir() -> Cluster {
    let cluster = Cluster::pair();
    cluster.add("pg03");
    follows(&cluster, "pg01", "pg03");
    cluster.act("pg02", "stop").with(0);
    cluster.sql("pg01", "set synchronous_commit = local; create table only_here as select 1");
    cluster.sql("pg01", "checkpoint");
    let end = cluster.sql("pg01", "select pg_switch_wal()");
    let replayed = format!("select pg_last_wal_replay_lsn() >= '{end}'");
    eventually(SECONDS, "pg03 has all of it", || cluster.sql("pg03", &replayed) == "t");
    cluster.sql("pg03", "checkpoint");
    let last = cluster.sql("pg01", &format!("select pg_walfile_name('{end}')"));
    cluster.crash("pg01");
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg03", "stop").with(0);
    // What recycling may have made in advance is not always there.
    for entry in fs::read_dir(cluster.data("pg03").join("pg_wal")).expect("listed") {
        let entry = entry.expect("listed");
        let name = entry.file_name().into_string().expect("plain");
        if name.len() == last.len() && name > last {
            fs::remove_file(entry.path()).expect("removed");
        }
    }
    cluster.act("pg02", "start").with(0);
    cluster.act("pg02", "promote").with(0);
    cluster.act("pg02", "monitor").with(8);
    cluster.sql("pg02", "create table only_there as select 1");
    cluster
}

/// One of them may be what lets it read the key of its certificate, as in Debian's own configuration.
#[test]
fn a_server_is_started_in_all_groups_of_its_user() {
    let cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    let mut join = command("sh");
    join.args(["-c", "groupadd --force keepers && usermod --append --groups keepers postgres"]);
    run(join);
    cluster.act("pg02", "start").with(0);
    let pid = cluster.pid("pg02").expect("it runs");
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("readable");
    let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).expect("told");
    let keepers = nix::unistd::Group::from_name("keepers").expect("groups").expect("made");
    let is_member = groups.split_whitespace().any(|group| group == keepers.gid.to_string());
    assert!(is_member, "{keepers:?} is not among {groups}");
    // For commands that archive, as if pg_ctl had started it.
    let environment = fs::read(format!("/proc/{pid}/environ")).expect("readable");
    let environment = String::from_utf8_lossy(&environment).into_owned();
    let pgdata = format!("PGDATA={}", cluster.data("pg02").display());
    assert!(environment.split('\0').any(|variable| variable == pgdata), "{environment}");
}

#[test]
fn a_standby_that_replayed_more_than_the_new_primary_is_rewound_though_its_wal_has_no_end() {
    let mut cluster = ahead_of_the_heir();
    let refused = cluster.act("pg03", "start").with(1);
    assert!(refused.reason().starts_with("diverged from"), "{}", refused.stderr);
    assert!(refused.commands().contains("pg_rewind"), "{}", refused.stderr);

    cluster.parameters.insert("rewind", "true".to_owned());
    cluster.act("pg03", "start").with(0);
    follows(&cluster, "pg02", "pg03");
    eventually(SECONDS, "pg03 has what pg02 has", || {
        cluster.sql("pg03", "select to_regclass('only_there') is not null") == "t"
    });
    assert_eq!(cluster.sql("pg03", "select to_regclass('only_here') is null"), "t");
}

#[test]
fn a_server_that_ends_while_starting_is_heard_wherever_it_logs() {
    let mut cluster = Cluster::pair();
    cluster.act("pg02", "stop").with(0);
    // Nothing but the end of the whole server is known to Postgres for this.
    let slot = cluster.data("pg02").join("pg_replslot/broken");
    let postgres = nix::unistd::User::from_name("postgres").expect("users").expect("postgres");
    fs::create_dir(&slot).expect("created");
    fs::write(slot.join("state"), "").expect("written");
    for path in [&slot, &slot.join("state")] {
        let (uid, gid) = (postgres.uid.as_raw(), postgres.gid.as_raw());
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("chown");
    }
    let refused = |cluster: &Cluster| {
        let ended = cluster.act("pg02", "start").with(1);
        let reason = ended.reason();
        assert!(reason.starts_with("Postgres ended while starting: "), "{reason}");
        assert!(reason.contains("pg_replslot/broken/state"), "{reason}");
        for command in ["tail -n 50", "pg_basebackup", "--cleanup"] {
            assert!(ended.commands().contains(command), "{command}: {}", ended.commands());
        }
    };
    refused(&cluster);
    cluster.parameters.insert("logfile", "/dev/null".to_owned());
    cluster.configure("pg02", "logging_collector = on\nlog_directory = 'log'");
    refused(&cluster);

    fs::remove_dir_all(&slot).expect("removed");
    cluster.act("pg02", "start").with(0);
    follows(&cluster, "pg01", "pg02");
}

#[test]
fn a_standby_that_has_received_nothing_of_a_new_timeline_yet_starts() {
    let cluster = Cluster::pair();
    cluster.add("pg03");
    follows(&cluster, "pg01", "pg03");
    cluster.sql("pg01", "create table before as select 1");
    cluster.act("pg01", "demote").with(0);
    cluster.act("pg02", "promote").with(0);
    cluster.act("pg02", "monitor").with(8);
    cluster.act("pg03", "stop").with(0);
    cluster.sql("pg02", "create table after as select 1");
    // What a standby has that dies, or whose disk is full, when it has just made the new segment.
    let file = cluster.sql("pg02", "select pg_walfile_name(pg_current_wal_insert_lsn())");
    let wal = |node: &str| cluster.data(node).join("pg_wal");
    let history = format!("{}.history", &file[..8]);
    cluster.copy(&wal("pg02").join(&history), &wal("pg03").join(&history));
    cluster.copy(&wal("pg02").join(&file), &wal("pg03").join(&file));
    fs::write(wal("pg03").join(&file), vec![0; 16 << 20]).expect("written");

    let started = cluster.act("pg03", "start").with(0);
    assert!(started.stderr.contains("agent.start.hollow"), "{}", started.stderr);
    follows(&cluster, "pg02", "pg03");
    eventually(SECONDS, "pg03 has what was written meanwhile", || {
        cluster.sql("pg03", "select to_regclass('after') is not null") == "t"
    });
    assert!(wal("pg03").join("pgcm-divergent").join(&file).exists(), "nothing is deleted");

    // One that holds the beginning of its timeline stays.
    cluster.act("pg03", "stop").with(0);
    let again = cluster.act("pg03", "start").with(0);
    assert!(!again.stderr.contains("agent.start.hollow"), "{}", again.stderr);
    follows(&cluster, "pg02", "pg03");
}
