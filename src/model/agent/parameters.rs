//! The resource's parameters, from the environment that Pacemaker sets.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use super::conninfo;

/// How commits are replicated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplicationMode {
    Async,
    /// One named synchronous standby, further potential ones.
    Sync,
    /// Any so many of all standbys.
    Quorum,
}

/// One parameter as `meta-data` documents it.
pub struct Documented {
    pub name: &'static str,
    /// The content type of OCF: `string`, `integer` or `boolean`.
    pub kind: &'static str,
    pub required: bool,
    pub default: &'static str,
    pub short: &'static str,
    pub long: &'static str,
}

const fn documented(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    short: &'static str,
    long: &'static str,
) -> Documented {
    Documented { name, kind, required: false, default, short, long }
}

/// Every parameter, in the order in which people read them.
pub const DOCUMENTED: &[Documented] = &[
    Documented {
        required: true,
        ..documented(
            "pgdata",
            "string",
            "",
            "Data directory",
            "Path of the data directory. \
            The agent never deletes it.",
        )
    },
    documented(
        "bindir",
        "string",
        "",
        "Directory of the server programs",
        "Where postgres, \
        pg_controldata, pg_rewind, pg_waldump and psql are. Empty: Debian's directory for the major \
        version in PG_VERSION when it exists, else PATH.",
    ),
    documented(
        "config",
        "string",
        "",
        "Main configuration file",
        "Path of postgresql.conf, where it \
        is not in the data directory.",
    ),
    documented(
        "pgdba",
        "string",
        "postgres",
        "Operating system user of Postgres",
        "Owner of the \
        data directory, and the database superuser that the agent connects as over the Unix socket.",
    ),
    documented("pgport", "integer", "5432", "Port", "TCP port of every Postgres of this cluster."),
    documented(
        "socketdir",
        "string",
        "/var/run/postgresql",
        "Directory of the Unix socket",
        "Where \
        the server makes its Unix socket.",
    ),
    documented(
        "logfile",
        "string",
        "/dev/null",
        "Output of the server",
        "File that takes what the \
        server prints before its own logging begins.",
    ),
    documented(
        "start_opt",
        "string",
        "",
        "Options of the server",
        "Further command line options \
        for the server, as text for a shell.",
    ),
    documented(
        "address",
        "string",
        "",
        "Address of this node",
        "The IP address at which the other \
        nodes reach this node's Postgres. Empty: the one IPv4 address, other than loopback, that the \
        node's host name resolves to.",
    ),
    documented(
        "repuser",
        "string",
        "postgres",
        "Replication user",
        "The role with which standbys \
        connect to the primary. With rewind=true it also needs the rights that pg_rewind needs.",
    ),
    documented(
        "primary_conninfo_opt",
        "string",
        "",
        "Further connection options",
        "Appended to \
        primary_conninfo, for example passfile=/var/lib/postgresql/.pgpass sslmode=require.",
    ),
    documented(
        "rep_mode",
        "string",
        "sync",
        "Replication mode",
        "sync: one synchronous standby, \
        named by the agent, and further potential ones. quorum: any quorum_standbys of all standbys; \
        after a loss of the primary the most advanced one is promoted, once enough of them have been \
        asked. async: none is waited for. May be changed while the cluster runs.",
    ),
    documented(
        "quorum_standbys",
        "integer",
        "1",
        "Standbys that a commit waits for",
        "With \
        rep_mode=quorum: how many standbys must have flushed a commit before it is acknowledged. After \
        a loss of the primary, all standbys but quorum_standbys - 1 must be seen to promote one.",
    ),
    documented(
        "strict",
        "boolean",
        "false",
        "Never run unsynchronised",
        "With rep_mode=sync and \
        quorum: when too few standbys stream, writes wait instead of being accepted on fewer nodes.",
    ),
    documented(
        "rewind",
        "boolean",
        "false",
        "Rewind a diverged node",
        "Whether a former primary \
        that holds writes which the new one never had is brought back by pg_rewind. Those writes \
        were not acknowledged under rep_mode=sync and quorum. false: it stays stopped, with the commands.",
    ),
    documented(
        "replication_slots",
        "boolean",
        "false",
        "Keep replication slots",
        "Whether every node keeps \
        a physical replication slot, called pgcm_NODE, for each other node, so that a standby that was \
        away finds its WAL on whichever node is the primary then. false: slots are left alone, except \
        that those of this cluster's nodes are dropped.",
    ),
    documented(
        "slot_wal_limit",
        "string",
        "16GB",
        "WAL kept for a lost standby",
        "With \
        replication_slots=true: how much WAL slots may keep on each node (max_slot_wal_keep_size), \
        such as 500MB or 16GB. A standby that needs more has to be made anew. Must fit on the disk.",
    ),
    documented(
        "sync_logical_slots",
        "boolean",
        "false",
        "Logical slots survive failovers",
        "With \
        replication_slots=true, Postgres 17 or later and wal_level=logical: standbys copy the primary's \
        logical slots that have the property failover, and consumers of these never get ahead of a \
        standby. repuser then needs a normal connection to the database postgres. Before Postgres 17 \
        this is ignored.",
    ),
];

