//! Waits for the cluster to be whole again, and helps where it is not.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

use crate::{
    docker::cluster::{Cluster, MACHINES, NODES},
    inject,
    report::Recovery,
};

/// A failed action is tried again after Pacemaker's failure-timeout, a minute in the playground.
const BY_ITSELF: Duration = Duration::from_secs(180);
const AFTER_REPAIR: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(500);
const COMMAND: Duration = Duration::from_secs(30);

/// Waits until the cluster is whole, switching on the machines that were fenced: that much is
/// expected of a data centre. Beyond it nobody helps, until the limit is over.
///
/// # Errors
/// Nothing that an operator could do brought it back.
pub(crate) async fn whole(cluster: &Cluster) -> Result<Recovery, String> {
    let begun = Instant::now();
    let Some(mut broken) = whole_within(cluster, BY_ITSELF).await else {
        return Ok(Recovery::ByItself(begun.elapsed()));
    };
    let crm_mon = cluster.exec_within("pg01", &["crm_mon", "-1Afr"], COMMAND).await;
    broken.push_str(&crm_mon.text());
    for repair in ["crm_resource --cleanup", "a power cycle of all nodes"] {
        if repair.starts_with("crm_resource") {
            for node in NODES {
                cluster.exec_within(node, &["crm_resource", "--cleanup"], COMMAND).await;
            }
        } else {
            // Off, all of them; they are switched on again below.
            for node in NODES {
                cluster.docker("kill", node).await;
            }
        }
        if whole_within(cluster, AFTER_REPAIR).await.is_none() {
            return Ok(Recovery::ByHand { broken, repair });
        }
    }
    Err(format!("neither a cleanup nor a power cycle brings the cluster back: {broken}"))
}

/// What is missing when `limit` is over; `None` as soon as nothing is.
pub(crate) async fn whole_within(cluster: &Cluster, limit: Duration) -> Option<String> {
    let deadline = Instant::now() + limit;
    loop {
        for node in NODES {
            inject::start_if_off(cluster, node).await;
        }
        let missing = cluster.missing().await?;
        if Instant::now() >= deadline {
            return Some(missing);
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Keeps what every node has to say of the last minutes.
pub(crate) async fn keep_logs(cluster: &Cluster, directory: &Path) {
    let script = "journalctl --quiet --no-pager --output=short-iso-precise --since=-10min; \
        echo; echo '==== pacemaker.log'; tail -n 4000 /var/log/pacemaker/pacemaker.log; \
        echo; echo '==== postgresql.log'; tail -n 2000 /var/log/postgresql/postgresql.log";
    if let Err(error) = fs::create_dir_all(directory) {
        println!("  no logs: cannot make {}: {error}", directory.display());
        return;
    }
    for machine in MACHINES {
        let said = cluster.exec_within(machine, &["sh", "-c", script], COMMAND).await;
        if let Err(error) = fs::write(directory.join(machine), said.text()) {
            println!("  no logs of {machine}: {error}");
        }
    }
    println!("  logs: {}", directory.display());
}
