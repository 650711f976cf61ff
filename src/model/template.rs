//! Template and cluster view to text.

use std::net::{IpAddr, Ipv4Addr};

use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior, Value, value::Serde};
use serde::Serialize;

use super::{cluster::ClusterView, pgbouncer_ini};

/// What a template can name.
///
/// What changes with every look (lag, the time of observation) is left out on purpose: each change
/// of a rendered file is a RELOAD.
#[derive(Debug, Clone, Serialize)]
pub struct Context {
    /// The primary's address; `{{.Host}}` in older templates.
    host: String,
    /// Absent while etcd holds no view that agrees with `/master`.
    #[serde(skip_serializing_if = "Option::is_none")]
    primary: Option<Named>,
    #[serde(skip_serializing_if = "Option::is_none")]
    standbys: Option<Vec<Follower>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_identifier: Option<String>,
}

#[derive(Debug, Clone, Serialize)]
struct Named {
    name: String,
    address: IpAddr,
    timeline: u32,
}

#[derive(Debug, Clone, Serialize)]
struct Follower {
    name: String,
    address: Option<IpAddr>,
    state: String,
    sync_state: String,
}

impl Context {
    pub fn new(address: IpAddr, view: Option<&ClusterView>) -> Self {
        Self {
            host: address.to_string(),
            primary: view.map(|view| Named {
                name: view.primary.name.clone(),
                address: view.primary.address,
                timeline: view.primary.timeline,
            }),
            standbys: view.map(|view| view.standbys.iter().map(Follower::from).collect()),
            system_identifier: view.map(|view| view.system_identifier.clone()),
        }
    }

    /// Of no cluster there is, to try templates on: a primary with a standby, and one that nobody follows, as
    /// right after it was promoted. RFC 5737 keeps these addresses for examples.
    fn examples() -> [Self; 2] {
        let (primary, standby) = (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2));
        let follower = Follower {
            name: "pg02".to_owned(),
            address: Some(standby.into()),
            state: "streaming".to_owned(),
            sync_state: "sync".to_owned(),
        };
        [vec![follower], Vec::new()].map(|standbys| Self {
            host: primary.to_string(),
            primary: Some(Named { name: "pg01".to_owned(), address: primary.into(), timeline: 1 }),
            standbys: Some(standbys),
            system_identifier: Some("1".to_owned()),
        })
    }
}

impl From<&super::cluster::Standby> for Follower {
    fn from(standby: &super::cluster::Standby) -> Self {
        Self {
            name: standby.name.clone(),
            address: standby.address,
            state: standby.state.clone(),
            sync_state: standby.sync_state.clone(),
        }
    }
}

/// Renders `source` for examples, as PgBouncer's own template if it is that.
///
/// # Errors
/// Also for a template that knows the names of a real cluster's nodes and no others.
pub fn rehearse(file: &str, source: &str, is_pgbouncers: bool) -> Result<(), TemplateError> {
    for example in Context::examples() {
        if is_pgbouncers {
            render_pgbouncer(file, source, &example)?;
        } else {
            render(file, source, &example)?;
        }
    }
    Ok(())
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    #[error("template {file}, line {line}: {reason}; {remedy}")]
    Line { file: String, line: usize, reason: String, remedy: &'static str },
    #[error("template {file} renders to a file that PgBouncer cannot use")]
    Ini {
        file: String,
        #[source]
        source: pgbouncer_ini::IniError,
    },
    #[error(
        "template {file}: no database in [databases] points at the primary {host}; \
         write host={{{{.Host}}}} where the primary is meant"
    )]
    Elsewhere { file: String, host: String },
}

/// Renders `source`; `file` names it in errors.
///
/// # Errors
/// [`TemplateError::Line`] for bad syntax and for every name that the context does not have: an
/// unknown name never renders as an empty string.
pub fn render(file: &str, source: &str, context: &Context) -> Result<String, TemplateError> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    let translated = translate(source);
    let mut text = environment
        .render_named_str(file, &translated, Value::from(Serde(context)))
        .map_err(|error| explain(file, &translated, &error))?;
    if source.ends_with('\n') {
        // The engine drops the last newline of a template.
        text.push('\n');
    }
    Ok(text)
}

/// Renders PgBouncer's own template, and makes sure that PgBouncer can read the result and finds
/// the primary in it. Returns the text and its databases.
pub fn render_pgbouncer(
    file: &str,
    source: &str,
    context: &Context,
) -> Result<(String, Vec<pgbouncer_ini::Database>), TemplateError> {
    let text = render(file, source, context)?;
    let databases = pgbouncer_ini::parse(&text)
        .map_err(|source| TemplateError::Ini { file: file.to_owned(), source })?;
    let primary = |host: &str| {
        host == context.host || context.primary.as_ref().is_some_and(|named| named.name == host)
    };
    let hosts = databases.iter().filter_map(|database| database.host.as_deref());
    if !hosts.flat_map(|hosts| hosts.split(',')).any(primary) {
        let host = context.host.clone();
        return Err(TemplateError::Elsewhere { file: file.to_owned(), host });
    }
    Ok((text, databases))
}

