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

/// Ends of a recovery, as a restore of a backup leaves them behind. Every start is one of a standby, which would
/// replay up to there and receive beyond it: a promotion would then forget what was received.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

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
        lines.extend(TARGETS.map(|target| (target, String::new())));
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

/// The main configuration file with the line that includes `pgcm_conf` as its last setting. Postgres takes any
/// bytes in a comment, and so does this.
///
/// `None` when the line is there already.
pub fn with_include(config: &[u8], pgcm_conf: &str) -> Option<Vec<u8>> {
    let line = format!("include_if_exists = {}", literal(pgcm_conf));
    let is_ours = |other: &[u8]| other.trim_ascii() == line.as_bytes();
    let is_setting = |line: &&[u8]| !matches!(line.trim_ascii().first(), None | Some(b'#'));
    if lines(config).rfind(is_setting).is_some_and(is_ours) {
        return None;
    }
    let mut text = joined(lines(config).filter(|other| !is_ours(other)));
    text.extend_from_slice(line.as_bytes());
    text.push(b'\n');
    Some(text)
}

/// `postgresql.auto.conf` without what would outweigh `settings`, such as `pg_basebackup -R` leaves
/// behind. `None` when there is nothing of that kind.
pub fn without_owned(auto_conf: &[u8], settings: &Settings) -> Option<Vec<u8>> {
    let owned = settings.lines();
    let is_owned = |line: &&[u8]| {
        let (name, _) = named(line);
        owned.iter().any(|(known, _)| name.eq_ignore_ascii_case(known.as_bytes()))
    };
    lines(auto_conf)
        .any(|line| is_owned(&line))
        .then(|| joined(lines(auto_conf).filter(|line| !is_owned(line))))
}

/// Where `postgresql.auto.conf` tells a recovery to end: the first such line.
pub fn recovery_target(auto_conf: &[u8]) -> Option<String> {
    let is_target = |line: &&[u8]| {
        let (name, value) = named(line);
        let value = value.trim_ascii_start();
        let value = value.strip_prefix(b"=").unwrap_or(value).trim_ascii();
        let is_one = TARGETS.iter().any(|target| name.eq_ignore_ascii_case(target.as_bytes()));
        is_one && !value.is_empty() && !value.starts_with(b"''")
    };
    let line = lines(auto_conf).find(is_target)?;
    Some(String::from_utf8_lossy(line.trim_ascii()).into_owned())
}

/// A line's setting and what follows it. As Postgres reads it: in any case of letters, with or without an equals sign.
fn named(line: &[u8]) -> (&[u8], &[u8]) {
    let line = line.trim_ascii();
    let ends = |byte: &u8| !byte.is_ascii_alphanumeric() && *byte != b'_';
    line.split_at(line.iter().position(ends).unwrap_or(line.len()))
}

fn lines(text: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    let text = text.strip_suffix(b"\n").unwrap_or(text);
    text.split(|byte| *byte == b'\n')
}

fn joined<'a>(lines: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    lines.flat_map(|line| [line, b"\n"]).flatten().copied().collect()
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
        let first = with_include(b"port = 5432", "/data/pgcm.conf").expect("added");
        assert_eq!(first, b"port = 5432\ninclude_if_exists = '/data/pgcm.conf'\n");
        assert_eq!(with_include(&first, "/data/pgcm.conf"), None);
        let later = [&first[..], b"synchronous_standby_names = '*'\n# Gr\xfc\xdfe\r\n"].concat();
        let moved = with_include(&later, "/data/pgcm.conf").expect("moved to the end");
        let expected = b"port = 5432\nsynchronous_standby_names = '*'\n# Gr\xfc\xdfe\r\n\
                         include_if_exists = '/data/pgcm.conf'\n";
        assert_eq!(moved, expected);
    }

    #[test]
    fn leftovers_of_a_base_backup_are_dropped() {
        let without_slots = Settings::default();
        let text = b"# Gr\xfc\xdfe\nprimary_conninfo = 'host=old'\nwork_mem = '8MB'\n\
                     Recovery_Target_Time '2026-01-01'\n";
        let kept = without_owned(text, &without_slots);
        assert_eq!(kept.as_deref(), Some(&b"# Gr\xfc\xdfe\nwork_mem = '8MB'\n"[..]));
        let others = b"work_mem = '8MB'\nprimary_conninfo_x = 1\n";
        assert_eq!(without_owned(others, &without_slots), None);
    }

    #[test]
    fn where_a_recovery_is_to_end_is_found() {
        let found = |line: &str| recovery_target(format!("work_mem = '8MB'\n{line}\n").as_bytes());
        for line in ["recovery_target_time = '2026-01-01'", "Recovery_Target 'immediate'"] {
            assert_eq!(found(line).as_deref(), Some(line));
        }
        for line in [
            "recovery_target_lsn = ''",
            "#recovery_target_lsn = '0/1'",
            "recovery_target_action = 'promote'",
            "recovery_target_timeline = 'latest'",
        ] {
            assert_eq!(found(line), None, "{line}");
        }
    }

    #[test]
    fn slots_are_the_operators_own_unless_the_agent_keeps_them() {
        let without = Settings::default();
        let with = Settings { slots: Some(SlotSettings::default()), ..Settings::default() };
        let auto = b"primary_slot_name = 'mine'\n";
        assert_eq!(without_owned(auto, &without), None);
        assert_eq!(without_owned(auto, &with), Some(Vec::new()));
        assert!(!without.render().contains("slot") && with.render().contains("primary_slot_name"));
        // Unknown before Postgres 17: the server would not even start.
        for name in ["sync_replication_slots", "synchronized_standby_slots"] {
            assert!(!with.render().contains(name));
        }
    }
}
