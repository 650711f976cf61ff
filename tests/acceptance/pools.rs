//! Other ways to set up PgBouncer on app01: chained to the nodes' PgBouncers, and several processes that
//! share the port.

use std::time::Duration;

use crate::{
    CLIENTS, docker::cluster::Cluster, docker::load::Load, planned::move_under_load, rounds,
};

/// Failovers of each setup, at most.
const MOVES: usize = 3;
const PROCESSES: [&str; 3] = ["1", "2", "3"];

/// Keeps what app01 was booted with.
const KEEP: &str = "set -e
    [ ! -d /var/tmp/shipped ] || exit 0
    mkdir -p /var/tmp/shipped.new
    cp -p /etc/pgbouncer/pgbouncer.ini.template /etc/pgsql-cluster-manager/config.toml /var/tmp/shipped.new
    mv /var/tmp/shipped.new /var/tmp/shipped";
/// Gives it back.
const PUT_BACK: &str = "
    systemctl stop pgcm-proxy 'pgbouncer@*.service'
    rm -f /etc/systemd/system/pgbouncer@.service /etc/pgbouncer/pgbouncer-*.ini
    if [ -d /var/tmp/shipped ]; then
        cp -p /var/tmp/shipped/pgbouncer.ini.template /etc/pgbouncer
        cp -p /var/tmp/shipped/config.toml /etc/pgsql-cluster-manager
    fi
    systemctl daemon-reload
    systemctl start pgbouncer pgcm-proxy";
/// Has the PgBouncer of app01 go through the one on the primary's node.
const CHAIN: &str = "sed -i 's/port=5432/port=6432/' /etc/pgbouncer/pgbouncer.ini.template";
/// Instead of the one PgBouncer of app01, three, as README says.
const THREE: &str = "set -e
    cd /etc/pgbouncer
    for n in 2 3; do sed \"s/pgbouncer-1/pgbouncer-$n/\" pgbouncer-1.ini > pgbouncer-$n.ini; done
    systemctl daemon-reload
    systemctl stop pgbouncer
    systemctl start pgbouncer@1 pgbouncer@2 pgbouncer@3";

/// app01 set up in another way, until this is dropped.
struct Changed {
    cluster: Cluster,
}

impl Changed {
    /// app01 as it was booted, ready to be changed. The cluster is whole.
    async fn start() -> Self {
        let cluster = Cluster::booted().await;
        shell(&cluster, KEEP).await;
        // A run before may have been cut off.
        let changed = Self { cluster };
        shell(&changed.cluster, PUT_BACK).await;
        changed.cluster.becomes_whole(Duration::from_secs(90)).await;
        changed
    }

    async fn processes(sockets: &[&str]) -> Self {
        let changed = Self::start().await;
        let cluster = &changed.cluster;
        cluster.install("app01", "config/pgbouncer@.service", "/etc/systemd/system/").await;
        cluster.install("app01", "config/pgbouncer-1.ini", "/etc/pgbouncer/").await;
        shell(cluster, THREE).await;
        let sockets: Vec<String> =
            sockets.iter().map(|n| format!("\"/run/pgbouncer-{n}/.s.PGSQL.6432\"")).collect();
        let section = format!("[pgbouncer]\nadmin-sockets = [{}]", sockets.join(", "));
        let config = "/etc/pgsql-cluster-manager/config.toml";
        shell(cluster, &format!("printf '\\n%s\\n' '{section}' >> {config}")).await;
        shell(cluster, "systemctl restart pgcm-proxy").await;
        changed
    }
}

impl Drop for Changed {
    fn drop(&mut self) {
        let ended = self.cluster.exec_now("app01", &["bash", "-c", PUT_BACK]);
        if ended.status != 0 {
            println!("app01 was not put back: {ended}");
        }
    }
}

async fn shell(cluster: &Cluster, script: &str) -> String {
    cluster.exec("app01", &["bash", "-c", script]).await.done()
}

/// What a console of app01 says to `command`; `dir` has its socket.
async fn console(cluster: &Cluster, dir: &str, command: &str) -> String {
    let asked = format!(
        "runuser -u postgres -- psql -h {dir} -p 6432 -U pgbouncer -Atc '{command}' pgbouncer 2>&1"
    );
    shell(cluster, &asked).await
}

