//! Everything that an operator can set. Only `command` sees this; the rest gets narrow options.

pub mod check;
pub mod load;
pub mod render;
pub mod section;

use std::path::PathBuf;

use section::{Span, millis, secs, section};

/// The whole configuration: one field per section.
#[derive(Debug, Clone, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    pub node: Node,
    pub etcd: Etcd,
    pub pacemaker: Pacemaker,
    pub postgres: Postgres,
    pub pgbouncer: Pgbouncer,
    pub proxy: Proxy,
    pub api: Api,
    pub web: Web,
    pub failover: Failover,
    pub log: Log,
}

section! {
    /// This machine.
    pub struct Node {
        /// Name of this machine, on Postgres nodes as Pacemaker knows it. Empty: the host name.
        "name" name: String = String::new(),
        /// Address at which clients and the other machines reach this one. Empty: the one IPv4 address
        /// that the name resolves to; several, or none, are an error that asks for this key.
        "address" address: String = String::new(),
    }
}

section! {
    /// The store of cluster state.
    pub struct Etcd {
        /// Client URLs of all members, either all `http://` or all `https://`. They are tried in turn.
        "endpoints" endpoints: Vec<String> = vec!["http://127.0.0.1:2379".to_owned()],
        /// All of pgcm's keys stand below this prefix.
        "namespace" namespace: String = "/postgres".to_owned(),
        /// Bounds each request to one member, connecting included.
        "call-timeout" call_timeout: Span = secs(1),
        /// etcd user. Empty: no authentication.
        "username" username: String = String::new(),
        /// File with the etcd user's password; only its owner may read it.
        "password-file" password_file: PathBuf = PathBuf::new(),
        /// File with the certificates of the CAs that members' certificates are signed by, as PEM. For
        /// `https://` URLs, and needed by them.
        "ca-file" ca_file: PathBuf = PathBuf::new(),
        /// File with the certificate that pgcm shows to members, as PEM. Empty: none.
        "cert-file" cert_file: PathBuf = PathBuf::new(),
        /// File with that certificate's key, as PEM without a passphrase; only its owner may read it.
        "key-file" key_file: PathBuf = PathBuf::new(),
    }
}

section! {
    /// The cluster manager on a Postgres node.
    pub struct Pacemaker {
        /// Resource that runs Postgres: the primitive, not its clone.
        "resource" resource: String = "Postgresql".to_owned(),
        /// How often supervise reads the cluster's state when nothing wakes it.
        "poll-interval" poll_interval: Span = secs(2),
        /// Bounds each call of one of Pacemaker's tools.
        "command-timeout" command_timeout: Span = secs(5),
        /// A move constraint stops to count this long after it was made, whoever dies.
        ///
        /// Must exceed `failover.pacemaker-timeout`.
        "constraint-lifetime" constraint_lifetime: Span = secs(60),
    }
}

section! {
    /// The Postgres of this node, reached through its Unix socket.
    pub struct Postgres {
        /// Directory of the Unix socket.
        "socket-dir" socket_dir: PathBuf = PathBuf::from("/var/run/postgresql"),
        /// Port of Postgres.
        "port" port: u16 = 5432,
        /// Role that supervise uses; a superuser, for CHECKPOINT and to see every session.
        "user" user: String = "postgres".to_owned(),
        /// Database that supervise connects to.
        "database" database: String = "postgres".to_owned(),
        /// Bounds each query, connecting included.
        "query-timeout" query_timeout: Span = secs(2),
    }
}

section! {
    /// The PgBouncer of this machine.
    pub struct Pgbouncer {
        /// Unix sockets of the admin consoles: one for each PgBouncer process.
        "admin-sockets" admin_sockets: Vec<PathBuf> =
            vec![PathBuf::from("/var/run/postgresql/.s.PGSQL.6432")],
        /// Console user. pgcm must run as the OS user of PgBouncer, or this one be in `admin_users`
        /// and be let in without a password.
        "admin-user" admin_user: String = "pgbouncer".to_owned(),
        /// Bounds each console command except PAUSE, which has a limit of its own.
        "query-timeout" query_timeout: Span = secs(2),
    }
}

