//! A failover on a real cluster, and what it needs, interrupted in its course: a table of victims, each
//! struck at a step. `tests/interruptions` has the finer places, without Pacemaker.
//!
//! `make interruptions` runs all rows, `ROWS="kill-dc@migrate proxy"` those whose names contain a word.

use std::{
    convert::Infallible,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::docker::{
    cluster::{Cluster, NODES},
    load::Load,
};

const CLIENTS: usize = 8;
const EXPIRY: Duration = Duration::from_secs(8);
/// Beyond the lease of ten seconds.
const FREEZE: Duration = Duration::from_secs(12);
/// What clients may wait beyond the expiry where nothing but a process of pgcm's was struck.
const SLACK: Duration = Duration::from_secs(3);
/// Until a node is declared lost, fenced, and another one promoted and published.
const NODE_LOST: Duration = Duration::from_secs(45);
/// A failed action is tried again after Pacemaker's failure-timeout, a minute.
const WHOLE: Duration = Duration::from_secs(180);
/// A machine that is off is switched on again after so long, as one that boots.
const BOOT: Duration = Duration::from_secs(12);

const STEPS: [&str; 4] = ["pause", "migrate", "follow", "resume"];

/// The steps that the lock tells, in their order.
const TOLD: [&str; 6] = ["lock", "prepare", "pause", "migrate", "follow", "resume"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    KillCoordinator,
    TerminateCoordinator,
    FreezeCoordinator,
    KillPrimarySupervise,
    KillTargetSupervise,
    KillProxy,
    KillPgbouncer,
    KillDc,
    KillEtcdLeader,
    KillTargetNode,
}

const VICTIMS: [(&str, Victim); 10] = [
    ("kill-coordinator", Victim::KillCoordinator),
    ("terminate-coordinator", Victim::TerminateCoordinator),
    ("freeze-coordinator", Victim::FreezeCoordinator),
    ("kill-primary-supervise", Victim::KillPrimarySupervise),
    ("kill-target-supervise", Victim::KillTargetSupervise),
    ("kill-proxy", Victim::KillProxy),
    ("kill-pgbouncer", Victim::KillPgbouncer),
    ("kill-dc", Victim::KillDc),
    ("kill-etcd-leader", Victim::KillEtcdLeader),
    ("kill-target-node", Victim::KillTargetNode),
];

impl Victim {
    /// Whether clients may see more than a wait.
    fn breaks_connections(self) -> bool {
        matches!(self, Self::KillPgbouncer | Self::KillDc | Self::KillTargetNode)
    }

    /// The longest time in which nobody commits.
    fn limit(self) -> Duration {
        match self {
            Self::KillDc | Self::KillTargetNode => NODE_LOST,
            _ => EXPIRY + SLACK,
        }
    }
}

/// Begins a failover on app01 and lets it stand still where `STEP` begins.
const BEGIN: &str = "cd /tmp && rm -f interrupted.*
    { cat /etc/pgsql-cluster-manager/config.toml; printf '[log]\\nlevel = \"debug\"\\nformat = \"json\"\\n'; } \
        > interrupted.toml
    setsid bash -c 'pgcm --config-file /tmp/interrupted.toml failover --output json --pause-expiry 8s \
        > interrupted.out 2> interrupted.log & echo $! > interrupted.pid; wait $!; \
        echo $? > interrupted.status' < /dev/null > /dev/null 2>&1 &
    until grep -q '\"step\":\"STEP\",\"event\":\"failover.step.begin\"' interrupted.log 2> /dev/null; do
        [ ! -e interrupted.status ] || { cat interrupted.out interrupted.log; exit 9; }
    done
    kill -STOP $(cat interrupted.pid)";
/// Waits for its end, and says how it was.
const END: &str =
    "cd /tmp; for _ in $(seq 600); do [ ! -e interrupted.status ] || break; sleep 0.1; done
    cat interrupted.status && cat interrupted.out";

#[tokio::test]
#[ignore = "takes a while; run by `make interruptions`"]
async fn interrupting_what_a_failover_needs_costs_clients_only_time() {
    let asked = std::env::var("ROWS").unwrap_or_default();
    let words = if asked.is_empty() { "all" } else { &asked };
    let mut rows = 0;
    for (name, victim) in VICTIMS {
        for step in STEPS {
            let row = format!("{name}@{step}");
            if words == "all" || words.split_whitespace().any(|word| row.contains(word)) {
                interrupt(&row, victim, step).await;
                rows += 1;
            }
        }
    }
    assert!(rows > 0, "no row is called any of: {words}");
}

async fn interrupt(row: &str, victim: Victim, step: &str) {
    let cluster = Cluster::whole().await;
    let status = cluster.status().await;
    let load = Load::start(&cluster, CLIENTS).await;
    load.flows().await;
    let begin = BEGIN.replace("STEP", step);
    cluster.exec("app01", &["bash", "-c", &begin]).await.done();
    let struck = Instant::now();
    strike(&cluster, victim, &status).await;
    signal(&cluster, "CONT").await;
    let ended_and_flowing = async {
        let ended = cluster.exec("app01", &["bash", "-c", END]).await.done();
        load.flows_again(victim.limit().saturating_sub(struck.elapsed()) + SLACK).await;
        (ended, struck.elapsed())
    };
    // A new primary that dies before it has a standby is waited for (docs/decisions/0008), and with it the failover
    // waits for its old one.
    let (ended, flowing) = tokio::select! {
        done = ended_and_flowing => done,
        never = keep_on(&cluster) => match never {},
    };
    switch_on(&cluster).await;
    cluster.becomes_whole(WHOLE).await;
    let whole = struck.elapsed();
    let seen = load.stop().await;
    println!(
        "{row}: ended with {}, nobody commits for {:.1} s, flows after {:.1} s, whole after {:.1} s; {seen}",
        ended.lines().next().unwrap_or_default(),
        seen.longest_gap().as_secs_f64(),
        flowing.as_secs_f64(),
        whole.as_secs_f64(),
    );
    assert_eq!(seen.lost(&cluster).await, 0, "{row}: {seen}");
    assert!(seen.longest_gap() < victim.limit(), "{row}: {seen}\n{ended}");
    if !victim.breaks_connections() {
        assert!(seen.errors.is_empty(), "{row}: {:?}\n{ended}", seen.errors);
    }
    cluster.nothing_paused().await;
    cluster.constraints_are_gone(Duration::from_secs(15)).await;
    let told = cluster.status().await["last_failover"].clone();
    let outcome = told["outcome"].as_str().unwrap_or_default();
    let known = ["done", "put_back", "needs_hands", "unfinished"].contains(&outcome);
    assert!(
        known && told["holder"].as_str().unwrap_or_default().contains("app01"),
        "{row}: {told}"
    );
    if victim == Victim::KillCoordinator {
        // It stood still before it could tell, or in a step that is told only if it lasts.
        let before = TOLD.iter().position(|told| *told == step).expect("a step");
        let known = TOLD[..=before].iter().any(|known| told["step"] == **known);
        assert!(outcome == "unfinished" && known, "{row}: {told}");
    }
    // Whoever was the DC is being replaced, perhaps.
    cluster.may_fail_over(WHOLE).await;
    let next = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(next.status, 0, "{row}: the next failover: {next}");
}

/// Sends a signal to the coordinator, if it is there.
async fn signal(cluster: &Cluster, signal: &str) {
    let kill = format!("kill -{signal} $(cat /tmp/interrupted.pid) 2> /dev/null || true");
    cluster.exec("app01", &["sh", "-c", &kill]).await.done();
}

async fn strike(cluster: &Cluster, victim: Victim, before: &Value) {
    let primary = before["cluster"]["primary"]["name"].as_str().unwrap();
    let standbys = before["cluster"]["standbys"].as_array().unwrap();
    let target = standbys.iter().find(|standby| standby["sync_state"] == "sync").unwrap();
    let target = target["name"].as_str().unwrap();
    let kill = async |machine: &str, unit: &str| {
        let command = ["systemctl", "kill", "--signal", "KILL", unit];
        cluster.exec(machine, &command).await.done();
    };
    match victim {
        Victim::KillCoordinator => signal(cluster, "KILL").await,
        Victim::TerminateCoordinator => signal(cluster, "TERM").await,
        Victim::FreezeCoordinator => tokio::time::sleep(FREEZE).await,
        Victim::KillPrimarySupervise => kill(primary, "pgcm-supervise").await,
        Victim::KillTargetSupervise => kill(target, "pgcm-supervise").await,
        Victim::KillProxy => kill("app01", "pgcm-proxy").await,
        Victim::KillPgbouncer => kill("app01", "pgbouncer").await,
        Victim::KillDc => cluster.kill_controller(cluster.dc().await).await,
        Victim::KillEtcdLeader => {
            let leader = etcd_leader(cluster).await;
            kill(leader, "etcd").await;
        }
        Victim::KillTargetNode => cluster.kill(target).await,
    }
}

async fn etcd_leader(cluster: &Cluster) -> &'static str {
    for node in NODES {
        let command = ["etcdctl", "endpoint", "status", "--write-out=json"];
        let said = cluster.exec(node, &command).await.done();
        let said: Value = serde_json::from_str(&said).unwrap();
        let status = &said[0]["Status"];
        if status["leader"] == status["header"]["member_id"] {
            return node;
        }
    }
    panic!("etcd has no leader");
}

async fn keep_on(cluster: &Cluster) -> Infallible {
    loop {
        switch_on(cluster).await;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Switches on the machines that are off, those that were fenced as well.
async fn switch_on(cluster: &Cluster) {
    for node in NODES {
        while let Some(off) = cluster.off_for(node).await {
            if off >= BOOT {
                cluster.start(node).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
}
