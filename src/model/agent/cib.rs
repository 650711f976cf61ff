//! Nodes and their attributes, as the CIB knows them, and what the agent asks of them.

use std::collections::BTreeMap;

use super::{
    claim::{DataStatus, Score, Status},
    lsn::Position,
    quorum::QuorumClaim,
};

/// The attribute names of one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    pub resource: String,
    pub status: String,
    pub data_status: String,
    pub score: String,
    pub baseline: String,
    pub address: String,
    pub shutdown_lsn: String,
    pub quorum: String,
}

impl Names {
    /// Names for the resource called `resource`, without a clone's `:N`.
    pub fn of(resource: &str) -> Self {
        Self {
            resource: resource.to_owned(),
            status: format!("{resource}-status"),
            data_status: format!("{resource}-data-status"),
            score: format!("master-{resource}"),
            baseline: format!("{resource}-master-baseline"),
            address: format!("{resource}-address"),
            shutdown_lsn: format!("{resource}-shutdown-lsn"),
            quorum: format!("{resource}-quorum"),
        }
    }
}

/// One cluster node, as the CIB knows it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Node {
    pub id: String,
    pub name: String,
    /// A member of the partition with its controller running.
    pub online: bool,
    /// Pacemaker counts on it, online or not: it neither left in good order nor was fenced.
    pub expected: bool,
    /// Attributes that end with the node's membership.
    pub transient: BTreeMap<String, String>,
    /// Attributes that stay.
    pub permanent: BTreeMap<String, String>,
}

impl Node {
    pub fn status(&self, names: &Names) -> Option<Status> {
        self.transient.get(&names.status).and_then(|value| Status::parse(value))
    }

    pub fn data_status(&self, names: &Names) -> Option<DataStatus> {
        self.permanent.get(&names.data_status).and_then(|value| DataStatus::parse(value))
    }

    /// The claim to have written with a quorum; one that cannot be read elects nobody.
    pub fn quorum_claim(&self, names: &Names) -> Option<QuorumClaim> {
        self.permanent.get(&names.quorum)?.parse().ok()
    }

    pub fn score(&self, names: &Names) -> Option<Score> {
        self.transient.get(&names.score).and_then(|value| Score::parse(value))
    }

    /// Online, with status `PRI`, whatever it claims to hold.
    pub fn is_called_primary(&self, names: &Names) -> bool {
        self.online && self.status(names) == Some(Status::Primary)
    }

    pub fn address<'a>(&'a self, names: &Names) -> Option<&'a str> {
        self.transient.get(&names.address).map(String::as_str)
    }

    pub fn shutdown_position(&self, names: &Names) -> Option<Position> {
        self.transient.get(&names.shutdown_lsn)?.parse().ok()
    }
}

/// What one `cibadmin --query` told.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cib {
    /// By name.
    pub nodes: BTreeMap<String, Node>,
    /// Whether Pacemaker fences nodes that are lost. It does unless it is told otherwise.
    pub fences: bool,
}

