//! The promises of DESIGN.md, kept by a real cluster in Docker under load.
//!
//! `make acceptance` boots the cluster under a name of its own, so that a playground that somebody has
//! running is left alone. The tests share it and run one after the other; each begins by waiting until
//! the cluster is whole.

#![cfg(feature = "acceptance")]
#![expect(clippy::unwrap_used, reason = "a test may end at the first surprise")]

#[path = "../support/docker/mod.rs"]
mod docker;
mod interruptions;

use std::time::{Duration, Instant};

use docker::{
    cluster::{Cluster, NODES},
    load::{Crowd, Load, Transaction},
};

const CLIENTS: usize = 8;
/// Rounds of each kind of crash, at most.
const CRASHES: usize = 3;
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How often the primary is moved; a short run sets PGCM_ROUNDS.
fn rounds() -> usize {
    std::env::var("PGCM_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(5)
}

#[tokio::test]
async fn etcd_crm_mon_and_status_agree() {
    let cluster = Cluster::whole().await;
    let published = cluster.published_primary().await;
    let status = cluster.status().await;
    assert_eq!(status["primary_address"], published.as_str());
    let name = status["cluster"]["primary"]["name"].as_str().unwrap();
    assert_eq!(cluster.address(name).await, published);

    let table = cluster.exec("app01", &["pgcm", "status"]).await.done();
    assert!(table.contains(&format!("{name} ({published})")), "{table}");

    let crm_mon = cluster.exec("pg01", &["crm_mon", "-Afr", "-1"]).await.done();
    for line in ["Postgresql-status", "Postgresql-data-status", "master-Postgresql"] {
        assert_eq!(crm_mon.matches(line).count(), 3, "{line} for each node in:\n{crm_mon}");
    }
    let shown: Vec<&str> =
        crm_mon.lines().filter_map(|line| line.split_once(": ")).map(|(_, v)| v.trim()).collect();
    let of_standbys = match std::env::var("PGCM_MODE").as_deref() {
        Ok("quorum") => ["HS:quorum", "STREAMING|QUORUM"].as_slice(),
        _ => &["HS:sync", "HS:potential", "STREAMING|SYNC", "STREAMING|POTENTIAL"],
    };
    for value in ["PRI", "LATEST"].iter().chain(of_standbys) {
        assert!(shown.contains(value), "{value} in:\n{crm_mon}");
    }
    let baseline = crm_mon.lines().find(|line| line.contains("Postgresql-master-baseline"));
    let digits = baseline.and_then(|line| line.trim().rsplit(' ').next()).unwrap_or_default();
    assert!(digits.len() == 16 && digits.bytes().all(|b| b.is_ascii_hexdigit()), "{crm_mon}");
}

#[tokio::test]
async fn planned_failovers_cost_clients_only_latency() {
    let cluster = Cluster::whole().await;
    for round in 1..=rounds() {
        let before = cluster.published_primary().await;
        let load = Load::start(&cluster, CLIENTS).await;
        load.flows().await;
        let moved = cluster.exec("app01", &["pgcm", "failover", "--output", "json"]).await;
        let seen = load.stop().await;
        println!("round {round}: {seen}");
        assert_eq!(moved.status, 0, "round {round}: {moved}");
        assert_ne!(cluster.published_primary().await, before, "round {round}: {moved}");
        assert!(seen.errors.is_empty(), "round {round}: {:?}", seen.errors);
        assert!(seen.logins > 0, "round {round}: no new login was tried");
        assert!(seen.longest_wait < LONGEST_WAIT, "round {round}: {seen}");
        assert_eq!(seen.lost(&cluster).await, 0, "round {round}: {seen}");
        cluster.streams_again(&before, Duration::from_secs(10)).await;
        assert_eq!(cluster.move_constraints().await, 0, "round {round}");
        cluster.nothing_paused().await;
        cluster.becomes_whole(Duration::from_secs(30)).await;
    }
}

#[tokio::test]
async fn an_open_transaction_stops_the_failover_and_survives_it() {
    let cluster = Cluster::whole().await;
    let before = cluster.published_primary().await;
    let load = Load::start(&cluster, CLIENTS).await;
    let blocker = Transaction::open(&cluster).await;
    let brief = ["pgcm", "failover", "--pause-timeout", "1s", "--pause-expiry", "2s"];
    // The checks warn, or refuse, by the transaction's age; here the pause shall meet it.
    let insisting = [&brief[..], &["--override", "open-transactions"]].concat();
    let stopped = cluster.exec("app01", &insisting).await;
    assert_eq!(stopped.status, 6, "{stopped}");
    assert!(stopped.text().contains(&blocker.pid.to_string()), "PID {}: {stopped}", blocker.pid);
    let refused = cluster.exec("app01", &brief).await;
    assert_eq!(refused.status, 4, "{refused}");
    assert!(refused.text().contains(&blocker.pid.to_string()), "PID {}: {refused}", blocker.pid);
    blocker.commit().await;
    load.flows().await;
    let seen = load.stop().await;
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert!(seen.longest_wait < Duration::from_secs(3), "{seen}");
    assert_eq!(cluster.published_primary().await, before);
    assert_eq!(cluster.move_constraints().await, 0);
    cluster.nothing_paused().await;
}

/// What killing the primary by `kill` costs: the time in which nobody commits, median of some rounds.
/// Nothing is lost, and the cluster is whole again by itself.
async fn cost_of_a_crash(kill: impl AsyncFn(&Cluster, &'static str)) -> Duration {
    let mut gaps = Vec::new();
    for round in 1..=rounds().min(CRASHES) {
        let cluster = Cluster::whole().await;
        let address = cluster.published_primary().await;
        let primary = cluster.node_at(&address).await;
        let load = Load::start(&cluster, CLIENTS).await;
        load.flows().await;
        kill(&cluster, primary).await;
        load.flows_again(Duration::from_secs(15)).await;
        let seen = load.stop().await;
        println!("round {round}, {primary}: nobody commits for {:?}, {seen}", seen.longest_gap());
        gaps.push(seen.longest_gap());
        assert_eq!(seen.lost(&cluster).await, 0, "{seen}");
        if cluster.state(primary).await != "running" {
            cluster.start(primary).await;
        }
        cluster.becomes_whole(Duration::from_secs(150)).await;
    }
    gaps.sort_unstable();
    gaps[gaps.len() / 2]
}

#[tokio::test]
async fn killing_the_primary_loses_nothing_and_heals_by_itself() {
    let median = cost_of_a_crash(async |cluster, primary| {
        cluster.kill(primary).await;
    });
    let median = median.await;
    println!("machine killed: nobody commits for {median:?} (median)");
    assert!(median < Duration::from_secs(8), "{median:?}");
}

#[tokio::test]
async fn a_dead_postmaster_costs_clients_a_few_seconds() {
    let median = cost_of_a_crash(async |cluster, primary| {
        let kill = "kill -9 $(head -1 /var/lib/postgresql/*/main/postmaster.pid)";
        cluster.exec(primary, &["bash", "-c", kill]).await.done();
    });
    let median = median.await;
    println!("postmaster killed: nobody commits for {median:?} (median)");
    assert!(median < Duration::from_secs(4), "{median:?}");
}

#[tokio::test]
async fn a_busy_primary_is_not_demoted() {
    let cluster = Cluster::whole().await;
    let before = cluster.status().await["cluster"]["primary"].clone();
    let crowd = Crowd::take_all_slots(&cluster).await;
    let primary = before["name"].as_str().unwrap();
    let stop = format!("kill -STOP {}", crowd.pid);
    cluster.exec(primary, &["sh", "-c", &stop]).await.done();
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert!(crowd.is_full().await, "there are slots left");
        assert_eq!(cluster.published_primary().await, before["address"].as_str().unwrap());
    }
    let go_on = format!("kill -CONT {}", crowd.pid);
    cluster.exec(primary, &["sh", "-c", &go_on]).await.done();
    drop(crowd);
    cluster.becomes_whole(Duration::from_secs(30)).await;
    // A demotion and a promotion in between would have made a new timeline.
    assert_eq!(cluster.status().await["cluster"]["primary"], before);
    let failures = cluster.exec("pg01", &["crm_mon", "-1f"]).await.done();
    assert!(!failures.contains("fail-count"), "{failures}");
}

#[tokio::test]
async fn of_two_failovers_at_once_one_moves() {
    let cluster = Cluster::whole().await;
    let failover = ["pgcm", "failover"];
    let (one, two) =
        tokio::join!(cluster.exec("app01", &failover), cluster.exec("pg02", &failover));
    let mut codes = [one.status, two.status];
    codes.sort_unstable();
    assert_eq!(codes, [0, 5], "{one}\n{two}");
    cluster.nothing_paused().await;
    assert_eq!(cluster.move_constraints().await, 0);
}

#[tokio::test]
async fn a_dry_run_prints_the_plan_and_touches_nothing() {
    let cluster = Cluster::whole().await;
    let before = cluster.keys_but_leases().await;
    let plan = cluster.exec("app01", &["pgcm", "failover", "--dry-run"]).await;
    assert_eq!(plan.status, 0, "{plan}");
    for word in ["pause", "migrate", "resume", "app01"] {
        assert!(plan.text().contains(word), "{word} in: {plan}");
    }
    assert_eq!(cluster.keys_but_leases().await, before);
    assert_eq!(cluster.move_constraints().await, 0);
    cluster.nothing_paused().await;
}

#[tokio::test]
async fn killing_the_failover_while_paused_gives_traffic_back() {
    let cluster = Cluster::whole().await;
    let load = Load::start(&cluster, CLIENTS).await;
    // The pause waits for this transaction, which leaves time to kill.
    let blocker = Transaction::open(&cluster).await;
    let script =
        "pgcm failover --pause-timeout 4s --pause-expiry 5s & sleep 2; kill -9 $!; wait $!";
    let killed = cluster.exec("app01", &["bash", "-c", script]).await;
    assert_eq!(killed.status, 137, "{killed}");
    load.flows_again(Duration::from_secs(6)).await;
    blocker.commit().await;
    let seen = load.stop().await;
    println!("killed while paused: {seen}");
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert!(seen.longest_wait < Duration::from_secs(6), "{seen}");
    cluster.nothing_paused().await;
    assert_eq!(cluster.move_constraints().await, 0);
    // The dead holder's lease has to end first.
    cluster.lock_is_free(Duration::from_secs(20)).await;
    let next = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(next.status, 0, "{next}");
}

#[tokio::test]
async fn killing_the_failover_while_it_migrates_gives_traffic_back() {
    let cluster = Cluster::whole().await;
    let load = Load::start(&cluster, CLIENTS).await;
    load.flows().await;
    let script = "pgcm failover --pause-expiry 8s & failover=$!
        until etcdctl --endpoints=pg01:2379,pg02:2379 get --print-value-only /postgres/failover |
            grep -q '\"step\":\"migrate\"'; do kill -0 $failover || exit 1; done
        kill -9 $failover; wait $failover";
    let killed = cluster.exec("app01", &["timeout", "60", "bash", "-c", script]).await;
    assert_eq!(killed.status, 137, "{killed}");
    load.flows_again(Duration::from_secs(10)).await;
    let seen = load.stop().await;
    println!("killed while migrating: {seen}");
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert!(seen.longest_wait < Duration::from_secs(10), "{seen}");
    assert_eq!(seen.lost(&cluster).await, 0, "{seen}");
    cluster.nothing_paused().await;
    // The constraint's lifetime is a minute; whoever sweeps it looks every ten seconds.
    cluster.constraints_are_gone(Duration::from_secs(90)).await;
    cluster.becomes_whole(Duration::from_secs(30)).await;
    let next = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(next.status, 0, "{next}");
}

#[tokio::test]
async fn losing_all_of_etcd_costs_clients_nothing() {
    let cluster = Cluster::whole().await;
    let load = Load::start(&cluster, CLIENTS).await;
    let outage = Instant::now();
    for node in NODES {
        cluster.exec(node, &["systemctl", "stop", "etcd"]).await.done();
    }
    let refused = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(refused.status, 3, "{refused}");
    tokio::time::sleep(Duration::from_secs(60).saturating_sub(outage.elapsed())).await;
    load.flows().await;
    let seen = load.stop().await;
    println!("etcd away: {seen}");
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert_eq!(seen.lost(&cluster).await, 0, "{seen}");
    for node in NODES {
        // Members wait for each other, so none may be waited for alone.
        cluster.exec(node, &["systemctl", "start", "--no-block", "etcd"]).await.done();
    }
    cluster.becomes_whole(Duration::from_secs(60)).await;
    let next = cluster.exec("app01", &["pgcm", "failover"]).await;
    assert_eq!(next.status, 0, "{next}");
}
