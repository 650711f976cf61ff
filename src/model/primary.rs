//! Who is primary: what this node may publish, and what it must never overwrite.

use std::net::IpAddr;

use super::{
    cluster::{CLUSTER, ClusterView, Primary, Standby},
    crm_mon::{Instance, Node, PacemakerView},
};

/// The resource agent that pokes supervise when its promotion begins.
const AGENT: &str = "ocf:pgcm:pgsql";

/// What the Postgres of this node says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalFacts {
    pub in_recovery: bool,
    /// Whether it took a write just now.
    pub writable: bool,
    /// The timeline it writes; 0 while in recovery.
    pub timeline: u32,
    pub system_identifier: String,
    /// Standbys connected to it.
    pub standbys: Vec<Standby>,
}

/// What to do about the published view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// This node is the primary; the observed time is left empty.
    Publish(ClusterView),
    /// Publish nothing now.
    Hold(Hold),
}

/// Why this node publishes nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Hold {
    #[error("Pacemaker has no designated controller yet")]
    NoController,
    #[error("this side of the cluster has no quorum")]
    NoQuorum,
    #[error("no node is promoted")]
    NoPrimary,
    #[error(
        "{} are promoted at once: stop Postgres on all but one of them, and check that fencing works",
        .nodes.join(" and ")
    )]
    SeveralPrimaries { nodes: Vec<String> },
    #[error("{node} is the primary; its supervise publishes")]
    OtherNode { node: String },
    #[error("Pacemaker promotes this node, but its Postgres does not answer: {reason}")]
    PostgresSilent { reason: String },
    #[error("Pacemaker promotes this node, but its Postgres is still in recovery")]
    InRecovery,
    #[error("Pacemaker promotes this node, but its Postgres takes no writes")]
    ReadOnly,
}

impl Hold {
    /// Whether a person has to act.
    pub fn is_alarming(&self) -> bool {
        matches!(self, Self::SeveralPrimaries { .. })
    }

    /// Short stable name, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoController => "no-controller",
            Self::NoQuorum => "no-quorum",
            Self::NoPrimary => "no-primary",
            Self::SeveralPrimaries { .. } => "several-primaries",
            Self::OtherNode { .. } => "other-node",
            Self::PostgresSilent { .. } => "postgres-silent",
            Self::InRecovery => "in-recovery",
            Self::ReadOnly => "read-only",
        }
    }
}

/// Decides what `this_node`, reachable by clients at `address`, publishes.
///
/// `local` is what its Postgres said, or why it said nothing; `was_in_recovery` is whether it said before, since its promotion
/// began, that it is in recovery.
pub fn decide(
    view: &PacemakerView,
    this_node: &str,
    address: IpAddr,
    local: Result<&LocalFacts, &str>,
    was_in_recovery: bool,
) -> Decision {
    match hold(view, this_node, local, was_in_recovery) {
        Ok(facts) => Decision::Publish(ClusterView {
            primary: Primary { name: this_node.to_owned(), address, timeline: facts.timeline },
            standbys: members(view, &facts.standbys)
                .map(|standby| as_agent_says(view, standby))
                .collect(),
            offline: offline(view),
            quorum: view.quorum,
            system_identifier: facts.system_identifier.clone(),
            observed_at: String::new(),
        }),
        Err(hold) => Decision::Hold(hold),
    }
}

fn offline(view: &PacemakerView) -> Vec<String> {
    let offline = view.nodes.iter().filter(|node| !node.online);
    offline.map(|node| node.name.clone()).collect()
}

/// Those that are nodes of the cluster. A base backup under way and an archive (`pg_receivewal`) receive WAL as well,
/// and no failover has to wait for an agent of theirs.
fn members<'a>(view: &PacemakerView, standbys: &'a [Standby]) -> impl Iterator<Item = &'a Standby> {
    standbys.iter().filter(|standby| view.node(&standby.name).is_some())
}

/// Our agent names one synchronous standby only, so that Postgres calls the others `async`, also those
/// that the agent would make synchronous next.
fn as_agent_says(view: &PacemakerView, standby: &Standby) -> Standby {
    let mut standby = standby.clone();
    let is_potential = view
        .node(&standby.name)
        .is_some_and(|node| node.attributes.values().any(|value| value == "HS:potential"));
    if standby.sync_state == "async" && is_potential {
        "potential".clone_into(&mut standby.sync_state);
    }
    standby
}

/// Whether Pacemaker promotes `this_node` just now. It has demoted or fenced whoever was the primary by then, and our
/// agent lets its server leave recovery only once it may: one that does so now has the role.
///
/// Pacemaker calls it promoted some tens of milliseconds later, for which clients would wait.
pub fn takes_over(view: &PacemakerView, this_node: &str) -> bool {
    let is_well = |node: &Node| node.online && !node.unclean && !node.pending;
    let may_be_touched = |instance: &Instance| instance.managed && !instance.blocked;
    view.agent == AGENT
        && view.promoting() == Some(this_node)
        && view.node(this_node).is_some_and(is_well)
        && view.instance(this_node).is_some_and(may_be_touched)
}

