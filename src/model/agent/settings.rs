//! The text of `pgcm.conf`, and the lines elsewhere that would defeat it.

use super::quorum::Quorum;

/// The settings that the agent owns.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// Empty while no upstream is known.
    pub primary_conninfo: String,
    /// Whom commits wait for.
    pub sync_name: SyncName,
    /// Replication slots; `None` leaves all that concerns them to the operator.
    pub slots: Option<SlotSettings>,
}

/// The settings of replication slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotSettings {
    /// This node's slot on its primary; empty when it can have none.
    pub own: String,
    /// How much WAL slots may keep, with its unit.
    pub wal_limit: String,
    /// Tells the primary what this standby still needs, as copied logical slots demand.
    pub feedback: bool,
    /// Copies logical failover slots from the primary (Postgres 17).
    pub copies_logical: bool,
    /// Physical slots that consumers of logical failover slots must not overtake (Postgres 17).
    pub ahead_of_logical: Vec<String>,
}

/// Whom the primary waits for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SyncName {
    /// Nobody.
    #[default]
    None,
    /// A standby that streams.
    Node(String),
    /// Any so many of these standbys.
    Quorum(Quorum),
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
            Self::Quorum(quorum) => {
                let names: Vec<_> =
                    quorum.members().iter().map(|name| format!("\"{name}\"")).collect();
                format!("ANY {} ({})", quorum.needed(), names.join(","))
            }
            Self::Block => format!("\"{NOBODY}\""),
        }
    }

    /// Reads back what [`Self::setting`] wrote; anything else is `None`.
    pub fn parse(setting: &str) -> Option<Self> {
        if setting.trim().is_empty() {
            return Some(Self::None);
        }
        if let Some(rest) = setting.strip_prefix("ANY ") {
            return quorum(rest).map(Self::Quorum).filter(|read| read.setting() == setting);
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

impl SyncName {
    /// Whether commits wait for `node`, alone or with others.
    pub fn names(&self, node: &str) -> bool {
        match self {
            Self::Node(name) => name == node,
            Self::Quorum(quorum) => quorum.contains(node),
            Self::None | Self::Block => false,
        }
    }
}

/// Reads `1 ("pg02","pg03")`.
fn quorum(text: &str) -> Option<Quorum> {
    let (needed, names) = text.split_once(" (")?;
    let names = names.strip_suffix(')')?.split(',');
    let plain = |name: &str| Some(name.strip_prefix('"')?.strip_suffix('"')?.to_owned());
    Quorum::new(needed.parse().ok()?, names.map(plain).collect::<Option<_>>()?)
}

const HEAD: &str = "# Written by the resource agent ocf:pgcm:pgsql; changes here are lost.\n";

impl Settings {
    /// The whole text of `pgcm.conf`.
    pub fn render(&self) -> String {
        let lines = self.lines().into_iter();
        let lines = lines.map(|(name, value)| format!("{name} = {}\n", literal(&value)));
        format!("{HEAD}{}", lines.collect::<String>())
    }

    fn lines(&self) -> Vec<(&'static str, String)> {
        let mut lines = vec![
            ("primary_conninfo", self.primary_conninfo.clone()),
            ("synchronous_standby_names", self.sync_name.setting()),
            ("recovery_target_timeline", "latest".to_owned()),
        ];
        if let Some(slots) = &self.slots {
            lines.push(("primary_slot_name", slots.own.clone()));
            lines.push(("max_slot_wal_keep_size", slots.wal_limit.clone()));
            if slots.feedback {
                lines.push(("hot_standby_feedback", "on".to_owned()));
            }
            if slots.copies_logical {
                lines.push(("sync_replication_slots", "on".to_owned()));
            }
            if !slots.ahead_of_logical.is_empty() {
                lines.push(("synchronized_standby_slots", slots.ahead_of_logical.join(", ")));
            }
        }
        lines
    }

    /// Reads back what [`Self::render`] wrote; missing lines are empty settings.
    pub fn parse(text: &str) -> Self {
        let found = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" = '"));
            let inner = line.and_then(|line| line.strip_suffix('\''))?;
            Some(inner.replace("''", "'").replace("\\\\", "\\"))
        };
        let value = |name: &str| found(name).unwrap_or_default();
        let slots = found("max_slot_wal_keep_size").map(|wal_limit| SlotSettings {
            own: value("primary_slot_name"),
            wal_limit,
            feedback: found("hot_standby_feedback").is_some(),
            copies_logical: found("sync_replication_slots").is_some(),
            ahead_of_logical: found("synchronized_standby_slots")
                .map(|slots| slots.split(", ").map(str::to_owned).collect())
                .unwrap_or_default(),
        });
        Self {
            primary_conninfo: value("primary_conninfo"),
            sync_name: SyncName::parse(&value("synchronous_standby_names")).unwrap_or_default(),
            slots,
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

/// `postgresql.auto.conf` without what would outweigh `settings`, such as `pg_basebackup -R` leaves
/// behind. `None` when there is nothing of that kind.
pub fn without_owned(auto_conf: &str, settings: &Settings) -> Option<String> {
    let lines = settings.lines();
    let owned = |line: &str| {
        let name = line.split('=').next().unwrap_or_default().trim();
        lines.iter().any(|(known, _)| *known == name)
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
        fn settings_read_back(
            conninfo in "[ -~]*",
            name in "[ -~]+",
            slots in prop::option::of(("[a-z0-9_]*", "[1-9][0-9]{0,3}GB", any::<[bool; 2]>())),
            ahead_of_logical in prop::collection::vec("[a-z0-9_]+", 0..3),
        ) {
            prop_assume!(name != NOBODY);
            let slots = slots.map(|(own, wal_limit, [feedback, copies_logical])| {
                SlotSettings { own, wal_limit, feedback, copies_logical, ahead_of_logical }
            });
            let sync_name = SyncName::Node(name);
            let settings = Settings { primary_conninfo: conninfo, sync_name, slots };
            prop_assert_eq!(Settings::parse(&settings.render()), settings);
        }
    }

    #[test]
    fn blocking_names_nobody() {
        let setting = SyncName::Block.setting();
        assert_eq!(SyncName::parse(&setting), Some(SyncName::Block));
        assert_eq!(SyncName::parse("ANY 1 (a, b)"), None);
        assert_eq!(SyncName::parse("ANY 3 (\"a\",\"b\")"), None);
        assert_eq!(SyncName::parse(""), Some(SyncName::None));
    }

    #[test]
    fn a_quorum_reads_back_as_it_was_written() {
        let quorum = super::super::quorum::tests::quorum(1, &["pg03", "pg02"]);
        let name = SyncName::Quorum(quorum);
        assert_eq!(name.setting(), "ANY 1 (\"pg02\",\"pg03\")");
        assert_eq!(SyncName::parse(&name.setting()), Some(name.clone()));
        let settings = Settings { sync_name: name, ..Settings::default() };
        assert_eq!(Settings::parse(&settings.render()), settings);
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
        let without_slots = Settings::default();
        let text = "# Do not edit\nprimary_conninfo = 'host=old'\nwork_mem = '8MB'\n";
        let kept = without_owned(text, &without_slots);
        assert_eq!(kept.as_deref(), Some("# Do not edit\nwork_mem = '8MB'\n"));
        let others = "work_mem = '8MB'\nprimary_conninfo_x = 1\n";
        assert_eq!(without_owned(others, &without_slots), None);
    }

    #[test]
    fn slots_are_the_operators_own_unless_the_agent_keeps_them() {
        let without = Settings::default();
        let with = Settings { slots: Some(SlotSettings::default()), ..Settings::default() };
        let auto = "primary_slot_name = 'mine'\n";
        assert_eq!(without_owned(auto, &without), None);
        assert_eq!(without_owned(auto, &with).as_deref(), Some(""));
        assert!(!without.render().contains("slot") && with.render().contains("primary_slot_name"));
        // Unknown before Postgres 17: the server would not even start.
        for name in ["sync_replication_slots", "synchronized_standby_slots"] {
            assert!(!with.render().contains(name));
        }
    }
}
