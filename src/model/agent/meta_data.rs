//! The agent's description of itself, in the XML of OCF 1.1.

use std::fmt::Write;

use super::parameters::DOCUMENTED;

/// Name, then the attributes of each action: timeouts that leave room for a fast shutdown.
const ACTIONS: &str = r#"<action name="start" timeout="120s"/>
<action name="stop" timeout="120s"/>
<action name="monitor" depth="0" timeout="30s" interval="3s"/>
<action name="monitor" depth="0" timeout="30s" interval="1s" role="Promoted"/>
<action name="promote" timeout="60s"/>
<action name="demote" timeout="120s"/>
<action name="notify" timeout="30s"/>
<action name="validate-all" timeout="10s"/>
<action name="meta-data" timeout="5s"/>
"#;

const LONG: &str = "Runs one Postgres of a cluster with streaming replication as a promotable clone, \
without a floating IP. A standby may be promoted only while it holds every acknowledged commit; a \
former primary comes back by itself where that is provably safe. Postgres 13 and later.";

/// The whole document.
pub fn xml(version: &str) -> String {
    let mut parameters = String::new();
    for known in DOCUMENTED {
        let required = u8::from(known.required);
        let default = if known.default.is_empty() {
            String::new()
        } else {
            format!(" default=\"{}\"", escaped(known.default))
        };
        // Writing into a String cannot fail.
        let _ = write!(
            parameters,
            "<parameter name=\"{name}\" required=\"{required}\" unique=\"0\">\n\
             <longdesc lang=\"en\">{long}</longdesc>\n\
             <shortdesc lang=\"en\">{short}</shortdesc>\n\
             <content type=\"{kind}\"{default}/>\n\
             </parameter>\n",
            name = known.name,
            long = escaped(known.long),
            short = escaped(known.short),
            kind = known.kind,
        );
    }
    format!(
        "<?xml version=\"1.0\"?>\n\
         <!DOCTYPE resource-agent SYSTEM \"ra-api-1.dtd\">\n\
         <resource-agent name=\"pgsql\" version=\"{version}\">\n\
         <version>1.1</version>\n\
         <longdesc lang=\"en\">{LONG}</longdesc>\n\
         <shortdesc lang=\"en\">Postgres with streaming replication, no floating IP</shortdesc>\n\
         <parameters>\n{parameters}</parameters>\n\
         <actions>\n{ACTIONS}</actions>\n\
         </resource-agent>\n"
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use quick_xml::{Reader, events::Event};

    #[test]
    fn every_parameter_is_in_well_formed_xml() {
        let text = xml("0.1.0");
        let mut reader = Reader::from_str(&text);
        let mut parameters = 0;
        loop {
            match reader.read_event().expect("well-formed") {
                Event::Start(tag) if tag.name().as_ref() == "parameter" => parameters += 1,
                Event::Eof => break,
                _ => {}
            }
        }
        assert_eq!(parameters, DOCUMENTED.len());
    }

    #[test]
    fn every_parameter_says_what_it_does() {
        for known in DOCUMENTED {
            assert!(known.long.ends_with('.') && !known.short.ends_with('.'), "{}", known.name);
        }
    }

    /// The attributes of every tag called `name`.
    fn tags(name: &str) -> Vec<BTreeMap<String, String>> {
        let text = xml("0.1.0");
        let mut reader = Reader::from_str(&text);
        let mut found = Vec::new();
        loop {
            let tag = match reader.read_event().expect("well-formed") {
                Event::Start(tag) | Event::Empty(tag) => tag,
                Event::Eof => return found,
                _ => continue,
            };
            if tag.name().as_ref() == name {
                let attributes = tag.attributes().map(|attribute| {
                    let attribute = attribute.expect("well-formed");
                    (attribute.key.as_ref().to_owned(), attribute.value.to_string())
                });
                found.push(attributes.collect());
            }
        }
    }

    #[test]
    fn the_document_keeps_to_ocf_1_1_where_the_dtd_asks_for_less() {
        assert!(xml("0.1.0").contains("<version>1.1</version>"));
        let actions = tags("action");
        let names: Vec<&str> = actions.iter().map(|action| action["name"].as_str()).collect();
        for wanted in ["start", "stop", "monitor", "meta-data", "validate-all", "promote", "demote"]
        {
            assert!(names.contains(&wanted), "{wanted}: {names:?}");
        }
        let mut intervals = Vec::new();
        for action in &actions {
            assert!(action["timeout"].ends_with('s'), "{action:?}");
            let role = action.get("role").map_or("Unpromoted", String::as_str);
            assert!(["Promoted", "Unpromoted"].contains(&role), "{action:?}");
            intervals.extend(action.get("interval"));
        }
        // Pacemaker tells monitors apart by their intervals.
        assert_eq!(intervals.len(), 2);
        assert_ne!(intervals[0], intervals[1]);
    }

    #[test]
    fn every_default_is_of_its_type_and_only_optional_parameters_have_one() {
        let contents = tags("content");
        assert_eq!(contents.len(), DOCUMENTED.len());
        for (parameter, content) in tags("parameter").iter().zip(&contents) {
            let default = content.get("default");
            assert!(parameter["required"] == "0" || default.is_none(), "{parameter:?}");
            let fits = match (content["type"].as_str(), default) {
                ("string", _) => true,
                ("integer", Some(default)) => default.parse::<u64>().is_ok(),
                ("boolean", Some(default)) => ["true", "false"].contains(&default.as_str()),
                _ => false,
            };
            assert!(fits, "{parameter:?} {content:?}");
        }
    }

    #[test]
    fn the_examples_advise_what_the_document_advises() {
        let readme = include_str!("../../../resource-agents/README.md");
        let examples: Vec<&str> =
            readme.split("```").filter(|text| text.contains("op start")).collect();
        assert_eq!(examples.len(), 2, "one for crmsh, one for pcs");
        for example in examples {
            for action in tags("action") {
                let (name, timeout) = (&action["name"], &action["timeout"]);
                let op = match action.get("interval") {
                    Some(interval) => format!("op monitor interval={interval} timeout={timeout}"),
                    None if ["start", "stop", "promote", "demote"].contains(&name.as_str()) => {
                        format!("op {name} timeout={timeout}")
                    }
                    None => continue,
                };
                assert!(example.contains(&op), "{op}");
            }
        }
    }
}
