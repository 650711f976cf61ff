//! Colocation constraints that may keep Pacemaker from promoting anybody.

use super::{
    crm_mon::score,
    xml::{Element, XmlError},
};

/// A constraint that ties the promoted role to another resource, for better or worse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tie {
    pub id: String,
    /// What it is tied to; several resources where the constraint is about sets.
    pub other: String,
    /// Whether it must run on the primary's node; else it must not.
    pub together: bool,
}

/// Reads what `cibadmin --query --scope constraints` prints: those of infinite score whose other resource
/// has a say in where the resource that `is_ours` is promoted.
pub fn parse(text: &str, is_ours: impl Fn(&str) -> bool) -> Result<Vec<Tie>, XmlError> {
    let root = Element::parse(text)?;
    let found = root.descendants().into_iter().filter(|element| element.name == "rsc_colocation");
    let tie = |constraint: &Element| {
        let together = match score(constraint.attribute("score")) {
            i64::MAX => true,
            i64::MIN => false,
            _ => return None,
        };
        let other =
            other_of_two(constraint, &is_ours).or_else(|| other_of_sets(constraint, &is_ours));
        Some(Tie { id: constraint.attribute("id").to_owned(), other: other?, together })
    };
    Ok(found.filter_map(tie).collect())
}

/// Of a constraint between two: ours depends on the other, or the other on our promoted role. Pacemaker asks
/// for such a dependent's wishes as well, unless `influence` is false.
fn other_of_two(constraint: &Element, is_ours: impl Fn(&str) -> bool) -> Option<String> {
    let [dependent, leader] = ["rsc", "with-rsc"].map(|key| constraint.attribute(key));
    let role = |key: &str| constraint.attribute(key);
    let depends =
        is_ours(dependent) && !["Unpromoted", "Slave", "Stopped"].contains(&role("rsc-role"));
    let leads = is_ours(leader)
        && ["Promoted", "Master"].contains(&role("with-rsc-role"))
        && constraint.attribute("influence") != "false";
    match (depends, leads) {
        (true, _) => Some(leader.to_owned()),
        (_, true) => Some(dependent.to_owned()),
        _ => None,
    }
}

fn other_of_sets(constraint: &Element, is_ours: impl Fn(&str) -> bool) -> Option<String> {
    let members = constraint.descendants();
    let members = members.iter().filter(|element| element.name == "resource_ref");
    let (ours, others): (Vec<&str>, Vec<&str>) =
        members.map(|member| member.attribute("id")).partition(|id| is_ours(id));
    (!ours.is_empty() && !others.is_empty()).then(|| others.join(" and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ties(inner: &str) -> Vec<String> {
        let text = format!("<constraints>{inner}</constraints>");
        let found = parse(&text, |id| id == "msPostgresql").expect("XML");
        found.into_iter().map(|tie| format!("{} {} {}", tie.id, tie.other, tie.together)).collect()
    }

    fn two(attributes: &str) -> Vec<String> {
        ties(&format!("<rsc_colocation id=\"c\" {attributes}/>"))
    }

    #[test]
    fn what_must_or_must_not_run_with_the_primary_is_found() {
        let led = "rsc=\"vip\" with-rsc=\"msPostgresql\" with-rsc-role";
        assert_eq!(two(&format!("{led}=\"Promoted\" score=\"INFINITY\"")), ["c vip true"]);
        assert_eq!(two(&format!("{led}=\"Master\" score=\"-INFINITY\"")), ["c vip false"]);
        for role in ["", "rsc-role=\"Promoted\""] {
            let depends = "rsc=\"msPostgresql\" with-rsc=\"disk\" score=\"+INFINITY\"";
            assert_eq!(two(&format!("{depends} {role}")), ["c disk true"], "{role}");
        }
    }

    #[test]
    fn what_has_no_say_is_not() {
        let led = "rsc=\"vip\" with-rsc=\"msPostgresql\"";
        for harmless in [
            &format!("{led} with-rsc-role=\"Promoted\" score=\"500\"")[..],
            &format!("{led} with-rsc-role=\"Promoted\""),
            &format!("{led} with-rsc-role=\"Promoted\" score=\"INFINITY\" influence=\"false\""),
            &format!("{led} with-rsc-role=\"Unpromoted\" score=\"INFINITY\""),
            "rsc=\"msPostgresql\" rsc-role=\"Slave\" with-rsc=\"disk\" score=\"-INFINITY\"",
            "rsc=\"vip\" with-rsc=\"mail\" score=\"INFINITY\"",
        ] {
            assert_eq!(two(harmless), [""; 0], "{harmless}");
        }
    }

    #[test]
    fn sets_are_read() {
        let set = |score: &str, ids: [&str; 2]| {
            let [one, two] = ids.map(|id| {
                format!("<resource_set id=\"s\"><resource_ref id=\"{id}\"/></resource_set>")
            });
            ties(&format!("<rsc_colocation id=\"c\" score=\"{score}\">{one}{two}</rsc_colocation>"))
        };
        assert_eq!(set("INFINITY", ["vip", "msPostgresql"]), ["c vip true"]);
        assert_eq!(set("10", ["vip", "msPostgresql"]), [""; 0]);
        assert_eq!(set("INFINITY", ["vip", "mail"]), [""; 0]);
    }
}
