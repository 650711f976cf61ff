//! Location constraints: the one that pgcm makes for a move, and those that people left behind.

use super::{
    crm_mon::score,
    xml::{Element, XmlError},
};

/// Prefix of the constraints that pgcm makes.
const OURS: &str = "pgcm-move-";
/// Prefix of those that `crm_resource --move` and `--ban` make, and `crm` and `pcs` through it.
const BY_HAND: &str = "cli-";

/// Id of the constraint that moves the promoted role of `clone`: one per clone.
pub fn move_id(clone: &str) -> String {
    format!("{OURS}{clone}")
}

/// A location constraint as the CIB has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub id: String,
    /// Resource or clone that it is about.
    pub resource: String,
    /// When it stops to count, as the CIB has it; `None`: never.
    pub until: Option<String>,
    /// What it says of the promoted role on single nodes. Rules of more than a node's name and a date say nothing here.
    pub promoted: Vec<Preference>,
}

/// How much a node is to have the promoted role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Preference {
    pub node: String,
    /// Added to the promotion score; infinite ones are the extremes.
    pub score: i64,
}

impl Preference {
    /// What all of `said` about `node` add up to, as Pacemaker adds: never wins over always.
    pub fn total<'a>(said: impl Iterator<Item = &'a Self>, node: &str) -> i64 {
        let scores: Vec<i64> =
            said.filter(|said| said.node == node).map(|said| said.score).collect();
        if let Some(&infinite) = [i64::MIN, i64::MAX].iter().find(|score| scores.contains(score)) {
            return infinite;
        }
        scores.into_iter().fold(0, i64::saturating_add)
    }
}

impl Location {
    /// Whether pgcm made it, to move the promoted role.
    pub fn is_ours(&self) -> bool {
        self.id.starts_with(OURS)
    }

    /// Whether it is a leftover of a move or ban: by pgcm, or by hand.
    pub fn is_leftover(&self) -> bool {
        self.is_ours() || self.id.starts_with(BY_HAND)
    }
}

/// Reads what `cibadmin --query --scope constraints` prints.
pub fn parse(text: &str) -> Result<Vec<Location>, XmlError> {
    let root = Element::parse(text)?;
    let found = root.descendants().into_iter().filter(|element| element.name == "rsc_location");
    Ok(found
        .map(|location| Location {
            id: location.attribute("id").to_owned(),
            resource: location.attribute("rsc").to_owned(),
            until: location
                .descendants()
                .into_iter()
                .find(|element| element.name == "date_expression")
                .and_then(|date| date.attributes.get("end").cloned()),
            promoted: preferences(location),
        })
        .collect())
}

/// Of the constraint itself, or of its rules.
fn preferences(location: &Element) -> Vec<Preference> {
    let is_promoted = |role: &str| ["Promoted", "Master"].contains(&role);
    let whole = is_promoted(location.attribute("role"));
    let mut found = Vec::new();
    if whole && !location.attribute("node").is_empty() {
        found.push((location.attribute("node"), location.attribute("score")));
    }
    for rule in location.children.iter().filter(|child| child.name == "rule") {
        let role = rule.attribute("role");
        if is_promoted(role) || whole && role.is_empty() {
            found.extend(only_node(rule).map(|node| (node, rule.attribute("score"))));
        }
    }
    let preference =
        |(node, text): (&str, &str)| Preference { node: node.to_owned(), score: score(text) };
    found.into_iter().map(preference).collect()
}

/// The node of a rule that holds for one by its name, whatever dates it names.
fn only_node(rule: &Element) -> Option<&str> {
    let (dates, others): (Vec<&Element>, Vec<&Element>) =
        rule.children.iter().partition(|child| child.name == "date_expression");
    let [expression] = others[..] else { return None };
    let by_name =
        expression.attribute("attribute") == "#uname" && expression.attribute("operation") == "eq";
    let and = rule.attribute("boolean-op") != "or" || dates.is_empty();
    (by_name && and).then(|| expression.attribute("value"))
}

