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
    /// Nodes of the cluster only, whoever else receives WAL.
    pub standbys: Vec<Standby>,
    /// Nodes of the cluster that are no members now: lost, or stopped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub offline: Vec<String>,
    /// Whether the observer's side of the cluster had quorum. Only views with quorum are published.
    pub quorum: bool,
    /// Postgres' identity of this cluster: equal on all nodes that stem from one `initdb`.
    pub system_identifier: String,
    /// When this was seen, RFC 3339 in UTC. For people, who are told of a view that is old; pgcm itself
    /// decides nothing by it.
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

impl Standby {
    /// Whether commits wait for it, alone or as one of a quorum.
    pub fn is_synchronous(&self) -> bool {
        self.state == "streaming" && ["sync", "quorum"].contains(&self.sync_state.as_str())
    }

    /// The lowest of several is the one to move to: the least to replay, in steps so large that two looks
    /// at standbys that keep up name the same one.
    pub fn rank(&self) -> (u64, &str) {
        (self.replay_lag_bytes >> 24, &self.name)
    }
}

impl ClusterView {
    /// The standby that the primary would move to: one that commits wait for, if there is one now.
    pub fn synchronous_standby(&self) -> Option<&Standby> {
        let synchronous = self.standbys.iter().filter(|standby| standby.is_synchronous());
        synchronous.min_by_key(|standby| standby.rank())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn standby(name: &str, sync_state: &str, replay_lag_bytes: u64) -> Standby {
        Standby {
            name: name.to_owned(),
            address: None,
            state: "streaming".to_owned(),
            sync_state: sync_state.to_owned(),
            replay_lag_bytes,
        }
    }

    #[test]
    fn of_a_quorum_the_one_with_the_least_to_replay_takes_over() {
        for (first, second, expected) in [
            (standby("pg02", "quorum", 0), standby("pg03", "quorum", 0), "pg02"),
            (standby("pg02", "quorum", 4096), standby("pg03", "quorum", 0), "pg02"),
            (standby("pg02", "quorum", 1 << 30), standby("pg03", "quorum", 0), "pg03"),
            (standby("pg02", "potential", 0), standby("pg03", "sync", 4096), "pg03"),
        ] {
            let view = ClusterView {
                primary: Primary {
                    name: "pg01".to_owned(),
                    address: IpAddr::from([127, 0, 0, 1]),
                    timeline: 1,
                },
                standbys: vec![first, second],
                offline: Vec::new(),
                quorum: true,
                system_identifier: "7".to_owned(),
                observed_at: String::new(),
            };
            assert_eq!(view.synchronous_standby().map(|s| s.name.as_str()), Some(expected));
        }
    }
}
