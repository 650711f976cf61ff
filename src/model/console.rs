//! What a PgBouncer's admin console shows, as far as pgcm looks.

use std::fmt;

/// Name of the console's own database, which is never pooled.
pub const CONSOLE: &str = "pgbouncer";

/// A row of `SHOW DATABASES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownDatabase {
    pub name: String,
    /// Absent: a Unix socket.
    pub host: Option<String>,
    pub port: String,
    /// Paused by its own name; a pause of everything does not show here.
    pub paused: bool,
    pub disabled: bool,
}

/// What `SHOW CONFIG` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownConfig {
    /// The file that PgBouncer was started with.
    pub file: Option<String>,
    /// The settings that a RELOAD can change; none where a release does not show its defaults.
    pub changeable: Vec<ShownSetting>,
}

/// A setting that a RELOAD can change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShownSetting {
    pub key: String,
    pub value: String,
    pub default: String,
}

/// A row of `SHOW POOLS`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub database: String,
    pub user: String,
    /// `transaction`, `session` or `statement`.
    pub mode: String,
    /// Server connections in use: by a client, under test, or busy with a cancel request.
    pub busy_servers: u64,
    /// Clients that wait for a server connection.
    pub waiting_clients: u64,
}

/// Whether PgBouncer lets queries flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    Active,
    /// Paused or suspended; transactions may still be ending.
    Held,
}

/// A transaction that keeps a PAUSE from completing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocker {
    /// Process of the Postgres backend, for `pg_stat_activity` and `pg_terminate_backend`.
    pub pid: Option<u32>,
    /// Port of PgBouncer's end of the connection.
    pub port: Option<u16>,
    pub database: String,
    pub user: String,
    /// Address of the client; `unix` for a local one.
    pub client: Option<String>,
    pub application: Option<String>,
}

/// A connection from PgBouncer to Postgres, as both ends can tell it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    pub pid: u32,
    /// Port of PgBouncer's end.
    pub port: u16,
}

impl Blocker {
    /// None when PgBouncer does not know enough of it.
    pub fn backend(&self) -> Option<Backend> {
        Some(Backend { pid: self.pid?, port: self.port? })
    }
}

impl fmt::Display for Blocker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            Some(pid) => write!(f, "backend PID {pid}")?,
            None => f.write_str("a backend of unknown PID")?,
        }
        write!(f, " (user {}, database {}", self.user, self.database)?;
        if let Some(client) = &self.client {
            write!(f, ", client {client}")?;
        }
        if let Some(application) = &self.application {
            write!(f, ", application {application}")?;
        }
        f.write_str(")")
    }
}
