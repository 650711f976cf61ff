//! Does to a node what a fault is, and takes it away again.

use std::time::{Duration, Instant};

use crate::{
    docker::cluster::{Cluster, Ended, MACHINES, NODES},
    plan::Fault,
};

/// For one command in a container; a container that stands still answers nothing at all.
const LIMIT: Duration = Duration::from_secs(20);
/// A node that is back before the others have done with fencing it is told that it was fenced, and
/// its Pacemaker stays down. Machines take longer to boot than containers.
const BOOT: Duration = Duration::from_secs(12);

/// Sets `$postmaster` to the PID of the node's Postgres.
const POSTMASTER: &str = "postmaster=$(head -n 1 /var/lib/postgresql/*/main/postmaster.pid); ";
/// What a full disk leaves: nothing. Then writes until WAL has to grow, which a playground's load would
/// take minutes for.
const FILL: &str = "cd /var/lib/postgresql
    if [ $(df --block-size=1M --output=size . | tail -n 1) -gt 8000 ]; then
        echo 'too large a disk to fill: boot the cluster with PGCM_DISK_MB=2000' >&2; exit 1
    fi
    free=$(df --block-size=1M --output=avail . | tail -n 1)
    fallocate --length \"$((free - 2))M\" ballast
    dd if=/dev/zero of=ballast bs=64k oflag=append conv=notrunc status=none 2> /dev/null
    for _ in 1 2 3 4 5 6 7 8 9 10 11 12; do
        runuser -u postgres -- timeout 3 psql -X -q -c \"SELECT pg_logical_emit_message(false, \
            'fill', repeat('x', 16000000))\" postgres || break
    done > /dev/null 2>&1
    true";

/// Lets `fault` strike `node`.
///
/// # Errors
/// What could not be done: the fault did not happen.
pub(crate) async fn strike(cluster: &Cluster, fault: Fault, node: &str) -> Result<(), String> {
    let ended = match fault {
        Fault::KillContainer => cluster.docker("kill", node).await,
        Fault::PauseContainer => cluster.docker("pause", node).await,
        Fault::KillPostmaster => shell(cluster, node, POSTMASTER, "kill -KILL $postmaster").await,
        Fault::KillBackend => {
            let kill = "kill -KILL $(pgrep -P $postmaster -f 'app app' | head -n 1)";
            shell(cluster, node, POSTMASTER, kill).await
        }
        Fault::KillWalreceiver => {
            // During a switchover there may be none for a moment.
            let kill = "for _ in $(seq 50); do pid=$(pgrep -P $postmaster -f walreceiver) && break; \
                        sleep 0.1; done; if [ -n \"$pid\" ]; then kill -KILL $pid; else echo none; fi";
            let ended = shell(cluster, node, POSTMASTER, kill).await;
            if ended.stdout.trim() == "none" {
                println!("nothing was struck: {node} had no walreceiver");
            }
            ended
        }
        Fault::KillPacemakerd => {
            shell(cluster, node, "", "kill -KILL $(pgrep -x pacemakerd)").await
        }
        Fault::KillCorosync => shell(cluster, node, "", "kill -KILL $(pgrep -x corosync)").await,
        Fault::StopPostgres => shell(cluster, node, "", "kill -STOP $(pgrep -x postgres)").await,
        Fault::StopCorosync => shell(cluster, node, "", "kill -STOP $(pgrep -x corosync)").await,
        Fault::DiskFull => cluster.exec_within(node, &["sh", "-c", FILL], 3 * LIMIT).await,
        Fault::Partition
        | Fault::DropIncoming
        | Fault::DropOutgoing
        | Fault::CutEtcd
        | Fault::CutCorosync
        | Fault::CutReplication => {
            let rules = rules(cluster, fault, node).await;
            shell(cluster, node, "set -e; ", &rules).await
        }
    };
    done(&ended).map_err(|why| format!("{} on {node}: {why}", fault.name()))
}

