//! PgBouncer's admin console: one Unix socket for each process.
//!
//! Columns are found by name, since releases differ in which they have and in what order.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{net::UnixStream, task::JoinHandle, time::timeout};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use crate::model::console::{
    Blocker, CONSOLE, Flow, Pool, ShownConfig, ShownDatabase, ShownSetting,
};

/// Where a PgBouncer process can be commanded, and as whom.
#[derive(Debug, Clone)]
pub struct Console {
    socket: PathBuf,
    user: String,
    limit: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum ConsoleError {
    #[error("PgBouncer is not there: cannot open {socket}; is it running?", socket = .socket.display())]
    NotThere {
        socket: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("PgBouncer did not let console user {user} in")]
    Login {
        user: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("PgBouncer refused {command}: {message}")]
    Refused { command: &'static str, message: String },
    #[error("PgBouncer is paused or suspended already")]
    AlreadyPaused,
    #[error("PgBouncer is not paused")]
    NotPaused,
    #[error("PgBouncer is shutting down")]
    ShuttingDown,
    #[error("this PgBouncer does not know {command}")]
    Unknown { command: &'static str },
    #[error("PgBouncer did not answer {command} within {limit:?}")]
    TimedOut { command: &'static str, limit: Duration },
    #[error("PgBouncer closed the console during {command}")]
    Closed {
        command: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("PgBouncer's answer to {command} has no usable column {column}")]
    Column { command: &'static str, column: &'static str },
}

impl Console {
    /// `limit` bounds connecting, and each command that has no limit of its own.
    pub fn new(socket: PathBuf, user: String, limit: Duration) -> Self {
        Self { socket, user, limit }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Opens a session of its own; dropping it closes the connection at once.
    pub async fn connect(&self) -> Result<Session, ConsoleError> {
        timeout(self.limit, self.open())
            .await
            .unwrap_or(Err(ConsoleError::TimedOut { command: "the login", limit: self.limit }))
    }

    async fn open(&self) -> Result<Session, ConsoleError> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|source| ConsoleError::NotThere { socket: self.socket.clone(), source })?;
        let mut config = tokio_postgres::Config::new();
        config.user(&self.user).dbname(CONSOLE).application_name("pgcm");
        let (client, connection) = config.connect_raw(stream, NoTls).await.map_err(|source| {
            match source.as_db_error() {
                Some(error) if shuts_down(error.message()) => ConsoleError::ShuttingDown,
                _ => ConsoleError::Login { user: self.user.clone(), source },
            }
        })?;
        let driver = Driver(tokio::spawn(async move {
            // Its error reaches whoever waits for an answer.
            let _ = connection.await;
        }));
        Ok(Session { client, _driver: driver, limit: self.limit })
    }
}

/// An open console connection.
pub struct Session {
    client: Client,
    _driver: Driver,
    limit: Duration,
}

/// Closes the socket when the session ends, even while a PAUSE is still unanswered.
struct Driver(JoinHandle<()>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Holds new queries; returns once no transaction is open any more.
    ///
    /// # Errors
    /// [`ConsoleError::TimedOut`] after `limit`: PgBouncer goes on pausing until RESUME is sent
    /// over another connection.
    pub async fn pause(&self, limit: Duration) -> Result<(), ConsoleError> {
        self.run("PAUSE", limit).await.map(drop)
    }

    /// Lets queries flow again.
    ///
    /// # Errors
    /// [`ConsoleError::NotPaused`] when they flow already.
    pub async fn resume(&self) -> Result<(), ConsoleError> {
        self.run("RESUME", self.limit).await.map(drop)
    }

    /// Makes PgBouncer read its configuration again. Some releases say yes to a file they cannot
    /// use, so what came of it has to be looked up.
    pub async fn reload(&self) -> Result<(), ConsoleError> {
        self.run("RELOAD", self.limit).await.map(drop)
    }

    /// Whether PgBouncer as a whole lets queries flow.
    pub async fn flow(&self) -> Result<Flow, ConsoleError> {
        match self.run("SHOW STATE", self.limit).await {
            Ok(rows) => {
                let active = rows.iter().find(|row| row.text("key") == Some("active"));
                match active.and_then(|row| row.text("value")) {
                    Some("yes") => Ok(Flow::Active),
                    Some(_) => Ok(Flow::Held),
                    None => Err(ConsoleError::Column { command: "SHOW STATE", column: "active" }),
                }
            }
            Err(ConsoleError::Unknown { .. }) => self.flow_by_probe().await,
            Err(error) => Err(error),
        }
    }

    /// PgBouncer before 1.20 has no SHOW STATE. Its own console cannot be paused, but a paused
    /// PgBouncer says so first.
    async fn flow_by_probe(&self) -> Result<Flow, ConsoleError> {
        match self.run("PAUSE pgbouncer", self.limit).await {
            Err(ConsoleError::AlreadyPaused) => Ok(Flow::Held),
            Err(ConsoleError::Refused { message, .. })
                if message.contains("cannot pause admin") =>
            {
                Ok(Flow::Active)
            }
            Err(error) => Err(error),
            Ok(_) => Err(ConsoleError::Unknown { command: "SHOW STATE" }),
        }
    }

    /// Where PgBouncer finds each database, its own console left out.
    pub async fn databases(&self) -> Result<Vec<ShownDatabase>, ConsoleError> {
        let command = "SHOW DATABASES";
        let rows = self.run(command, self.limit).await?;
        let shown = rows.iter().map(|row| {
            Ok(ShownDatabase {
                name: row.required(command, "name")?,
                host: row.text("host").filter(|host| !host.is_empty()).map(str::to_owned),
                port: row.required(command, "port")?,
                paused: row.number("paused").unwrap_or(0) != 0,
                disabled: row.number("disabled").unwrap_or(0) != 0,
            })
        });
        let mut shown = shown.collect::<Result<Vec<_>, ConsoleError>>()?;
        shown.retain(|database| database.name != CONSOLE);
        Ok(shown)
    }

    /// Every pool, the console's own left out.
    pub async fn pools(&self) -> Result<Vec<Pool>, ConsoleError> {
        let command = "SHOW POOLS";
        let rows = self.run(command, self.limit).await?;
        let pools = rows.iter().map(|row| {
            let busy = ["sv_tested", "sv_active_cancel", "sv_being_canceled"];
            let active = row
                .number("sv_active")
                .ok_or(ConsoleError::Column { command, column: "sv_active" })?;
            Ok(Pool {
                database: row.required(command, "database")?,
                user: row.required(command, "user")?,
                mode: row.text("pool_mode").unwrap_or_default().to_owned(),
                busy_servers: active
                    + busy.iter().filter_map(|&name| row.number(name)).sum::<u64>(),
                waiting_clients: row.number("cl_waiting").unwrap_or(0),
            })
        });
        let mut pools = pools.collect::<Result<Vec<_>, ConsoleError>>()?;
        pools.retain(|pool| pool.database != CONSOLE);
        Ok(pools)
    }

    /// The transactions that are open now, with the client behind each where that is known.
    pub async fn blockers(&self) -> Result<Vec<Blocker>, ConsoleError> {
        let command = "SHOW SERVERS";
        let servers = self.run(command, self.limit).await?;
        let clients = self.run("SHOW CLIENTS", self.limit).await?;
        let busy = servers.iter().filter(|row| row.text("state") == Some("active"));
        busy.map(|row| {
            // `link` of a server is the `ptr` of its client (a number in newer releases: `id`).
            let link = row.text("link").filter(|link| !link.is_empty());
            let client = clients.iter().find(|client| {
                link.is_some() && [client.text("ptr"), client.text("id")].contains(&link)
            });
            let pid = row.number("remote_pid").and_then(|pid| u32::try_from(pid).ok());
            Ok(Blocker {
                pid: pid.filter(|&pid| pid != 0),
                port: row.number("local_port").and_then(|port| u16::try_from(port).ok()),
                database: row.required(command, "database")?,
                user: row.required(command, "user")?,
                client: client.and_then(|client| client.text("addr")).map(str::to_owned),
                application: row
                    .text("application_name")
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            })
        })
        .collect()
    }

    /// The value of each of `keys` that `SHOW CONFIG` has.
    pub async fn settings(&self, keys: &[&str]) -> Result<Vec<(String, String)>, ConsoleError> {
        let rows = self.run("SHOW CONFIG", self.limit).await?;
        let pairs = rows.iter().filter_map(|row| Some((row.text("key")?, row.text("value")?)));
        Ok(pairs
            .filter(|(key, _)| keys.contains(key))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect())
    }

    /// The configuration that is in force.
    pub async fn config(&self) -> Result<ShownConfig, ConsoleError> {
        let rows = self.run("SHOW CONFIG", self.limit).await?;
        let file = rows.iter().find(|row| row.text("key") == Some("conffile"));
        let file = file.and_then(|row| row.text("value")).map(str::to_owned);
        let changeable = rows.iter().filter(|row| row.text("changeable") == Some("yes"));
        let settings = changeable.filter_map(|row| {
            Some(ShownSetting {
                key: row.text("key")?.to_owned(),
                value: row.text("value")?.to_owned(),
                default: row.text("default")?.to_owned(),
            })
        });
        Ok(ShownConfig { file, changeable: settings.collect() })
    }

    /// What PgBouncer calls itself, for example `PgBouncer 1.24.1`.
    pub async fn version(&self) -> Result<String, ConsoleError> {
        let rows = self.run("SHOW VERSION", self.limit).await?;
        let version = rows.first().and_then(|row| row.text("version"));
        Ok(version
            .ok_or(ConsoleError::Column { command: "SHOW VERSION", column: "version" })?
            .to_owned())
    }

    async fn run(
        &self,
        command: &'static str,
        limit: Duration,
    ) -> Result<Vec<SimpleQueryRow>, ConsoleError> {
        let answer = timeout(limit, self.client.simple_query(command))
            .await
            .map_err(|_| ConsoleError::TimedOut { command, limit })?
            .map_err(|error| judge(command, error))?;
        Ok(answer
            .into_iter()
            .filter_map(|message| match message {
                SimpleQueryMessage::Row(row) => Some(row),
                _ => None,
            })
            .collect())
    }
}

/// Sorts errors by their text: PgBouncer gives nearly all of them the same code.
fn judge(command: &'static str, error: tokio_postgres::Error) -> ConsoleError {
    let Some(refusal) = error.as_db_error() else {
        return ConsoleError::Closed { command, source: error };
    };
    let message = refusal.message();
    if message.contains("already suspended/paused") {
        ConsoleError::AlreadyPaused
    } else if message.contains("is not paused") {
        ConsoleError::NotPaused
    } else if shuts_down(message) {
        ConsoleError::ShuttingDown
    } else if message.contains("invalid command") || message.contains("unsupported") {
        ConsoleError::Unknown { command }
    } else {
        ConsoleError::Refused { command, message: message.to_owned() }
    }
}

fn shuts_down(message: &str) -> bool {
    message.contains("shutting down") || message.contains("shut down")
}

/// Reads a column by its name; an absent column is like NULL.
trait Columns {
    fn text(&self, column: &str) -> Option<&str>;

    fn number(&self, column: &str) -> Option<u64> {
        self.text(column)?.parse().ok()
    }

    fn required(
        &self,
        command: &'static str,
        column: &'static str,
    ) -> Result<String, ConsoleError> {
        Ok(self.text(column).ok_or(ConsoleError::Column { command, column })?.to_owned())
    }
}

impl Columns for SimpleQueryRow {
    fn text(&self, column: &str) -> Option<&str> {
        self.try_get(column).ok().flatten()
    }
}