fn hold<'a>(
    view: &PacemakerView,
    this_node: &str,
    local: Result<&'a LocalFacts, &str>,
    was_in_recovery: bool,
) -> Result<&'a LocalFacts, Hold> {
    if view.dc.is_none() {
        return Err(Hold::NoController);
    }
    if !view.quorum {
        return Err(Hold::NoQuorum);
    }
    match view.promoted()[..] {
        [] if was_in_recovery && takes_over(view, this_node) => {}
        [] => return Err(Hold::NoPrimary),
        [node] if node == this_node => {}
        [node] => return Err(Hold::OtherNode { node: node.to_owned() }),
        ref nodes => {
            let nodes = nodes.iter().map(|&node| node.to_owned()).collect();
            return Err(Hold::SeveralPrimaries { nodes });
        }
    }
    let facts = local.map_err(|reason| Hold::PostgresSilent { reason: reason.to_owned() })?;
    if facts.in_recovery {
        return Err(Hold::InRecovery);
    }
    if !facts.writable {
        return Err(Hold::ReadOnly);
    }
    Ok(facts)
}

/// Why the stored view stays although this node would publish another.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error(
        "etcd names {node} as primary on timeline {stored}, which is newer than this node's {ours}"
    )]
    Backwards { node: String, stored: u32, ours: u32 },
    #[error("etcd names {node} as primary on the same timeline {timeline}")]
    SameTimeline { node: String, timeline: u32 },
    #[error("etcd describes another cluster (system identifier {stored}, this node's is {ours})")]
    OtherCluster { stored: String, ours: String },
}

impl Refused {
    /// What to do about it. The command removes the view below etcd's `namespace` and nothing else: given two
    /// keys, etcdctl would delete all that lie between.
    pub fn remedy(&self, namespace: &str) -> String {
        let when = match self {
            Self::OtherCluster { .. } => "if this cluster was made anew or upgraded",
            Self::Backwards { .. } | Self::SameTimeline { .. } => {
                "find out which node has the data; if it is this one"
            }
        };
        format!("{when}, run: etcdctl del {namespace}{CLUSTER}")
    }
}

/// Whether `ours` may replace `stored`: the published primary never goes backwards.
///
/// # Errors
/// [`Refused`] when the stored view is of a newer timeline, of the same timeline but another
/// primary, or of another cluster.
pub fn may_replace(stored: &ClusterView, ours: &ClusterView) -> Result<(), Refused> {
    if stored.system_identifier != ours.system_identifier {
        return Err(Refused::OtherCluster {
            stored: stored.system_identifier.clone(),
            ours: ours.system_identifier.clone(),
        });
    }
    let (theirs, mine) = (&stored.primary, &ours.primary);
    if theirs.timeline > mine.timeline {
        return Err(Refused::Backwards {
            node: theirs.name.clone(),
            stored: theirs.timeline,
            ours: mine.timeline,
        });
    }
    if theirs.timeline == mine.timeline && theirs.name != mine.name {
        return Err(Refused::SameTimeline { node: theirs.name.clone(), timeline: mine.timeline });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str, timeline: u32, system: &str) -> ClusterView {
        ClusterView {
            primary: Primary {
                name: name.to_owned(),
                address: "10.0.0.1".parse().unwrap(),
                timeline,
            },
            standbys: Vec::new(),
            offline: Vec::new(),
            quorum: true,
            system_identifier: system.to_owned(),
            observed_at: String::new(),
        }
    }

    #[test]
    fn a_newer_timeline_replaces() {
        assert_eq!(may_replace(&view("pg01", 3, "7"), &view("pg02", 4, "7")), Ok(()));
        assert_eq!(may_replace(&view("pg01", 3, "7"), &view("pg01", 3, "7")), Ok(()));
    }

    #[test]
    fn an_older_timeline_never_replaces() {
        let refused = may_replace(&view("pg02", 4, "7"), &view("pg01", 3, "7")).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "etcd names pg02 as primary on timeline 4, which is newer than this node's 3"
        );
    }

    #[test]
    fn another_primary_on_the_same_timeline_is_refused() {
        let refused = may_replace(&view("pg02", 4, "7"), &view("pg01", 4, "7")).unwrap_err();
        assert_eq!(refused, Refused::SameTimeline { node: "pg02".to_owned(), timeline: 4 });
    }

    #[test]
    fn another_cluster_is_refused_whatever_its_timeline() {
        let refused = may_replace(&view("pg01", 1, "8"), &view("pg01", 9, "7")).unwrap_err();
        assert!(matches!(refused, Refused::OtherCluster { .. }));
    }
}
