//! What the agent costs a machine: it runs every second for years.

use std::time::Duration;

use crate::docker::cluster::Cluster;

/// Long enough for the clock of `/proc`, which counts hundredths of a second.
const QUIET: Duration = Duration::from_secs(20);
/// How often the playground looks at the promoted instance.
const INTERVAL: Duration = Duration::from_secs(1);

/// CPU time of what Pacemaker's executor on `node` has run, all of its children included, and of the server's
/// processes that have ended.
async fn spent(cluster: &Cluster, node: &str) -> [Duration; 2] {
    let read = "cat /proc/$(pgrep -x -f '.*pacemaker-execd')/stat \
                /proc/$(head -n 1 /var/lib/postgresql/*/main/postmaster.pid)/stat";
    let text = cluster.exec(node, &["bash", "-c", read]).await.done();
    let times = text.lines().map(|stat| {
        let (_, fields) = stat.rsplit_once(") ").expect("fields after the name");
        let ticks = fields.split_whitespace().skip(13).take(2);
        let ticks: u64 = ticks.map(|field| field.parse::<u64>().expect("a number")).sum();
        // The unit is a hundredth of a second on every Linux.
        Duration::from_millis(ticks * 10)
    });
    times.collect::<Vec<_>>().try_into().expect("two processes")
}

#[tokio::test]
async fn a_monitor_of_a_quiet_primary_costs_less_than_30_ms_of_cpu() {
    let cluster = Cluster::whole().await;
    let primary = cluster.node_at(&cluster.published_primary().await).await;
    let monitors = u32::try_from(QUIET.as_secs() / INTERVAL.as_secs()).expect("few");
    let mut measured = Vec::new();
    for _ in 0..3 {
        let before = spent(&cluster, primary).await;
        tokio::time::sleep(QUIET).await;
        let after = spent(&cluster, primary).await;
        measured.push([0, 1].map(|part| (after[part] - before[part]) / monitors));
    }
    println!(
        "for each monitor, the agent with its children, and all of the server's: {measured:?}"
    );
    // Neighbours on a busy machine make the same work look longer, never shorter.
    let agent = measured.iter().map(|[agent, _]| *agent).min().expect("three");
    assert!(!agent.is_zero() && agent < Duration::from_millis(30), "{measured:?}");
}
