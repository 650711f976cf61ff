//! The text of `pgcm.conf`, and the lines elsewhere that would defeat it.

/// The settings that the agent owns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Empty while no upstream is known.
    pub primary_conninfo: String,
    /// The one synchronous standby.
    pub sync_name: SyncName,
}

/// Whom the primary waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SyncName {
    /// Nobody.
    #[default]
    None,
    /// A standby that streams.
    Node(String),
    /// A name that no standby has: writes wait until one is chosen.
    Block,
}

/// No node can be called so: Postgres' own names have no such character in a host name.
const NOBODY: &str = "pgcm: no standby";

impl SyncName {
    /// The value of `synchronous_standby_names`.
    pub fn setting(&self) -> String {
        match self {
            Self::None => String::new(),
            Self::Node(name) => format!("\"{}\"", name.replace('"', "\"\"")),
            Self::Block => format!("\"{NOBODY}\""),
        }
    }

    /// Reads back what [`Self::setting`] wrote; anything else is `None`.
    pub fn parse(setting: &str) -> Option<Self> {
        if setting.trim().is_empty() {
            return Some(Self::None);
        }
        let name = setting.trim().strip_prefix('"')?.strip_suffix('"')?;
        let plain = name.replace("\"\"", "");
        if plain.contains('"') {
            return None;
        }
        let name = name.replace("\"\"", "\"");
        Some(if name == NOBODY { Self::Block } else { Self::Node(name) })
    }
}

/// Names of the settings in `pgcm.conf`.
const OWNED: [&str; 3] =
    ["primary_conninfo", "synchronous_standby_names", "recovery_target_timeline"];

impl Settings {
    /// The whole text of `pgcm.conf`.
    pub fn render(&self) -> String {
        format!(
            "# Written by the resource agent ocf:pgcm:pgsql; changes here are lost.\n\
             primary_conninfo = {}\n\
             synchronous_standby_names = {}\n\
             recovery_target_timeline = 'latest'\n",
            literal(&self.primary_conninfo),
            literal(&self.sync_name.setting()),
        )
    }

    /// Reads back what [`Self::render`] wrote; missing lines are empty settings.
    pub fn parse(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = '"));
            let inner = line.and_then(|line| line.strip_suffix('\''));
            inner.unwrap_or_default().replace("''", "'").replace("\\\\", "\\")
        };
        Self {
            primary_conninfo: value("primary_conninfo"),
            sync_name: SyncName::parse(&value("synchronous_standby_names")).unwrap_or_default(),
        }
    }
}

/// A string as configuration files quote it.
fn literal(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// The main configuration file with the line that includes `pgcm_conf` as its last setting.
///
/// `None` when the line is there already.
pub fn with_include(config: &str, pgcm_conf: &str) -> Option<String> {
    let line = format!("include_if_exists = {}", literal(pgcm_conf));
    let last =
        config.lines().map(str::trim).rfind(|line| !line.is_empty() && !line.starts_with('#'));
    if last == Some(line.as_str()) {
        return None;
    }
    let others = config.lines().filter(|other| other.trim() != line);
    let mut text: String = others.flat_map(|line| [line, "\n"]).collect();
    text.push_str(&line);
    text.push('\n');
    Some(text)
}

/// `postgresql.auto.conf` without settings that the agent owns and that would outweigh `pgcm.conf`,
/// such as `pg_basebackup -R` leaves behind. `None` when there are none.
pub fn without_owned(auto_conf: &str) -> Option<String> {
    let owned = |line: &str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        OWNED.contains(&name)
    };
    if !auto_conf.lines().any(owned) {
        return None;
    }
    let kept = auto_conf.lines().filter(|line| !owned(line));
    Some(kept.flat_map(|line| [line, "\n"]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn settings_read_back(conninfo in "[ -~]*", name in "[ -~]+") {
            prop_assume!(name != NOBODY);
            let settings =
                Settings { primary_conninfo: conninfo, sync_name: SyncName::Node(name) };
            prop_assert_eq!(Settings::parse(&settings.render()), settings);
        }
    }

    #[test]
    fn blocking_names_nobody() {
        let setting = SyncName::Block.setting();
        assert_eq!(SyncName::parse(&setting), Some(SyncName::Block));
        assert_eq!(SyncName::parse("ANY 1 (a, b)"), None);
        assert_eq!(SyncName::parse(""), Some(SyncName::None));
    }

    #[test]
    fn the_include_line_is_added_once_and_kept_last() {
        let first = with_include("port = 5432", "/data/pgcm.conf").expect("added");
        assert_eq!(first, "port = 5432\ninclude_if_exists = '/data/pgcm.conf'\n");
        assert_eq!(with_include(&first, "/data/pgcm.conf"), None);
        let later = format!("{first}synchronous_standby_names = '*'\n");
        let moved = with_include(&later, "/data/pgcm.conf").expect("moved to the end");
        assert!(moved.ends_with("'*'\ninclude_if_exists = '/data/pgcm.conf'\n"));
        assert_eq!(moved.matches("include_if_exists").count(), 1);
    }

    #[test]
    fn leftovers_of_a_base_backup_are_dropped() {
        let text = "# Do not edit\nprimary_conninfo = 'host=old'\nwork_mem = '8MB'\n";
        assert_eq!(without_owned(text).as_deref(), Some("# Do not edit\nwork_mem = '8MB'\n"));
        assert_eq!(without_owned("work_mem = '8MB'\nprimary_conninfo_x = 1\n"), None);
    }
}
