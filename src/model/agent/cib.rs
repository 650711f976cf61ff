//! The CIB's XML read into the nodes and attributes that the agent decides on.

use std::collections::BTreeMap;

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

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

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CibError {
    #[error("the CIB is no well-formed XML: {0}")]
    Malformed(String),
    #[error("the CIB ends before its last element does")]
    CutShort,
    #[error("the output of cibadmin holds no <cib>")]
    NotACib,
}

impl Cib {
    /// Reads the output of `cibadmin --query`.
    ///
    /// # Errors
    /// [`CibError`] when the text is not a whole CIB: half a CIB would look like lost nodes.
    pub fn parse(xml: &str) -> Result<Self, CibError> {
        let mut reader = Reader::from_str(xml);
        let mut walk = Walk::default();
        loop {
            match reader.read_event() {
                Ok(Event::Start(element)) => walk.enter(&element)?,
                Ok(Event::Empty(element)) => {
                    walk.enter(&element)?;
                    walk.leave();
                }
                Ok(Event::End(_)) => walk.leave(),
                Ok(Event::Eof) => break,
                Ok(_) => {}
                Err(error) => return Err(CibError::Malformed(error.to_string())),
            }
        }
        match (walk.seen_cib, walk.path.is_empty()) {
            (false, _) => Err(CibError::NotACib),
            (true, false) => Err(CibError::CutShort),
            (true, true) => Ok(walk.finish()),
        }
    }

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

/// The property by its name, and by the one that newer versions of Pacemaker know as well.
const FENCING: [&str; 2] = ["stonith-enabled", "fencing-enabled"];

/// Where the reader is in the tree, and what it has gathered.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    seen_cib: bool,
    fencing_off: bool,
    /// By id.
    nodes: BTreeMap<String, Node>,
    /// The id of the node whose attributes are being read.
    current: String,
}

impl Walk {
    fn enter(&mut self, element: &BytesStart<'_>) -> Result<(), CibError> {
        let tag = element.name().as_ref().to_owned();
        self.seen_cib |= tag == "cib" && self.path.is_empty();
        self.path.push(tag);
        let attributes = attributes(element)?;
        let get = |name: &str| attributes.get(name).cloned().unwrap_or_default();
        let path: Vec<&str> = self.path.iter().map(String::as_str).collect();
        match path.as_slice() {
            ["cib", "configuration", "crm_config", "cluster_property_set", "nvpair"]
                if FENCING.contains(&get("name").as_str()) =>
            {
                let off = ["false", "off", "no", "n", "0"];
                self.fencing_off = off.contains(&get("value").to_lowercase().as_str());
            }
            ["cib", "configuration", "nodes", "node"] => {
                self.current = get("id");
                self.node().name = get("uname");
            }
            ["cib", "configuration", "nodes", "node", "instance_attributes", "nvpair"] => {
                let (name, value) = (get("name"), get("value"));
                self.node().permanent.insert(name, value);
            }
            ["cib", "status", "node_state"] => {
                self.current = get("id");
                let online = is_yes(&get("in_ccm"), "true")
                    && is_yes(&get("crmd"), "online")
                    && get("join") == "member";
                let expected = get("expected") == "member";
                let name = get("uname");
                let node = self.node();
                node.online = online;
                node.expected = expected;
                if node.name.is_empty() {
                    node.name = name;
                }
            }
            ["cib", "status", "node_state", "transient_attributes", _, "nvpair"] => {
                let (name, value) = (get("name"), get("value"));
                self.node().transient.insert(name, value);
            }
            _ => {}
        }
        Ok(())
    }

    fn leave(&mut self) {
        self.path.pop();
    }

    fn node(&mut self) -> &mut Node {
        let id = self.current.clone();
        self.nodes.entry(id.clone()).or_insert_with(|| Node { id, ..Node::default() })
    }

    fn finish(self) -> Cib {
        let named = self.nodes.into_values().filter(|node| !node.name.is_empty());
        let nodes = named.map(|node| (node.name.clone(), node)).collect();
        Cib { nodes, fences: !self.fencing_off }
    }
}

/// Membership is a word up to Pacemaker 2.1, and the time of joining, or 0, since then.
fn is_yes(value: &str, word: &str) -> bool {
    value == word || value.parse::<u64>().is_ok_and(|since| since > 0)
}