impl Cib {
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name)
    }

    /// Whether `other` holds the same durable claims of `resource`, node by node.
    pub fn same_claims(&self, other: &Self, resource: &str) -> bool {
        self.claims(resource).eq(other.claims(resource))
    }

    fn claims(&self, resource: &str) -> impl Iterator<Item = (&str, &str, &str)> {
        let ours =
            move |name: &str| name.strip_prefix(resource).is_some_and(|rest| rest.starts_with('-'));
        self.nodes.values().flat_map(move |node| {
            let claims = node.permanent.iter().filter(move |(name, _)| ours(name));
            claims.map(|(name, value)| (node.name.as_str(), name.as_str(), value.as_str()))
        })
    }

    /// The node that is primary, other than `own`: online, with status `PRI`, and with a claim to hold every
    /// acknowledged commit. A demoted primary keeps its status until its heir's first monitor; its claim
    /// ended before the heir's first write.
    ///
    /// `None` when none is, or when several claim to be.
    pub fn primary_other_than<'a>(&'a self, own: &str, names: &Names) -> Option<&'a Node> {
        let mut claiming = self.nodes.values().filter(|node| {
            let complete = node.data_status(names).is_some_and(DataStatus::is_complete);
            node.name != own && complete && node.is_called_primary(names)
        });
        claiming.next().filter(|_| claiming.next().is_none())
    }

    /// A node that is lost and not fenced yet, while `own` sees no other. Where that leaves `own` quorum, as
    /// Corosync's `two_node` does, it leaves the lost one quorum, too, and that may be promoting its standby.
    /// Where Pacemaker does not fence, nothing is to be waited for.
    pub fn unfenced_other(&self, own: &str) -> Option<&Node> {
        let mut others = self.nodes.values().filter(|node| node.name != own);
        if !self.fences || others.clone().any(|node| node.online) {
            return None;
        }
        others.find(|node| node.expected)
    }

    /// The primary, where a server of `own` that takes writes, too, is a stale one: started past the agent, by hand or
    /// by the distribution's own service, or promoted by hand. Whom Pacemaker promoted has a complete claim, and has
    /// ended that of the primary before, from before its first write.
    pub fn primary_instead_of<'a>(&'a self, own: &str, names: &Names) -> Option<&'a Node> {
        let has_newest = |node: &Node| node.data_status(names) == Some(DataStatus::Latest);
        match self.node(own).and_then(|node| node.data_status(names)) {
            Some(DataStatus::Latest) => None,
            Some(DataStatus::Sync) => {
                self.primary_other_than(own, names).filter(|primary| has_newest(primary))
            }
            _ => self.primary_other_than(own, names),
        }
    }

    /// The online nodes other than `own` of which Pacemaker would promote one: those that share the
    /// highest score.
    pub fn promotable_other_than<'a>(&'a self, own: &str, names: &Names) -> Vec<&'a Node> {
        let may = |node: &&Node| {
            node.name != own
                && node.online
                && node.score(names).is_some_and(Score::allows_promotion)
        };
        let candidates: Vec<&Node> = self.nodes.values().filter(may).collect();
        let highest = candidates.iter().map(|node| node.score(names)).max().flatten();
        candidates.into_iter().filter(|node| node.score(names) == highest).collect()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A node for tests, online, with the given attributes.
    pub(crate) fn node(name: &str, transient: &[(&str, &str)], data_status: Option<&str>) -> Node {
        let names = Names::of("Postgresql");
        Node {
            id: name.trim_start_matches("pg").to_owned(),
            name: name.to_owned(),
            online: true,
            expected: true,
            transient: transient
                .iter()
                .map(|&(key, value)| {
                    let key = match key {
                        "status" => names.status.clone(),
                        "score" => names.score.clone(),
                        "address" => names.address.clone(),
                        "shutdown-lsn" => names.shutdown_lsn.clone(),
                        other => panic!("no attribute {other}"),
                    };
                    (key, value.to_owned())
                })
                .collect(),
            permanent: data_status
                .map(|value| (names.data_status, value.to_owned()))
                .into_iter()
                .collect(),
        }
    }

    pub(crate) fn cib(nodes: Vec<Node>) -> Cib {
        let nodes = nodes.into_iter().map(|node| (node.name.clone(), node)).collect();
        Cib { nodes, fences: true }
    }

    #[test]
    fn whoever_takes_writes_beside_the_primary_is_stale() {
        let names = Names::of("Postgresql");
        let primary = |data| node("pg01", &[("status", "PRI")], data);
        let stale = |own, data| {
            let cib = cib(vec![primary(data), node("pg02", &[("status", "HS:sync")], own)]);
            cib.primary_instead_of("pg02", &names).is_some()
        };
        for own in [None, Some("DISCONNECT"), Some("STREAMING|QUORUM"), Some("STREAMING|SYNC")] {
            assert!(stale(own, Some("LATEST")), "{own:?}");
        }
        // Promoted by Pacemaker, it ended the old one's claim, and keeps its own until its first monitor.
        assert!(!stale(Some("STREAMING|SYNC"), Some("DISCONNECT")));
        assert!(!stale(Some("LATEST"), Some("LATEST")), "neither of two yields");
    }

    #[test]
    fn two_primaries_are_none() {
        let names = Names::of("Postgresql");
        let nodes = ["pg01", "pg02"].map(|name| node(name, &[("status", "PRI")], None));
        assert_eq!(cib(nodes.into()).primary_other_than("pg03", &names), None);
    }

    #[test]
    fn the_highest_score_that_allows_promotion_is_next() {
        let names = Names::of("Postgresql");
        let cib = cib(vec![
            node("pg01", &[("score", "1000")], None),
            node("pg02", &[("score", "-INFINITY")], None),
            node("pg03", &[("score", "100")], None),
            node("pg04", &[("score", "10")], None),
            node("pg05", &[("score", "100")], None),
        ]);
        let next = cib.promotable_other_than("pg01", &names);
        let next: Vec<_> = next.iter().map(|node| node.name.as_str()).collect();
        assert_eq!(next, ["pg03", "pg05"]);
    }
}