/// Takes away what `fault` left on `node`, where the node still has it. What was killed comes back by
/// itself or not at all; a machine that is off is another's to start.
pub(crate) async fn heal(cluster: &Cluster, fault: Fault, node: &str) -> Result<(), String> {
    let remedy = match fault {
        Fault::PauseContainer => {
            return match cluster.state(node).await.as_str() {
                "paused" => done(&cluster.docker("unpause", node).await),
                _ => Ok(()),
            };
        }
        Fault::StopPostgres => "kill -CONT $(pgrep -x postgres) 2> /dev/null || true",
        Fault::StopCorosync => "kill -CONT $(pgrep -x corosync) 2> /dev/null || true",
        Fault::Partition
        | Fault::DropIncoming
        | Fault::DropOutgoing
        | Fault::CutEtcd
        | Fault::CutCorosync
        | Fault::CutReplication => "iptables -w 10 -F",
        Fault::DiskFull => return free_disk(cluster, node).await,
        _ => return Ok(()),
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        if cluster.state(node).await != "running" {
            // It was fenced: a boot forgets processes and rules.
            return Ok(());
        }
        match done(&shell(cluster, node, "", remedy).await) {
            // It may be about to be fenced: Docker calls it running for a moment more.
            Err(_) if Instant::now() < deadline => tokio::time::sleep(BOOT / 10).await,
            healed => return healed,
        }
    }
}

/// Starts the machine of `node` if it is off, and has been for as long as a machine needs to boot:
/// fenced nodes stay off until somebody switches them on.
pub(crate) async fn start_if_off(cluster: &Cluster, node: &str) {
    if cluster.off_for(node).await.is_some_and(|off| off >= BOOT) {
        // What Docker refuses now it may grant at the next turn.
        let _ = cluster.docker("start", node).await;
    }
}

/// Removes what fills the node's disk, which survives a reboot.
async fn free_disk(cluster: &Cluster, node: &str) -> Result<(), String> {
    let deadline = Instant::now() + LIMIT + BOOT;
    loop {
        start_if_off(cluster, node).await;
        let freed = shell(cluster, node, "", "rm -f /var/lib/postgresql/ballast").await;
        match done(&freed) {
            Err(_) if Instant::now() < deadline => tokio::time::sleep(BOOT / 10).await,
            freed => return freed,
        }
    }
}

async fn shell(cluster: &Cluster, node: &str, prelude: &str, script: &str) -> Ended {
    cluster.exec_within(node, &["sh", "-c", &format!("{prelude}{script}")], LIMIT).await
}

fn done(ended: &Ended) -> Result<(), String> {
    if ended.status == 0 { Ok(()) } else { Err(ended.to_string()) }
}

/// Commands that make `node` drop packets.
async fn rules(cluster: &Cluster, fault: Fault, node: &str) -> String {
    let mut rules = Vec::new();
    let mut drop = |chain: &str, what: &str| {
        rules.push(format!("iptables -w 10 -A {chain} {what} -j DROP"));
    };
    let both = |drop: &mut dyn FnMut(&str, &str), what: &str| {
        drop("INPUT", what);
        drop("OUTPUT", what);
    };
    match fault {
        Fault::CutCorosync => both(&mut drop, "-p udp --dport 5405"),
        Fault::CutEtcd => {
            for way in ["--dport", "--sport"] {
                both(&mut drop, &format!("-p tcp {way} 2379:2380"));
            }
        }
        // All that goes to another machine; this one tests from outside goes on.
        _ => {
            for machine in MACHINES.into_iter().filter(|&machine| machine != node) {
                let address = cluster.address(machine).await;
                let (from, to) = (format!("-s {address}"), format!("-d {address}"));
                match fault {
                    Fault::DropIncoming => drop("INPUT", &from),
                    Fault::DropOutgoing => drop("OUTPUT", &to),
                    Fault::CutReplication if NODES.contains(&machine) => {
                        for way in ["--dport", "--sport"] {
                            drop("INPUT", &format!("{from} -p tcp {way} 5432"));
                            drop("OUTPUT", &format!("{to} -p tcp {way} 5432"));
                        }
                    }
                    Fault::CutReplication => {}
                    _ => {
                        drop("INPUT", &from);
                        drop("OUTPUT", &to);
                    }
                }
            }
        }
    }
    rules.join("\n")
}
