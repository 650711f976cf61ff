//! The CIB's XML, as `cibadmin --query` prints it, to nodes and attributes.

use std::collections::BTreeMap;

use quick_xml::{
    Reader,
    events::{BytesStart, Event},
};

use super::cib::{Cib, Node};

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
mod tests {
    use super::*;
    use crate::model::agent::{
        cib::Names,
        claim::{DataStatus, Score, Status},
    };

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
        let named = |name, value| format!("<nvpair id=\"s\" name=\"{name}\" value=\"{value}\"/>");
        let set = |value| named("stonith-enabled", value);
        assert_eq!(pair("member", "").as_deref(), Some("pg02"));
        assert_eq!(pair("member", &set("true")).as_deref(), Some("pg02"));
        assert_eq!(pair("down", &set("true")), None);
        assert_eq!(pair("member", &set("False")), None);
        assert_eq!(pair("member", &named("fencing-enabled", "no")), None);
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
}