/// What the resource was configured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// The resource's name, without a clone's `:N`.
    pub resource: String,
    pub pgdata: PathBuf,
    pub bindir: Option<PathBuf>,
    pub config: Option<PathBuf>,
    pub pgdba: String,
    pub port: u16,
    pub socketdir: PathBuf,
    pub logfile: PathBuf,
    pub start_opt: String,
    pub address: Option<IpAddr>,
    pub repuser: String,
    pub conninfo_options: String,
    pub mode: ReplicationMode,
    /// With [`ReplicationMode::Quorum`]: how many standbys a commit waits for.
    pub quorum_standbys: usize,
    pub strict: bool,
    pub rewind: bool,
    pub replication_slots: bool,
    /// A size as Postgres reads it, with its unit.
    pub slot_wal_limit: String,
    pub sync_logical_slots: bool,
}

/// A value that no node can work with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadParameter {
    #[error("the parameter {0} is missing")]
    Missing(&'static str),
    #[error("the parameter {name} is `{value}`; expected {expected}")]
    Value { name: &'static str, value: String, expected: &'static str },
}

const AT_LEAST_ONE: &str = "a number of standbys, at least 1";

impl Parameters {
    /// Reads `OCF_RESKEY_*` and `OCF_RESOURCE_INSTANCE`.
    pub fn from_environment(env: &BTreeMap<String, String>) -> Result<Self, BadParameter> {
        let instance = env.get("OCF_RESOURCE_INSTANCE").map_or("Postgresql", String::as_str);
        let pgdata = absolute(env, "pgdata")?.ok_or(BadParameter::Missing("pgdata"))?;
        let conninfo_options = text(env, "primary_conninfo_opt");
        if conninfo::pairs(conninfo_options).is_none() {
            return Err(bad("primary_conninfo_opt", conninfo_options, "key=value pairs of libpq"));
        }
        let replication_slots = boolean(env, "replication_slots")?;
        let sync_logical_slots = boolean(env, "sync_logical_slots")?;
        if sync_logical_slots && !replication_slots {
            return Err(bad("sync_logical_slots", "true", "replication_slots=true with it"));
        }
        Ok(Self {
            resource: instance.split(':').next().unwrap_or(instance).to_owned(),
            pgdata,
            bindir: absolute(env, "bindir")?,
            config: absolute(env, "config")?,
            pgdba: text(env, "pgdba").to_owned(),
            port: parsed(env, "pgport", "a TCP port")?,
            socketdir: absolute(env, "socketdir")?.unwrap_or_default(),
            logfile: absolute(env, "logfile")?.unwrap_or_default(),
            start_opt: text(env, "start_opt").to_owned(),
            address: match text(env, "address") {
                "" => None,
                _ => Some(parsed(env, "address", "an IP address")?),
            },
            repuser: text(env, "repuser").to_owned(),
            conninfo_options: conninfo_options.to_owned(),
            mode: match text(env, "rep_mode") {
                "sync" => ReplicationMode::Sync,
                "quorum" => ReplicationMode::Quorum,
                "async" => ReplicationMode::Async,
                other => return Err(bad("rep_mode", other, "sync, quorum or async")),
            },
            quorum_standbys: match parsed(env, "quorum_standbys", AT_LEAST_ONE)? {
                0 => return Err(bad("quorum_standbys", "0", AT_LEAST_ONE)),
                number => number,
            },
            strict: boolean(env, "strict")?,
            rewind: boolean(env, "rewind")?,
            replication_slots,
            slot_wal_limit: size(env, "slot_wal_limit")?,
            sync_logical_slots,
        })
    }

    /// A file in the data directory.
    pub fn in_pgdata(&self, name: &str) -> PathBuf {
        self.pgdata.join(name)
    }

    /// The main configuration file.
    pub fn config_file(&self) -> PathBuf {
        self.config.clone().unwrap_or_else(|| self.in_pgdata("postgresql.conf"))
    }

    /// The server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.socketdir.join(format!(".s.PGSQL.{}", self.port))
    }
}

/// How long an action may take: the operation's own timeout less a margin for Pacemaker.
///
/// The margin is a tenth, at most 3 s. Without a timeout (outside Pacemaker) 20 s are assumed.
pub fn budget(env: &BTreeMap<String, String>) -> Duration {
    let timeout = milliseconds(env, "OCF_RESKEY_CRM_meta_timeout")
        .filter(|timeout| !timeout.is_zero())
        .unwrap_or(Duration::from_secs(20));
    timeout - (timeout / 10).min(Duration::from_secs(3))
}

/// Whether this is a one-off look at a node on which the resource may not run.
pub fn is_probe(env: &BTreeMap<String, String>) -> bool {
    milliseconds(env, "OCF_RESKEY_CRM_meta_interval").is_none_or(|interval| interval.is_zero())
}

