//! What a monitor costs: it runs every few seconds for years.

use std::{fs, time::Duration};

use crate::cluster::{Cluster, command};

/// Monitors per measurement: the clock of `times` is coarse.
const MONITORS: u32 = 40;

/// CPU time of one quiet monitor of pg01, its children included, and what it costs the server.
fn cost(cluster: &Cluster) -> (Duration, Duration) {
    let script = format!(
        "i=0; while [ $i -lt {MONITORS} ]; do \"$1\" resource-agent monitor >/dev/null 2>&1; \
         [ $? -eq 8 ] || exit 1; i=$((i + 1)); done; times"
    );
    let mut shell = command("sh");
    cluster.as_pacemaker(&mut shell, "pg01");
    // Pacemaker's own cibadmin: the stand-in starts others for its records.
    shell.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    shell.args(["-c", &script, "sh", env!("CARGO_BIN_EXE_pgcm")]);
    let before = server(cluster);
    let output = shell.output().expect("sh runs");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let children = text.lines().last().expect("what times prints");
    let spent: f64 = children.split_whitespace().map(seconds).sum();
    (Duration::from_secs_f64(spent) / MONITORS, (server(cluster) - before) / MONITORS)
}

/// Reads `0m1.250s`.
fn seconds(text: &str) -> f64 {
    let (minutes, seconds) = text.trim_end_matches('s').split_once('m').expect("minutes");
    minutes.parse::<f64>().expect("minutes") * 60.0 + seconds.parse::<f64>().expect("seconds")
}

/// CPU time of the backends of pg01 that have ended.
fn server(cluster: &Cluster) -> Duration {
    let pid = cluster.pid("pg01").expect("a postmaster");
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    let (_, fields) = stat.rsplit_once(") ").expect("fields after the name");
    let ticks = fields.split_whitespace().skip(13).take(2);
    let ticks: u64 = ticks.map(|field| field.parse::<u64>().expect("a number")).sum();
    // The unit is a hundredth of a second on every Linux.
    Duration::from_millis(ticks * 10)
}

#[test]
fn a_quiet_monitor_of_the_primary_costs_less_than_30_ms_of_cpu() {
    let cluster = Cluster::pair();
    cluster.act("pg01", "monitor").with(8);
    // Neighbours on a busy machine make the same work look longer, never shorter.
    let measured = (0..5).map(|_| cost(&cluster));
    let best = measured.min_by_key(|(agent, server)| *agent + *server).expect("five");
    let (agent, server) = best;
    eprintln!("agent and its children {agent:?}, server {server:?}");
    assert!(agent + server < Duration::from_millis(30), "agent {agent:?}, server {server:?}");
}