#[tokio::test]
async fn an_application_pgbouncer_behind_the_nodes_own_costs_clients_only_latency() {
    let changed = Changed::start().await;
    let cluster = &changed.cluster;
    shell(cluster, CHAIN).await;
    shell(cluster, "systemctl restart pgcm-proxy").await;
    for round in 1..=rounds().min(MOVES) {
        cluster.becomes_whole(Duration::from_secs(30)).await;
        let primary = cluster.published_primary().await;
        let shown = console(cluster, "/var/run/postgresql", "SHOW DATABASES").await;
        assert!(shown.contains(&format!("app|{primary}|6432|")), "{primary} in {shown}");
        move_under_load(cluster, &format!("chained, round {round}")).await;
    }
}

#[tokio::test]
async fn each_of_three_processes_that_share_a_port_is_paused_and_follows() {
    let changed = Changed::processes(&PROCESSES).await;
    let cluster = &changed.cluster;
    cluster.becomes_whole(Duration::from_secs(30)).await;
    println!("{}", console(cluster, "/run/pgbouncer-1", "SHOW VERSION").await.trim());
    for round in 1..=rounds().min(MOVES) {
        move_under_load(cluster, &format!("three processes, round {round}")).await;
    }
    let primary = cluster.published_primary().await;
    for n in PROCESSES {
        let dir = format!("/run/pgbouncer-{n}");
        let shown = console(cluster, &dir, "SHOW DATABASES").await;
        assert!(shown.contains(&format!("app|{primary}|5432|")), "{n}: {primary} in {shown}");
        let served = console(cluster, &dir, "SHOW STATS").await;
        let queries = served.lines().find_map(|line| line.strip_prefix("app|"));
        assert!(queries.is_some_and(|row| !row.starts_with("0|")), "{n} served nobody: {served}");
    }
}

/// Has a failover stand still in mid-move and asks each process, through its own socket, for
/// something that none refuses but one that is paused: the words exist in every release.
const ASK_WHILE_PAUSED: &str = "pgcm failover > /tmp/moved 2>&1 & failover=$!
    until etcdctl --endpoints=pg01:2379,pg02:2379 get --print-value-only /postgres/failover |
        grep -q '\"step\":\"migrate\"'; do kill -0 $failover || { cat /tmp/moved; exit 1; }; done
    kill -STOP $failover
    for n in 1 2 3; do
        runuser -u postgres -- psql -h /run/pgbouncer-$n -p 6432 -U pgbouncer -c 'PAUSE pgbouncer' pgbouncer 2>&1
    done
    kill -CONT $failover
    wait $failover || { cat /tmp/moved; exit 1; }";

#[tokio::test]
async fn while_the_primary_moves_each_of_three_processes_says_that_it_is_paused() {
    let changed = Changed::processes(&PROCESSES).await;
    let cluster = &changed.cluster;
    cluster.becomes_whole(Duration::from_secs(30)).await;
    let load = Load::start(cluster, CLIENTS).await;
    load.flows_again(Duration::from_secs(20)).await;
    let asked = cluster.exec("app01", &["bash", "-c", ASK_WHILE_PAUSED]).await;
    let seen = load.stop().await;
    println!("stood still for a moment: {seen}");
    assert_eq!(asked.status, 0, "{asked}");
    let paused = asked.text().matches("already suspended/paused").count();
    assert_eq!(paused, PROCESSES.len(), "{asked}");
    assert!(seen.errors.is_empty(), "{:?}", seen.errors);
    assert_eq!(seen.lost(cluster).await, 0, "{seen}");
    cluster.nothing_paused().await;
}

#[tokio::test]
async fn a_process_whose_console_pgcm_does_not_know_refuses_the_failover() {
    let changed = Changed::processes(&PROCESSES[..2]).await;
    let cluster = &changed.cluster;
    cluster.becomes_whole(Duration::from_secs(30)).await;
    let refused = cluster.exec("app01", &["pgcm", "failover", "--dry-run"]).await;
    assert_eq!(refused.status, 4, "{refused}");
    for words in
        ["pgbouncer-processes", "3 processes listen on port 6432", "pgbouncer.admin-sockets"]
    {
        assert!(refused.text().contains(words), "{words} in: {refused}");
    }
}