/// Turns the one expression of older, Go templates into ours: `{{ .Host }}` to `{{ host }}`.
fn translate(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some((before, after)) = rest.split_once("{{") {
        text.push_str(before);
        text.push_str("{{");
        rest = after;
        let Some((inside, beyond)) = after.split_once("}}") else { break };
        if inside.trim_start_matches('-').trim_end_matches('-').trim() == ".Host" {
            text.push_str(&inside.replace(".Host", " host "));
            text.push_str("}}");
            rest = beyond;
        }
    }
    text.push_str(rest);
    text
}

fn explain(file: &str, source: &str, error: &minijinja::Error) -> TemplateError {
    let line = error.line().unwrap_or(1);
    let text = source.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
    let what = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    let remedy = match error.kind() {
        ErrorKind::UndefinedError => {
            "known names: host, and once supervise has published its view primary.name, \
             primary.address, primary.timeline, standbys, system_identifier"
        }
        ErrorKind::SyntaxError => {
            "the language is Jinja; of Go templates only {{.Host}} is understood"
        }
        _ => "correct the template; the last good file stays in use until then",
    };
    TemplateError::Line {
        file: file.to_owned(),
        line,
        reason: format!("{what} in `{text}`"),
        remedy,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::wanted::tests::view;

    fn context() -> Context {
        Context::new("10.0.0.1".parse().expect("an address"), Some(&view("10.0.0.1")))
    }

    #[test]
    fn the_host_renders_in_every_form_of_older_templates() {
        for source in ["{{.Host}}", "{{ .Host }}", "{{  .Host}}", "{{- .Host -}}", "{{ host }}"] {
            assert_eq!(render("t", source, &context()).as_deref(), Ok("10.0.0.1"), "{source}");
        }
    }

    #[test]
    fn everything_else_stays_byte_by_byte() {
        let source = "; {{.Host}} here\n[databases]\n\n* = host={{.Host}}  \n";
        let text = render("t", source, &context()).expect("renders");
        assert_eq!(text, "; 10.0.0.1 here\n[databases]\n\n* = host=10.0.0.1  \n");
    }

    #[test]
    fn the_whole_view_is_there() {
        let source = "{{ primary.name }} {{ primary.timeline }}\
            {% for s in standbys if s.sync_state == 'sync' %} {{ s.name }}={{ s.address }}{% endfor %}";
        assert_eq!(render("t", source, &context()).as_deref(), Ok("pg01 7 pg02=10.0.0.2"));
    }

    #[test]
    fn errors_name_file_line_and_remedy() {
        let cases = [
            ("a\n{{ hosst }}\n", 2, "known names: host"),
            ("a\nb\n{{ primary.nam }}\n", 3, "known names: host"),
            ("{{.Port}}\n", 1, "only {{.Host}} is understood"),
            ("a\n{% if host %}\n", 2, "Jinja"),
            ("{{ host", 1, "Jinja"),
        ];
        for (source, line, remedy) in cases {
            let error = render("/etc/t.template", source, &context()).expect_err("refused");
            let text = error.to_string();
            assert!(text.starts_with("template /etc/t.template, line"), "{text}");
            assert!(text.contains(remedy), "{text}");
            let TemplateError::Line { line: found, .. } = error else { panic!("{text}") };
            assert!(found >= line.min(2) - 1 && found <= line + 1, "{text}");
        }
    }

    #[test]
    fn without_a_view_its_names_are_refused_and_the_host_still_renders() {
        let context = Context::new("10.0.0.1".parse().expect("an address"), None);
        assert!(render("t", "{{ primary.name }}", &context).is_err());
        assert_eq!(render("t", "{{ host }}", &context).as_deref(), Ok("10.0.0.1"));
    }

    #[test]
    fn a_pgbouncer_template_must_lead_to_the_primary() {
        let good = "[databases]\na = host={{.Host}}\n";
        assert!(render_pgbouncer("t", good, &context()).is_ok());
        let error =
            render_pgbouncer("t", "[databases]\na = host=10.9.9.9\n", &context()).expect_err("no");
        assert!(error.to_string().contains("write host={{.Host}}"), "{error}");
        assert!(matches!(
            render_pgbouncer("t", "[pgbouncer]\n", &context()),
            Err(TemplateError::Ini { .. })
        ));
    }
}