/// Whether the other instances are notified of actions (meta attribute `notify`).
pub fn is_notified(env: &BTreeMap<String, String>) -> bool {
    env.get("OCF_RESKEY_CRM_meta_notify").and_then(|value| truth(value)).unwrap_or(false)
}

fn milliseconds(env: &BTreeMap<String, String>, name: &str) -> Option<Duration> {
    env.get(name)?.trim().parse().ok().map(Duration::from_millis)
}

/// The value of a parameter, or its documented default.
fn text<'a>(env: &'a BTreeMap<String, String>, name: &str) -> &'a str {
    let given = env.get(&format!("OCF_RESKEY_{name}")).map(|value| value.trim());
    given.filter(|value| !value.is_empty()).unwrap_or_else(|| {
        DOCUMENTED.iter().find(|known| known.name == name).map_or("", |known| known.default)
    })
}

fn absolute(
    env: &BTreeMap<String, String>,
    name: &'static str,
) -> Result<Option<PathBuf>, BadParameter> {
    match text(env, name) {
        "" => Ok(None),
        value if Path::new(value).is_absolute() && !value.contains(['\'', '\n']) => {
            Ok(Some(PathBuf::from(value)))
        }
        value => Err(bad(name, value, "an absolute path without quotes")),
    }
}

fn parsed<T: std::str::FromStr>(
    env: &BTreeMap<String, String>,
    name: &'static str,
    expected: &'static str,
) -> Result<T, BadParameter> {
    let value = text(env, name);
    value.parse().map_err(|_| bad(name, value, expected))
}

fn boolean(env: &BTreeMap<String, String>, name: &'static str) -> Result<bool, BadParameter> {
    let value = text(env, name);
    truth(value).ok_or_else(|| bad(name, value, "true or false"))
}

/// A truth as Pacemaker reads it.
fn truth(value: &str) -> Option<bool> {
    match value.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" | "1" | "y" => Some(true),
        "false" | "no" | "off" | "0" | "n" => Some(false),
        _ => None,
    }
}

/// An amount of memory or disk above zero, as Postgres reads it.
fn size(env: &BTreeMap<String, String>, name: &'static str) -> Result<String, BadParameter> {
    let value = text(env, name);
    let megabytes =
        [("MB", 1), ("GB", 1024), ("TB", 1024 * 1024)].iter().find_map(|(unit, factor)| {
            value.strip_suffix(unit)?.trim_end().parse::<u64>().ok()?.checked_mul(*factor)
        });
    match megabytes {
        // Postgres counts megabytes in 31 bits, and does not start with more.
        Some(1..=0x7FFF_FFFF) => Ok(value.to_owned()),
        _ => Err(bad(name, value, "a whole number above 0 with MB, GB or TB")),
    }
}

fn bad(name: &'static str, value: &str, expected: &'static str) -> BadParameter {
    BadParameter::Value { name, value: value.to_owned(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        let pairs = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
        let mut env: BTreeMap<_, _> = pairs.collect();
        env.entry("OCF_RESKEY_pgdata".to_owned()).or_insert_with(|| "/data".to_owned());
        env
    }

    #[test]
    fn defaults_are_the_documented_ones() {
        let read = Parameters::from_environment(&environment(&[])).expect("valid");
        assert_eq!((read.port, read.mode, read.rewind), (5432, ReplicationMode::Sync, false));
        assert_eq!(read.socket(), Path::new("/var/run/postgresql/.s.PGSQL.5432"));
        assert_eq!(read.config_file(), Path::new("/data/postgresql.conf"));
    }

    #[test]
    fn a_clone_number_is_no_part_of_the_name() {
        let env = environment(&[("OCF_RESOURCE_INSTANCE", "Postgresql:2")]);
        assert_eq!(Parameters::from_environment(&env).expect("valid").resource, "Postgresql");
    }

    #[test]
    fn bad_values_name_the_parameter() {
        for (name, value) in [
            ("pgdata", "relative"),
            ("pgport", "70000"),
            ("address", "pg01"),
            ("rep_mode", "semisync"),
            ("quorum_standbys", "0"),
            ("quorum_standbys", "two"),
            ("strict", "perhaps"),
            ("primary_conninfo_opt", "sslmode"),
            ("slot_wal_limit", "-1"),
            ("slot_wal_limit", "0GB"),
            ("slot_wal_limit", "10"),
            ("slot_wal_limit", "2048TB"),
            ("sync_logical_slots", "true"),
        ] {
            let env = environment(&[(&format!("OCF_RESKEY_{name}"), value)]);
            let error = Parameters::from_environment(&env).expect_err(name).to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
        let missing = Parameters::from_environment(&BTreeMap::new());
        assert_eq!(missing, Err(BadParameter::Missing("pgdata")));
    }

    #[test]
    fn the_budget_leaves_a_margin() {
        let with = |timeout| budget(&environment(&[("OCF_RESKEY_CRM_meta_timeout", timeout)]));
        assert_eq!(with("10000"), Duration::from_secs(9));
        assert_eq!(with("120000"), Duration::from_secs(117));
        assert_eq!(with("nonsense"), Duration::from_secs(18));
    }
}
