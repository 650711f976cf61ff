//! The resource agent's actions against real Postgres instances, without a cluster around them.
//!
//! Pacemaker's tools work on a CIB in a file. Runs as root, as the agent does.

mod busy;
mod cib;
mod cluster;
mod conformance;
mod crash;
mod matrix;
#[path = "../support/port.rs"]
mod port;
mod quorum;
mod rejoin;
mod slots;
mod switchover;
mod sync;
mod tail;
mod unstartable;
mod validation;

use std::time::Duration;

use cluster::{Cluster, eventually};

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
    // After a promotion Pacemaker runs it at once.
    cluster.act(primary, "monitor").with(8);
    eventually(SECONDS, &format!("{node} streams from {primary}"), || {
        cluster.act(node, "monitor").with(0);
        cluster.sql(primary, &query) == "1"
    });
}