/// The constraint that moves the promoted role.
#[derive(Debug, Clone, Copy)]
pub struct MoveRule<'a> {
    pub clone: &'a str,
    /// What this Pacemaker calls the promoted role.
    pub role: &'a str,
    /// Name of the node to move to.
    pub target: &'a str,
    /// When it stops to count, RFC 3339 in UTC.
    pub until: &'a str,
}

impl MoveRule<'_> {
    pub fn xml(self) -> String {
        let id = escape(&move_id(self.clone));
        let [clone, role, target, until] =
            [self.clone, self.role, self.target, self.until].map(escape);
        format!(
            "<rsc_location id=\"{id}\" rsc=\"{clone}\">\
             <rule id=\"{id}-rule\" role=\"{role}\" score=\"INFINITY\" boolean-op=\"and\">\
             <expression id=\"{id}-node\" attribute=\"#uname\" operation=\"eq\" value=\"{target}\"/>\
             <date_expression id=\"{id}-until\" operation=\"lt\" end=\"{until}\"/>\
             </rule></rsc_location>"
        )
    }
}

fn escape(text: &str) -> String {
    quick_xml::escape::escape(text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let rule = MoveRule {
            clone: "msPostgresql",
            role: "Promoted",
            target: "pg\"02",
            until: "2026-11-20T21:00:00Z",
        };
        let xml = format!("<constraints>{}<rsc_colocation id=\"x\"/></constraints>", rule.xml());
        let expected = Location {
            id: "pgcm-move-msPostgresql".to_owned(),
            resource: "msPostgresql".to_owned(),
            until: Some("2026-11-20T21:00:00Z".to_owned()),
            promoted: vec![Preference { node: "pg\"02".to_owned(), score: i64::MAX }],
        };
        assert_eq!(parse(&xml).unwrap(), [expected]);
    }

    #[test]
    fn preferences_for_the_promoted_role_are_read() {
        let of = |inner: &str| {
            let parsed = parse(&format!("<constraints>{inner}</constraints>")).unwrap();
            let found = parsed.into_iter().flat_map(|location| location.promoted);
            found.map(|p| format!("{} {}", p.node, p.score)).collect::<Vec<_>>()
        };
        let by_node = |role: &str| {
            format!("<rsc_location id=\"x\" rsc=\"ms\" {role} node=\"pg01\" score=\"950\"/>")
        };
        assert_eq!(of(&by_node("role=\"Promoted\"")), ["pg01 950"]);
        assert_eq!(of(&by_node("role=\"Master\"")), ["pg01 950"]);
        assert!(of(&by_node("")).is_empty());
        let by_rule = |rule: &str, inner: &str| {
            format!(
                "<rsc_location id=\"x\" rsc=\"ms\"><rule id=\"r\" {rule}>{inner}</rule></rsc_location>"
            )
        };
        let name = "<expression id=\"e\" attribute=\"#uname\" operation=\"eq\" value=\"pg02\"/>";
        let other = "<expression id=\"f\" attribute=\"disk\" operation=\"eq\" value=\"fast\"/>";
        let never = "role=\"Promoted\" score=\"-INFINITY\"";
        assert_eq!(of(&by_rule(never, name)), [format!("pg02 {}", i64::MIN)]);
        assert!(of(&by_rule("score=\"100\"", name)).is_empty());
        assert!(of(&by_rule(never, &format!("{name}{other}"))).is_empty());
    }

    #[test]
    fn leftovers_are_told_from_what_was_configured() {
        let location = |id: &str| Location {
            id: id.to_owned(),
            resource: "msPostgresql".to_owned(),
            until: None,
            promoted: Vec::new(),
        };
        assert!(location("cli-ban-msPostgresql-on-pg01").is_leftover());
        assert!(!location("prefer-pg01").is_leftover());
        assert!(!location("cli-prefer-msPostgresql").is_ours());
    }
}