section! {
    /// `pgcm proxy`: files that follow the primary.
    pub struct Proxy {
        /// Templates and the files rendered from them. The first must be PgBouncer's.
        "templates" templates: Vec<TemplateFile> = vec![TemplateFile {
            source: PathBuf::from("/etc/pgbouncer/pgbouncer.ini.template"),
            target: PathBuf::from("/etc/pgbouncer/pgbouncer.ini"),
        }],
        /// How often the view is read again from etcd when no watch reports a change.
        "poll-interval" poll_interval: Span = secs(1),
    }
}

/// A template and the file rendered from it.
#[derive(Debug, Clone, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields)]
pub struct TemplateFile {
    pub source: PathBuf,
    pub target: PathBuf,
}

section! {
    /// The gRPC API of supervise and proxy.
    pub struct Api {
        /// Where supervise serves it.
        "supervise-listen" supervise_listen: String = "0.0.0.0:8080".to_owned(),
        /// Where proxy serves it.
        "proxy-listen" proxy_listen: String = "0.0.0.0:8081".to_owned(),
        /// File with the shared token that every changing call must carry; only its owner may read
        /// it. Empty: the API listens on loopback only.
        "token-file" token_file: PathBuf = PathBuf::new(),
        /// An agent's registration in etcd is gone this long after it died.
        "registration-ttl" registration_ttl: Span = secs(10),
    }
}

section! {
    /// Metrics, health and roles over HTTP.
    pub struct Web {
        /// Where supervise serves them. Empty: nowhere.
        "supervise-listen" supervise_listen: String = "0.0.0.0:9446".to_owned(),
        /// Where proxy serves them. Empty: nowhere.
        "proxy-listen" proxy_listen: String = "0.0.0.0:9447".to_owned(),
    }
}

section! {
    /// `pgcm failover`.
    pub struct Failover {
        /// Agents to ask, as `host:port`. Empty: those registered in etcd.
        "endpoints" endpoints: Vec<String> = Vec::new(),
        /// Bounds the checks of all agents together.
        "health-check-timeout" health_check_timeout: Span = secs(5),
        /// Agents that must answer, as `host/supervise` or `host/proxy`, such as `"app01/proxy"`: a dead
        /// one is no longer registered, and its clients would be forgotten.
        "expected-agents" expected_agents: Vec<String> = Vec::new(),
        /// Pause before the second attempt of `--attempts`. Doubles each time, up to five minutes.
        "attempt-backoff" attempt_backoff: Span = secs(10),
        /// How long to wait for a lock that somebody else holds. Zero: not at all.
        "lock-timeout" lock_timeout: Span = secs(0),
        /// The lock is free again this long after its holder died.
        "lock-lease" lock_lease: Span = secs(10),
        /// Bounds the CHECKPOINT on primary and target, before anything is paused.
        "prepare-timeout" prepare_timeout: Span = secs(60),
        /// Bounds the wait for open transactions to end.
        ///
        /// Must be less than `pause-expiry`.
        "pause-timeout" pause_timeout: Span = secs(5),
        /// Traffic resumes by itself this long after the pause was asked for.
        ///
        /// Keep it below half of PgBouncer's `query_wait_timeout` and of your load balancer's limits.
        "pause-expiry" pause_expiry: Span = secs(25),
        /// Bounds each attempt to resume one agent.
        "resume-timeout" resume_timeout: Span = secs(5),
        /// Bounds the move of the promoted role until the new primary is published.
        "pacemaker-timeout" pacemaker_timeout: Span = secs(20),
        /// Bounds the wait for the old primary to be back as a streaming standby.
        "verify-timeout" verify_timeout: Span = secs(30),
        /// Pause between two looks while something is awaited.
        "watch-interval" watch_interval: Span = millis(50),
    }
}

section! {
    /// Logs, written to stderr.
    pub struct Log {
        /// `auto` (key=value on a terminal, JSON otherwise), `text` or `json`.
        "format" format: String = "auto".to_owned(),
        /// `error`, `warning`, `info` or `debug`.
        "level" level: String = "info".to_owned(),
    }
}
