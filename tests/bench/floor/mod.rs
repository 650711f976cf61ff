//! What the parts take alone, on the same cluster and machine.

use std::time::{Duration, Instant};

use pgcm::{
    edge::clock,
    model::location::{MoveRule, move_id},
};
use serde_json::Value;

use crate::{
    docker::cluster::{Cluster, NODES},
    results::FloorRun,
};

const CLONE: &str = "BenchNoopClone";
const AGENT_DIRECTORY: &str = "/usr/lib/ocf/resource.d/pgcm-bench";
/// Where the throw-away Postgres instances live.
const POSTGRES_NODE: &str = "pg03";
const MOVE_LIMIT: Duration = Duration::from_secs(30);

/// The means to measure the floor, installed in the cluster.
pub(crate) struct Floor<'a> {
    cluster: &'a Cluster,
}

impl<'a> Floor<'a> {
    /// Gives Pacemaker a second promotable clone, configured as Postgres' own is.
    pub(crate) async fn install(cluster: &'a Cluster) -> Self {
        let put = format!(
            "mkdir -p {AGENT_DIRECTORY} && printf %s \"$1\" > {AGENT_DIRECTORY}/noop && \
             chmod 755 {AGENT_DIRECTORY}/noop"
        );
        for node in NODES {
            cluster.exec(node, &["sh", "-c", &put, "sh", include_str!("noop")]).await.done();
        }
        let xml = clone_xml();
        let args = ["--modify", "--allow-create", "--scope", "resources", "--xml-text", &xml];
        cluster.exec("pg01", &[&["cibadmin"], args.as_slice()].concat()).await.done();
        for node in NODES {
            let score = ["--name", "master-BenchNoop", "--update", "10", "--node", node];
            cluster.exec(node, &[&["attrd_updater"], score.as_slice()].concat()).await.done();
        }
        let floor = Self { cluster };
        floor.promoted().await;
        floor
    }

    /// One look at each part.
    pub(crate) async fn measure(&self) -> FloorRun {
        let transition_ms = self.move_noop().await;
        let script = ["bash", "-c", include_str!("postgres")];
        let command = [["runuser", "-u", "postgres", "--"].as_slice(), &script].concat();
        let answer = self.cluster.exec(POSTGRES_NODE, &command).await.done();
        let times: Value = serde_json::from_str(answer.trim()).unwrap();
        let millis = |key: &str| times[key].as_f64().unwrap() / 1_000.0;
        FloorRun {
            transition_ms,
            shutdown_ms: millis("shutdown_us"),
            promotion_ms: millis("promotion_us"),
        }
    }

    /// Moves the promoted role of the clone by the constraint that pgcm makes, issued on the node
    /// where pgcm would; returns the milliseconds until the end of promote.
    async fn move_noop(&self) -> f64 {
        let from = self.promoted().await;
        let to = NODES.into_iter().find(|&node| node != from).unwrap();
        let until = clock::rfc3339_after(Duration::from_secs(60));
        let rule = MoveRule { clone: CLONE, role: "Promoted", target: to, until: &until };
        let script = "echo ${EPOCHREALTIME/[.,]/} && exec cibadmin --modify --allow-create \
                      --scope constraints --xml-text \"$1\"";
        let issued = self.cluster.exec(from, &["bash", "-c", script, "bash", &rule.xml()]).await;
        let issued_us: u64 = issued.done().trim().parse().unwrap();
        let promoted_us = self.promotion_after(to, issued_us).await;
        let xml = format!("<rsc_location id=\"{}\"/>", move_id(CLONE));
        let args = ["cibadmin", "--delete", "--scope", "constraints", "--xml-text", &xml];
        self.cluster.exec(from, &args).await.done();
        self.settled().await;
        Duration::from_micros(promoted_us - issued_us).as_secs_f64() * 1_000.0
    }

    /// When `node` was promoted, if that was after `issued_us`; microseconds since the epoch.
    async fn promotion_after(&self, node: &str, issued_us: u64) -> u64 {
        let begun = Instant::now();
        loop {
            let command = ["sh", "-c", "cat /run/pgcm-bench-noop.promoted || true"];
            let at: Option<u64> =
                self.cluster.exec(node, &command).await.done().trim().parse().ok();
            if let Some(at) = at.filter(|&at| at > issued_us) {
                return at;
            }
            assert!(begun.elapsed() < MOVE_LIMIT, "Pacemaker does not promote {CLONE} on {node}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The node where the clone is promoted.
    async fn promoted(&self) -> &'static str {
        let begun = Instant::now();
        loop {
            self.settled().await;
            for node in NODES {
                let command = ["sh", "-c", "cat /run/pgcm-bench-noop || true"];
                if self.cluster.exec(node, &command).await.done().trim() == "Promoted" {
                    return node;
                }
            }
            assert!(begun.elapsed() < MOVE_LIMIT, "Pacemaker promotes {CLONE} nowhere");
        }
    }

    /// Waits until Pacemaker has nothing to do.
    async fn settled(&self) {
        self.cluster.exec("pg01", &["crm_resource", "--wait", "--timeout", "30"]).await.done();
    }

    /// Leaves the cluster as it was.
    pub(crate) async fn remove(self) {
        let unset = ["--resource", CLONE, "--meta", "--set-parameter", "target-role"];
        let stop =
            [["crm_resource"].as_slice(), &unset, &["--parameter-value", "Stopped"]].concat();
        self.cluster.exec("pg01", &stop).await.done();
        self.settled().await;
        let xml = format!("<clone id=\"{CLONE}\"/>");
        let args = ["cibadmin", "--delete", "--scope", "resources", "--xml-text", &xml];
        self.cluster.exec("pg01", &args).await.done();
        let directory = ["rm", "-rf", "/var/lib/postgresql/bench-floor"];
        self.cluster.exec(POSTGRES_NODE, &directory).await.done();
    }
}

fn clone_xml() -> String {
    let metas = [
        ("promotable", "true"),
        ("promoted-max", "1"),
        ("promoted-node-max", "1"),
        ("clone-max", "3"),
        ("clone-node-max", "1"),
        ("notify", "false"),
        ("interleave", "true"),
    ];
    let metas: String = metas
        .iter()
        .map(|(name, value)| {
            format!("<nvpair id=\"{CLONE}-{name}\" name=\"{name}\" value=\"{value}\"/>")
        })
        .collect();
    format!(
        "<clone id=\"{CLONE}\"><meta_attributes id=\"{CLONE}-meta\">{metas}</meta_attributes>\
         <primitive id=\"BenchNoop\" class=\"ocf\" provider=\"pgcm-bench\" type=\"noop\"/></clone>"
    )
}
