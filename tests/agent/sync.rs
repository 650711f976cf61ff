//! Whom the primary waits for, and what the CIB says before it stops.

use std::fs;

use super::{PROBE, attributes, cluster::Cluster, follows};

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
fn of_two_nodes_the_primary_waits_until_the_lost_one_is_fenced() {
    let cluster = Cluster::pair();
    cluster.remove_node("pg03");
    cluster.crash("pg02");
    // Each of the two has quorum, and the other may be promoting its standby.
    cluster.leaves("pg02", "member");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "\"pg02\"");
    cluster.leaves("pg02", "down");
    cluster.act("pg01", "monitor").with(8);
    assert_eq!(cluster.sql("pg01", "show synchronous_standby_names"), "");
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

/// Pacemaker's attribute daemon can write an old score for a node that it missed the news of.
#[test]
fn a_synchronous_standby_takes_a_lost_score_back_once_no_primary_is_there() {
    let cluster = Cluster::pair();
    let score = || cluster.attribute("pg02", "master-Postgresql");
    cluster.crash("pg01");
    cluster.set_attribute("pg02", "master-Postgresql", "-INFINITY");
    cluster.act("pg02", "monitor").with(0);
    assert_eq!(score().as_deref(), Some("-INFINITY"), "pg01 is still called the primary");
    // What its node's loss does to a transient attribute.
    cluster.set_attribute("pg01", "Postgresql-status", "STOP");
    cluster.set_attribute("pg01", "Postgresql-shutdown-lsn", "9:0000000000000100");
    cluster.act("pg02", "monitor").with(0);
    assert_eq!(score().as_deref(), Some("-INFINITY"), "pg01 stopped with more");
    cluster.set_attribute("pg01", "Postgresql-shutdown-lsn", "1:0000000000000100");
    let monitored = cluster.act("pg02", "monitor").with(0);
    assert!(monitored.stderr.contains("agent.election.reclaim"), "{}", monitored.stderr);
    assert_eq!(score().as_deref(), Some("100"));
    cluster.act("pg02", "promote").with(0);
}
