//! The configuration as commented TOML: what `show-config` prints.

use super::{
    Api, Config, Etcd, Failover, Log, Node, Pacemaker, Pgbouncer, Postgres, Proxy, Web,
    section::Section,
};

/// Every section and key with its comment and the value it has in `config`.
pub fn render(config: &Config) -> String {
    let mut out = String::from(
        "# pgcm: every setting with its default. Lengths of time are written as \"5s\" or \"200ms\".\n",
    );
    section::<Node>(&mut out, "node", &config.node);
    section::<Etcd>(&mut out, "etcd", &config.etcd);
    section::<Pacemaker>(&mut out, "pacemaker", &config.pacemaker);
    section::<Postgres>(&mut out, "postgres", &config.postgres);
    section::<Pgbouncer>(&mut out, "pgbouncer", &config.pgbouncer);
    section::<Proxy>(&mut out, "proxy", &config.proxy);
    section::<Api>(&mut out, "api", &config.api);
    section::<Web>(&mut out, "web", &config.web);
    section::<Failover>(&mut out, "failover", &config.failover);
    section::<Log>(&mut out, "log", &config.log);
    out
}

fn section<S: Section>(out: &mut String, name: &str, values: &S) {
    out.push('\n');
    comment(out, S::DOC);
    out.push_str(&format!("[{name}]\n"));
    // A section is a struct of plain values, which TOML can always hold.
    let table = toml::Table::try_from(values).unwrap_or_default();
    for (index, field) in S::FIELDS.iter().enumerate() {
        if index > 0 {
            out.push('\n');
        }
        comment(out, field.doc);
        if let Some(value) = table.get(field.key) {
            out.push_str(&format!("{} = {value}\n", field.key));
        }
    }
}

fn comment(out: &mut String, lines: &[&str]) {
    for line in lines {
        out.push('#');
        out.push_str(line);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_reads_back_as_the_defaults() {
        let text = render(&Config::default());
        let read: Config = toml::from_str(&text).expect("show-config prints valid TOML");
        assert_eq!(read, Config::default());
    }

    #[test]
    fn every_key_has_a_comment() {
        let text = render(&Config::default());
        let bare = text.lines().zip(text.lines().skip(1)).find(|(before, line)| {
            line.contains(" = ") && !line.starts_with('#') && !before.starts_with('#')
        });
        assert_eq!(bare, None);
    }
}
