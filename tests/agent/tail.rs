//! A standby that received the beginning of a record which its primary never finished.

use std::{fs, os::unix::fs::FileExt, path::PathBuf, time::Duration};

use super::{
    SECONDS,
    cluster::{Cluster, eventually},
    follows,
};

const SEGMENT: u64 = 16 << 20;

fn segments(cluster: &Cluster, node: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(cluster.data(node).join("pg_wal")).expect("listed");
    entries.map(|entry| entry.expect("listed").path()).filter(|path| path.is_file()).collect()
}

/// pg01 died in the middle of a record that crosses the border of two segments; pg02 was sent the first
/// of them whole. Both run as standbys. Returns that segment's name, and where the record begins.
fn half_a_record() -> (Cluster, String, u64) {
    let cluster = Cluster::pair();
    cluster.sql("pg01", "create table before as select generate_series(1, 1000) as id");
    cluster.act("pg02", "stop").with(0);
    cluster.act("pg01", "monitor").with(8);
    let said = cluster.sql(
        "pg01",
        "select pg_walfile_name(pg_current_wal_insert_lsn()), pg_current_wal_insert_lsn() - '0/0',
         pg_logical_emit_message(false, 'x', repeat('x', 20 << 20))",
    );
    let columns: Vec<&str> = said.split('|').collect();
    let [name, begin, _] = columns[..] else { panic!("three columns: {said}") };
    let begin: u64 = begin.parse().expect("a position");
    assert_ne!(begin % SEGMENT, 0, "the record begins within a segment");
    cluster.crash("pg01");

    let path = |node: &str| cluster.data(node).join("pg_wal").join(name);
    cluster.copy(&path("pg01"), &path("pg02"));
    let file = fs::OpenOptions::new().write(true).open(path("pg01")).expect("a segment");
    let rest = usize::try_from(SEGMENT - begin % SEGMENT).expect("small");
    file.write_all_at(&vec![0; rest], begin % SEGMENT).expect("written");
    for later in segments(&cluster, "pg01") {
        if later.file_name().is_some_and(|file| file.len() == name.len() && *file > *name) {
            fs::remove_file(later).expect("removed");
        }
    }
    cluster.act("pg01", "stop").with(0);
    cluster.act("pg01", "start").with(0);
    cluster.act("pg02", "start").with(0);
    (cluster, name.to_owned(), begin)
}

#[test]
fn a_standby_with_half_a_record_fails_its_monitor_and_streams_after_a_start() {
    let (cluster, name, begin) = half_a_record();
    cluster.act("pg01", "promote").with(0);
    cluster.act("pg01", "monitor").with(8);
    cluster.sql("pg01", "create table after as select 1");

    let mut failed = None;
    eventually(SECONDS, "the monitor fails", || {
        let ended = cluster.act("pg02", "monitor");
        failed = Some(ended).filter(|ended| ended.code != 0);
        failed.is_some()
    });
    let failed = failed.expect("failed").with(1);
    assert!(failed.reason().contains("waits for the rest"), "{}", failed.reason());
    let streams = "select count(*) from pg_stat_replication where state = 'streaming'";
    assert_eq!(cluster.sql("pg01", streams), "0");

    let stopped = cluster.act("pg02", "stop").with(0);
    assert!(stopped.took < Duration::from_secs(10), "{:?}: {}", stopped.took, stopped.stderr);
    let wal = cluster.data("pg02").join("pg_wal");
    let whole = fs::read(wal.join(&name)).expect("a segment");
    let started = cluster.act("pg02", "start").with(0);
    assert!(started.stderr.contains("agent.rejoin.aside"), "{}", started.stderr);
    let aside = fs::read(wal.join("pgcm-divergent").join(&name)).expect("moved aside");
    assert!(aside == whole, "what was moved aside is what was there");
    let within = usize::try_from(begin % SEGMENT).expect("small");
    assert!(whole[within..].iter().any(|&byte| byte != 0), "the record had begun");

    follows(&cluster, "pg01", "pg02");
    eventually(SECONDS, "pg02 has what pg01 wrote before and after", || {
        cluster.sql("pg02", "select to_regclass('after') is not null") == "t"
    });
    assert_eq!(cluster.sql("pg02", "select count(*) from before"), "1000");
    cluster.settle("pg01", "pg02");

    // Once is enough: the next start finds nothing to move.
    cluster.act("pg02", "stop").with(0);
    let again = cluster.act("pg02", "start").with(0);
    assert!(!again.stderr.contains("agent.rejoin.aside"), "{}", again.stderr);
    follows(&cluster, "pg01", "pg02");
}
