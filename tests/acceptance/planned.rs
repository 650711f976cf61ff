//! Planned failovers: what clients feel of them, what stops them, and what is left when one is killed.

use std::time::Duration;

use serde_json::{Value, json};

use crate::{
    CLIENTS,
    docker::{
        cluster::Cluster,
        load::{Load, Transaction},
    },
    rounds,
};

const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// One planned failover under load, which costs clients of app01 nothing but a wait: no error, no
/// acknowledged commit, and new logins get in. `round` is for those who read the output.
pub(crate) async fn move_under_load(cluster: &Cluster, round: &str) {
    let before = cluster.published_primary().await;
    let load = Load::start(cluster, CLIENTS).await;
    // A PgBouncer logs in to its servers one after the other, and to another PgBouncer twice as slowly.
    load.flows_again(Duration::from_secs(20)).await;
    let moved = cluster.exec("app01", &["pgcm", "failover", "--output", "json"]).await;
    let seen = load.stop().await;
    println!("{round}: {seen}");
    assert_eq!(moved.status, 0, "{round}: {moved}");
    assert_ne!(cluster.published_primary().await, before, "{round}: {moved}");
    assert!(seen.errors.is_empty(), "{round}: {:?}", seen.errors);
    assert!(seen.logins > 0, "{round}: no new login was tried");
    assert!(seen.longest_wait < LONGEST_WAIT, "{round}: {seen}");
    assert_eq!(seen.lost(cluster).await, 0, "{round}: {seen}");
    cluster.streams_again(&before, Duration::from_secs(10)).await;
    assert_eq!(cluster.move_constraints().await, 0, "{round}");
    cluster.nothing_paused().await;
    cluster.becomes_whole(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn planned_failovers_cost_clients_only_latency() {
    let cluster = Cluster::whole().await;
    for round in 1..=rounds() {
        move_under_load(&cluster, &format!("round {round}")).await;
    }
    let status = cluster.status().await;
    let standbys = status["cluster"]["standbys"].as_array().unwrap();
    let target = standbys.iter().find(|standby| standby["sync_state"] == "sync").unwrap();
    let target = target["name"].as_str().unwrap();
    let moved = cluster.exec("app01", &["pgcm", "failover", "--target", target]).await;
    assert_eq!(moved.status, 0, "{moved}");
    let history = ["pgcm", "history", "--last", "1", "--output", "json"];
    let history = cluster.exec("app01", &history).await.done();
    let history: Value = serde_json::from_str(&history).unwrap();
    let change = &history[0]["change"];
    assert_eq!(
        (&change["outcome"], &change["new_primary"]["name"]),
        (&json!("done"), &json!(target))
    );
    assert_eq!(cluster.status().await["cluster"]["primary"]["name"], target);
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
    let before = cluster.keys_but_the_view().await;
    let plan = cluster.exec("app01", &["pgcm", "failover", "--dry-run"]).await;
    assert_eq!(plan.status, 0, "{plan}");
    for word in ["pause", "migrate", "resume", "app01"] {
        assert!(plan.text().contains(word), "{word} in: {plan}");
    }
    assert_eq!(cluster.keys_but_the_view().await, before);
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