fn attributes(element: &BytesStart<'_>) -> Result<BTreeMap<String, String>, CibError> {
    element
        .attributes()
        .map(|attribute| {
            let attribute = attribute.map_err(|error| CibError::Malformed(error.to_string()))?;
            let value = attribute
                .normalized_value(quick_xml::XmlVersion::Implicit1_0)
                .map_err(|error| CibError::Malformed(error.to_string()))?;
            let key = attribute.key.as_ref().to_owned();
            Ok((key, value.into_owned()))
        })
        .collect()
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

    const XML: &str = r#"<?xml version="1.0"?>
<cib have-quorum="1" dc-uuid="1">
  <configuration><crm_config/>
    <nodes>
      <node id="1" uname="pg01"><instance_attributes id="nodes-1">
        <nvpair id="nodes-1-a" name="Postgresql-data-status" value="LATEST"/>
      </instance_attributes></node>
      <node id="2" uname="pg02"/>
      <node id="3" uname="pg03"/>
    </nodes><resources/><constraints/>
  </configuration>
  <status>
    <node_state id="1" uname="pg01" in_ccm="true" crmd="online" join="member" expected="member">
      <transient_attributes id="1"><instance_attributes id="status-1">
        <nvpair id="s1" name="Postgresql-status" value="PRI"/>
        <nvpair id="s2" name="master-Postgresql" value="1000"/>
        <nvpair id="s3" name="Postgresql-address" value="172.17.0.4"/>
      </instance_attributes></transient_attributes>
    </node_state>
    <node_state id="2" uname="pg02" in_ccm="1795205000" crmd="1795205001" join="member"/>
    <node_state id="3" uname="pg03" in_ccm="0" crmd="0" join="down" expected="member"/>
  </status>
</cib>"#;

    #[test]
    fn nodes_and_both_kinds_of_attributes_are_read() {
        let names = Names::of("Postgresql");
        let cib = Cib::parse(XML).expect("a CIB");
        let first = cib.node("pg01").expect("there");
        assert_eq!(first.status(&names), Some(Status::Primary));
        assert_eq!(first.data_status(&names), Some(DataStatus::Latest));
        assert_eq!(first.score(&names), Some(Score::PRIMARY));
        assert_eq!(cib.primary_other_than("pg02", &names), Some(first));
        assert_eq!(cib.primary_other_than("pg01", &names), None);
    }

    #[test]
    fn membership_is_read_in_the_old_and_the_new_form() {
        let cib = Cib::parse(XML).expect("a CIB");
        let online: Vec<bool> = cib.nodes.values().map(|node| node.online).collect();
        assert_eq!(online, [true, true, false]);
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
    fn of_two_nodes_one_that_is_lost_and_not_fenced_may_go_on() {
        let pair = |expected: &str, property: &str| {
            let text = format!(
                "<cib><configuration><crm_config><cluster_property_set>{property}</cluster_property_set>\
                 </crm_config><nodes><node id=\"1\" uname=\"pg01\"/><node id=\"2\" uname=\"pg02\"/></nodes>\
                 </configuration><status><node_state id=\"2\" uname=\"pg02\" in_ccm=\"0\" crmd=\"0\" \
                 join=\"down\" expected=\"{expected}\"/></status></cib>"
            );
            let cib = Cib::parse(&text).expect("a CIB");
            cib.unfenced_other("pg01").map(|node| node.name.clone())
        };
        let set = |value| format!("<nvpair id=\"s\" name=\"stonith-enabled\" value=\"{value}\"/>");
        assert_eq!(pair("member", "").as_deref(), Some("pg02"));
        assert_eq!(pair("member", &set("true")).as_deref(), Some("pg02"));
        assert_eq!(pair("down", &set("true")), None);
        assert_eq!(pair("member", &set("False")), None);
        // Of three nodes, the majority goes on and nobody else.
        let three = Cib::parse(XML).expect("a CIB");
        assert_eq!(three.unfenced_other("pg01"), None);
        // One that was taken out and not removed, or a remote one, changes nothing.
        let mut odd = three.clone();
        odd.nodes.get_mut("pg02").expect("there").online = false;
        assert_eq!(odd.unfenced_other("pg01").map(|node| &*node.name), Some("pg03"));
    }

    #[test]
    fn half_a_cib_is_refused() {
        let cut = &XML[..XML.len() - 20];
        assert!(matches!(Cib::parse(cut), Err(CibError::CutShort | CibError::Malformed(_))));
        assert_eq!(Cib::parse(""), Err(CibError::NotACib));
        assert_eq!(Cib::parse("<html></html>"), Err(CibError::NotACib));
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
