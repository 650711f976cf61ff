//! What `crm_mon` prints as XML, reduced to what pgcm decides by.
//!
//! Read alike: `--output-as=xml` (root `pacemaker-result`, Pacemaker 2.0 to 3.0) and the older
//! `--as-xml` (root `crm_mon`). Unknown elements and attributes are ignored.

mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use super::xml::XmlError;

/// Which of the two dialects was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flavour {
    /// `--output-as=xml`
    Modern,
    /// `--as-xml`
    Legacy,
}

/// The cluster as Pacemaker on one node sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacemakerView {
    pub flavour: Flavour,
    /// Id of the primitive that runs Postgres, not of its clone.
    pub resource: String,
    /// Version of Pacemaker on the DC, for example `3.0.0-3.0.0`; empty without a DC.
    pub version: String,
    /// Whether this side of the cluster has quorum. Never without a DC.
    pub quorum: bool,
    /// The designated controller: the node that decides.
    pub dc: Option<String>,
    /// Whether the whole cluster is in maintenance mode: Pacemaker watches, and acts on nothing.
    pub maintenance: bool,
    /// Whether fencing is switched on.
    pub fencing: bool,
    /// How many fencing devices are started somewhere. A watchdog without a device is none.
    pub fencing_devices: usize,
    pub nodes: Vec<Node>,
    /// Id of the clone that the resource is in; `None` also while the resource is not listed yet.
    pub clone: Option<String>,
    /// For example `ocf:pgcm:pgsql`; empty while the resource is not listed yet.
    pub agent: String,
    pub instances: Vec<Instance>,
    /// Failed actions of the resource.
    pub failures: Vec<Failure>,
    /// Nodes on which the resource has failed, with how often.
    pub fail_counts: Vec<FailCount>,
    /// Constraints that keep the resource, or its clone, off a node.
    pub bans: Vec<Ban>,
    /// Fencing that is in memory, newest first.
    pub fence_events: Vec<FenceEvent>,
}

/// A cluster node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub id: String,
    pub online: bool,
    /// Hosts no resources because somebody said so.
    pub standby: bool,
    /// Not yet a full member.
    pub pending: bool,
    /// Its state is unknown: it has to be fenced before its resources can run elsewhere.
    pub unclean: bool,
    pub maintenance: bool,
    /// Node attributes by name, such as `Postgresql-status`.
    pub attributes: BTreeMap<String, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    Promoted,
    Unpromoted,
    Stopped,
    /// `Promoting`, `Demoting`, `Starting`, …
    Other(String),
}

