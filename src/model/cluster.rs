//! The cluster as pgcm publishes it: the value of `/cluster`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// Key of the primary's address, below the namespace.
pub const MASTER: &str = "/master";
/// Key of the view, below the namespace.
pub const CLUSTER: &str = "/cluster";

/// Who is primary and who follows, as the primary's supervise saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterView {
    pub primary: Primary,
    pub standbys: Vec<Standby>,
    /// Whether the observer's side of the cluster had quorum. Only views with quorum are published.
    pub quorum: bool,
    /// Postgres' identity of this cluster: equal on all nodes that stem from one `initdb`.
    pub system_identifier: String,
    /// When this was seen, RFC 3339 in UTC. For people; nothing is decided by it.
    pub observed_at: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Primary {
    /// Pacemaker's name of the node.
    pub name: String,
    pub address: IpAddr,
    pub timeline: u32,
}

/// A standby that is connected to the primary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standby {
    /// The standby's `application_name`, by contract Pacemaker's name of the node.
    pub name: String,
    pub address: Option<IpAddr>,
    /// `pg_stat_replication.state`: `streaming`, `catchup`, `startup`, `backup`.
    pub state: String,
    /// `pg_stat_replication.sync_state`: `sync`, `potential`, `quorum`, `async`.
    pub sync_state: String,
    /// Bytes of WAL that the standby has not replayed yet.
    pub replay_lag_bytes: u64,
}

impl ClusterView {
    /// The standby that holds every acknowledged commit, if there is one now.
    pub fn synchronous_standby(&self) -> Option<&Standby> {
        self.standbys.iter().find(|standby| {
            standby.state == "streaming"
                && ["sync", "quorum"].contains(&standby.sync_state.as_str())
        })
    }

    /// Whether `other` says the same, apart from what changes with every look.
    pub fn same_facts(&self, other: &Self) -> bool {
        let still = |view: &Self| {
            let mut view = view.clone();
            view.observed_at.clear();
            view.standbys.iter_mut().for_each(|standby| standby.replay_lag_bytes = 0);
            view
        };
        still(self) == still(other)
    }
}
