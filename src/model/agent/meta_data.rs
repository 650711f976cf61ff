//! The agent's description of itself, in the XML of OCF 1.1.

use std::fmt::Write;

use super::parameters::DOCUMENTED;

/// Name, then the attributes of each action: timeouts that leave room for a fast shutdown.
const ACTIONS: &str = r#"<action name="start" timeout="120s"/>
<action name="stop" timeout="120s"/>
<action name="monitor" depth="0" timeout="30s" interval="7s"/>
<action name="monitor" depth="0" timeout="30s" interval="3s" role="Promoted"/>
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
}