/// One copy of the resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Instance {
    /// Where it runs; `None` for a stopped copy, and for one on its way.
    pub node: Option<String>,
    pub role: Role,
    pub failed: bool,
    /// Pacemaker will not touch it until somebody cleans up.
    pub blocked: bool,
    pub managed: bool,
    /// Action under way, for example `Monitoring`.
    pub pending: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub node: String,
    /// `monitor`, `start`, …
    pub task: String,
    pub status: String,
    /// What the agent said.
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailCount {
    pub node: String,
    /// A number, or `INFINITY`.
    pub count: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    pub id: String,
    pub node: String,
    /// Whether only the promoted role is banned.
    pub promoted_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FenceEvent {
    pub target: String,
    pub action: String,
    /// `success`, `failed`, `pending`.
    pub status: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrmMonError {
    #[error("cannot read what crm_mon printed")]
    Xml(#[source] XmlError),
    #[error("crm_mon printed <{root}> where <pacemaker-result> or <crm_mon> was expected")]
    Root { root: String },
    #[error("crm_mon reports status {code} ({message}): {}", reasons(.errors))]
    Refused { code: i32, message: String, errors: Vec<String> },
    #[error("crm_mon's XML has no <{element}>")]
    Missing { element: &'static str },
    #[error("Pacemaker has no resource `{resource}`; set pacemaker.resource to one of: {}", list(.known))]
    NoSuchResource { resource: String, known: Vec<String> },
    #[error(
        "`{resource}` is a clone; set pacemaker.resource to the primitive in it: {}",
        list(.primitives)
    )]
    IsClone { resource: String, primitives: Vec<String> },
}

fn reasons(errors: &[String]) -> String {
    if errors.is_empty() { "no reason given".to_owned() } else { errors.join("; ") }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "(it has none)".to_owned() } else { names.join(", ") }
}

impl Instance {
    /// Whether its promotion has begun and not ended.
    fn is_promoting(&self) -> bool {
        self.role == Role::Other("Promoting".to_owned())
    }
}

impl PacemakerView {
    /// Reads crm_mon's XML; `resource` is the id of the primitive that runs Postgres.
    ///
    /// # Errors
    /// [`CrmMonError`] when the text is cut short or no such XML, when it holds an error status, and
    /// when Pacemaker knows no primitive of that name. Without a DC a resource that is not listed is
    /// no error: nothing is, yet.
    pub fn parse(text: &str, resource: &str) -> Result<Self, CrmMonError> {
        parse::view(text, resource)
    }

    /// The node of that name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }

    /// Nodes on which the resource is promoted.
    pub fn promoted(&self) -> Vec<&str> {
        let promoted = |instance: &&Instance| instance.role == Role::Promoted;
        self.instances.iter().filter(promoted).filter_map(|i| i.node.as_deref()).collect()
    }

    /// The node on which the resource is just being promoted, while no other copy has the role or may be on its way to
    /// it or from it.
    pub fn promoting(&self) -> Option<&str> {
        let has_nothing_to_do_with_it = |instance: &&Instance| match &instance.role {
            Role::Unpromoted | Role::Stopped => true,
            Role::Promoted => false,
            Role::Other(role) => role == "Starting",
        };
        let mut others = self.instances.iter().filter(|i| !has_nothing_to_do_with_it(i));
        match (others.next(), others.next()) {
            (Some(only), None) if only.is_promoting() => only.node.as_deref(),
            _ => None,
        }
    }

    /// The copy of the resource on that node.
    pub fn instance(&self, node: &str) -> Option<&Instance> {
        self.instances.iter().find(|instance| instance.node.as_deref() == Some(node))
    }

    /// What becomes of the promoted role when the constraint that moved it goes.
    pub fn without_constraint(&self) -> Without {
        if let Some(promoting) = self.instances.iter().find(|instance| instance.is_promoting()) {
            let node = promoting.node.clone().unwrap_or_else(|| "a node".to_owned());
            return Without::Promoting { node };
        }
        let [promoted] = self.promoted()[..] else { return Without::Nobody };
        let of = |node: &Node| promotion_score(node, &self.resource);
        let own = self.node(promoted).and_then(of);
        let rival = |node: &&Node| node.online && node.name != promoted && of(node) >= own;
        match self.nodes.iter().filter(|node| of(node).is_some()).find(rival) {
            None => Without::Stays,
            Some(rival) => {
                Without::Leaves { promoted: promoted.to_owned(), rival: rival.name.clone() }
            }
        }
    }

    /// By how much the primary's promotion score exceeds that of `other`: what moves the role to another node despite it.
    /// A primary leads by one at least.
    pub fn lead(&self, other: &str) -> i64 {
        let of = |name: &str| promotion_score(self.node(name)?, &self.resource);
        let primary = self.promoted().first().and_then(|name| of(name));
        let lead = primary.zip(of(other)).map(|(own, other)| own.saturating_sub(other));
        lead.unwrap_or(1).max(1)
    }

    /// The name that this Pacemaker prefers for the promoted role: `Master` before 2.1.
    pub fn promoted_role_name(&self) -> &'static str {
        let mut parts = self.version.split(['.', '-']).map(|part| part.parse::<u32>().ok());
        match (parts.next().flatten(), parts.next().flatten()) {
            (Some(major), Some(minor)) if (major, minor) < (2, 1) => "Master",
            _ => "Promoted",
        }
    }
}

/// See [`PacemakerView::without_constraint`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Without {
    /// It stays where it is.
    Stays,
    /// Nobody has it, or more than one.
    Nobody,
    /// Somebody is just being promoted, and may be published already; its promotion score comes later.
    Promoting { node: String },
    /// Pacemaker may move it to `rival`, whose promotion score is as high as that of `promoted` or higher.
    Leaves { promoted: String, rival: String },
}

fn promotion_score(node: &Node, resource: &str) -> Option<i64> {
    node.attributes.get(&format!("master-{resource}")).map(|text| score(text))
}

/// A score as Pacemaker writes it; one that cannot be read counts as none.
pub(super) fn score(text: &str) -> i64 {
    match text {
        "INFINITY" | "+INFINITY" => i64::MAX,
        "-INFINITY" => i64::MIN,
        number => number.parse().unwrap_or(0),
    }
}

/// What an error status in crm_mon's XML says, when `text` is such XML.
pub fn refusal(text: &str) -> Option<CrmMonError> {
    parse::refusal(text)
}
