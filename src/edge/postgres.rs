//! The Postgres of this node, over its Unix socket. Every query has a limit, connecting included.
//!
//! A connection is kept between queries and thrown away after any failure: after a limit has passed
//! nobody knows what is still under way on it.

mod logical_slots;
mod walsenders;

use std::{
    future::Future,
    path::PathBuf,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::timeout;
use tokio_postgres::{
    Client, Config, NoTls, Row,
    types::{ToSql, Type},
};

pub use self::{logical_slots::LogicalSlot, walsenders::Walsender};
use crate::model::{
    cluster::Standby, console::Backend, primary::LocalFacts, span::millis, terminated::Terminated,
};

/// How to reach the local Postgres.
#[derive(Debug, Clone)]
pub struct PostgresOptions {
    /// Directory of the Unix socket.
    pub socket_dir: PathBuf,
    pub port: u16,
    /// A superuser: CHECKPOINT, and the sessions of everybody, need one.
    pub user: String,
    pub database: String,
    /// Bounds each query, connecting included.
    pub query_timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    #[error("cannot connect to Postgres as {user} over {socket}")]
    Connect {
        user: String,
        socket: String,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("Postgres refused to {what}")]
    Query {
        what: &'static str,
        #[source]
        source: tokio_postgres::Error,
    },
    #[error("Postgres did not {what} within {limit:?}")]
    TimedOut { what: &'static str, limit: Duration },
    #[error("Postgres gave an answer that makes no sense when asked to {what}: {answer}")]
    Nonsense { what: &'static str, answer: String },
}

/// Where publishing gets the local facts from. The seam for tests.
pub trait LocalPostgres: Send + Sync {
    /// What Postgres says about itself now.
    fn facts(&self) -> impl Future<Output = Result<LocalFacts, PostgresError>> + Send;
}

/// A transaction that has been open for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenTransaction {
    pub pid: i32,
    pub user: String,
    pub database: String,
    pub application: String,
    /// `active`, `idle in transaction`, …
    pub state: String,
    pub age: Duration,
    /// The last statement, cut to 100 characters.
    pub query: String,
}

impl From<OpenTransaction> for Terminated {
    fn from(open: OpenTransaction) -> Self {
        let OpenTransaction { pid, user, database, application, state, age, query } = open;
        Self { pid, user, database, application, state, age_ms: millis(age), query }
    }
}

/// What of the primary's state makes its shutdown slow, or the move unwise.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Burdens {
    /// Names of prepared transactions (2PC): they keep their locks across the move.
    pub prepared_transactions: Vec<String>,
    /// WAL segments that wait for the archive; `None` when nothing is archived.
    pub unarchived_segments: Option<i64>,
    /// The segment that the archive refuses now.
    pub archive_failing: Option<String>,
}

/// What of a standby's state makes a promotion slow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Delays {
    pub replay_paused: bool,
    /// `recovery_min_apply_delay`.
    pub apply_delay: Duration,
    /// Bytes received that are not replayed yet.
    pub unreplayed_bytes: i64,
}

/// A parameter of a query, and its type there.
type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The local Postgres.
pub struct Postgres {
    options: PostgresOptions,
    idle: Mutex<Option<Client>>,
}

/// `CASE` guards what may not be called in recovery.
const FACTS: &str = "
    SELECT pg_is_in_recovery() AS in_recovery,
           CASE WHEN NOT pg_is_in_recovery()
                THEN substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) END AS timeline,
           CASE WHEN NOT pg_is_in_recovery()
                THEN current_setting('transaction_read_only') = 'off' AND txid_current() > 0
                ELSE false END AS writable,
           (SELECT system_identifier::text FROM pg_control_system()) AS system_identifier";

/// Logical walsenders and tools that take backups are no standbys.
const STANDBYS: &str = "
    SELECT application_name AS name, host(client_addr) AS address, COALESCE(state, '') AS state,
           COALESCE(sync_state, '') AS sync_state,
           GREATEST(0, COALESCE(pg_wal_lsn_diff(
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
               replay_lsn), 0))::bigint AS replay_lag_bytes
      FROM pg_stat_replication
     WHERE state IS DISTINCT FROM 'backup'
       AND pid NOT IN (SELECT active_pid FROM pg_replication_slots
                        WHERE slot_type = 'logical' AND active_pid IS NOT NULL)
     ORDER BY application_name, client_addr";

const OPEN_TRANSACTIONS: &str = "
    SELECT pid, COALESCE(usename, '') AS usename, COALESCE(datname, '') AS datname,
           COALESCE(application_name, '') AS application_name, COALESCE(state, '') AS state,
           (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::bigint AS age_ms,
           left(regexp_replace(COALESCE(query, ''), '\\s+', ' ', 'g'), 100) AS query
      FROM pg_stat_activity
     WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
       AND clock_timestamp() - xact_start > $1::bigint * interval '1 millisecond'
     ORDER BY xact_start";

/// The commit of a backend in SyncRep has happened here: ending it would only hide that from its
/// client. -1: the backend came over a Unix socket.
const TERMINATE: &str = "
    SELECT a.pid, COALESCE(usename, '') AS usename, COALESCE(datname, '') AS datname,
           COALESCE(application_name, '') AS application_name, COALESCE(state, '') AS state,
           (extract(epoch FROM clock_timestamp() - xact_start) * 1000)::bigint AS age_ms,
           left(regexp_replace(COALESCE(query, ''), '\\s+', ' ', 'g'), 100) AS query,
           pg_terminate_backend(a.pid) AS told
      FROM pg_stat_activity a
      JOIN unnest($1::bigint[], $2::int[]) AS b (pid, port) ON b.pid = a.pid
     WHERE backend_type = 'client backend' AND a.pid <> pg_backend_pid() AND xact_start IS NOT NULL
       AND wait_event IS DISTINCT FROM 'SyncRep' AND client_port IN (b.port, -1)
       AND clock_timestamp() - xact_start >= $3::bigint * interval '1 millisecond'";

const BURDENS: &str = "
    SELECT ARRAY(SELECT gid FROM pg_prepared_xacts ORDER BY prepared) AS prepared,
           CASE WHEN current_setting('archive_mode') <> 'off' THEN
               (SELECT count(*) FROM pg_ls_archive_statusdir() WHERE name LIKE '%.ready') END AS unarchived,
           (SELECT last_failed_wal FROM pg_stat_archiver
             WHERE last_failed_time > COALESCE(last_archived_time, '-infinity')) AS failing";

const DELAYS: &str = "
    SELECT CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END AS paused,
           (SELECT setting::bigint FROM pg_settings WHERE name = 'recovery_min_apply_delay') AS delay_ms,
           CASE WHEN pg_is_in_recovery() THEN GREATEST(0, COALESCE(
               pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), 0))::bigint
               ELSE 0 END AS unreplayed";

impl Postgres {
    pub fn new(options: PostgresOptions) -> Self {
        Self { options, idle: Mutex::new(None) }
    }

    /// Transactions that have been open longer than `age`, oldest first.
    pub async fn open_transactions(
        &self,
        age: Duration,
    ) -> Result<Vec<OpenTransaction>, PostgresError> {
        const WHAT: &str = "list open transactions";
        let age_ms = i64::try_from(age.as_millis()).unwrap_or(i64::MAX);
        let rows = self.query(WHAT, OPEN_TRANSACTIONS, &[(&age_ms, Type::INT8)]).await?;
        rows.iter().map(|row| open_transaction(row).map_err(|s| refused(WHAT, s))).collect()
    }

    /// Ends those of `backends` that have been in a transaction for `min_age`, but for one that waits for
    /// a standby to confirm its commit; returns what they were.
    pub async fn terminate(
        &self,
        backends: &[Backend],
        min_age: Duration,
    ) -> Result<Vec<Terminated>, PostgresError> {
        const WHAT: &str = "terminate transactions";
        let pids: Vec<i64> = backends.iter().map(|backend| backend.pid.into()).collect();
        let ports: Vec<i32> = backends.iter().map(|backend| backend.port.into()).collect();
        let min_age = i64::try_from(min_age.as_millis()).unwrap_or(i64::MAX);
        let parameters: [Parameter<'_>; 3] =
            [(&pids, Type::INT8_ARRAY), (&ports, Type::INT4_ARRAY), (&min_age, Type::INT8)];
        let rows = self.query(WHAT, TERMINATE, &parameters).await?;
        let ended = rows.iter().map(|row| open_transaction(row).map(Terminated::from));
        ended.collect::<Result<_, _>>().map_err(|source| refused(WHAT, source))
    }

    /// What stands in the way of a short shutdown; for a primary.
    pub async fn burdens(&self) -> Result<Burdens, PostgresError> {
        const WHAT: &str = "tell what would slow its shutdown";
        let row = self.one(WHAT, BURDENS).await?;
        let read = || -> Result<Burdens, tokio_postgres::Error> {
            Ok(Burdens {
                prepared_transactions: row.try_get("prepared")?,
                unarchived_segments: row.try_get("unarchived")?,
                archive_failing: row.try_get("failing")?,
            })
        };
        read().map_err(|source| refused(WHAT, source))
    }

    /// What stands in the way of a quick promotion; for a standby.
    pub async fn delays(&self) -> Result<Delays, PostgresError> {
        const WHAT: &str = "tell how far its replay is";
        let row = self.one(WHAT, DELAYS).await?;
        let read = || -> Result<Delays, tokio_postgres::Error> {
            let delay_ms: Option<i64> = row.try_get("delay_ms")?;
            let delay_ms = u64::try_from(delay_ms.unwrap_or(0)).unwrap_or(0);
            Ok(Delays {
                replay_paused: row.try_get("paused")?,
                apply_delay: Duration::from_millis(delay_ms),
                unreplayed_bytes: row.try_get("unreplayed")?,
            })
        };
        read().map_err(|source| refused(WHAT, source))
    }

    /// Runs CHECKPOINT, so that a shutdown or promotion soon after is short; returns how long it took.
    ///
    /// # Errors
    /// [`PostgresError::TimedOut`] when it takes longer than `limit`; Postgres then goes on with it.
    pub async fn checkpoint(&self, limit: Duration) -> Result<Duration, PostgresError> {
        const WHAT: &str = "finish a CHECKPOINT";
        let begun = Instant::now();
        let work = async {
            let client = self.connect().await?;
            client.batch_execute("CHECKPOINT").await.map_err(|source| refused(WHAT, source))
        };
        match timeout(limit, work).await {
            Ok(done) => done.map(|()| begun.elapsed()),
            Err(_) => Err(PostgresError::TimedOut { what: WHAT, limit }),
        }
    }

    async fn one(&self, what: &'static str, sql: &str) -> Result<Row, PostgresError> {
        let rows = self.query(what, sql, &[]).await?;
        let count = rows.len();
        rows.into_iter()
            .next()
            .ok_or_else(|| PostgresError::Nonsense { what, answer: format!("{count} rows") })
    }

    /// One round trip: nothing is prepared, since the types of the parameters are known.
    async fn query(
        &self,
        what: &'static str,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, PostgresError> {
        let limit = self.options.query_timeout;
        let kept = self.idle.lock().unwrap_or_else(PoisonError::into_inner).take();
        let work = async {
            let client = match kept.filter(|client| !client.is_closed()) {
                Some(client) => client,
                None => self.connect().await?,
            };
            let rows = client.query_typed(sql, parameters).await;
            let rows = rows.map_err(|source| refused(what, source))?;
            Ok((client, rows))
        };
        let (client, rows) =
            timeout(limit, work).await.unwrap_or(Err(PostgresError::TimedOut { what, limit }))?;
        *self.idle.lock().unwrap_or_else(PoisonError::into_inner) = Some(client);
        Ok(rows)
    }

    async fn connect(&self) -> Result<Client, PostgresError> {
        let options = &self.options;
        let (client, connection) = Config::new()
            .host_path(&options.socket_dir)
            .port(options.port)
            .user(&options.user)
            .dbname(&options.database)
            .application_name("pgcm supervise")
            .connect_timeout(options.query_timeout)
            .connect(NoTls)
            .await
            .map_err(|source| PostgresError::Connect {
                user: options.user.clone(),
                socket: format!("{}/.s.PGSQL.{}", options.socket_dir.display(), options.port),
                source,
            })?;
        // It ends when the client is dropped; its error reaches whoever waits for an answer.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        Ok(client)
    }
}

impl LocalPostgres for Postgres {
    async fn facts(&self) -> Result<LocalFacts, PostgresError> {
        const WHAT: &str = "tell whether it is primary";
        let row = self.one(WHAT, FACTS).await?;
        let rows = self.query("list its standbys", STANDBYS, &[]).await?;
        let standbys: Result<Vec<_>, _> = rows.iter().map(standby).collect();
        let standbys = standbys.map_err(|source| refused("list its standbys", source))?;
        let read = || -> Result<(bool, Option<String>, bool, String), tokio_postgres::Error> {
            Ok((
                row.try_get("in_recovery")?,
                row.try_get("timeline")?,
                row.try_get("writable")?,
                row.try_get("system_identifier")?,
            ))
        };
        let (in_recovery, timeline, writable, system_identifier) =
            read().map_err(|source| refused(WHAT, source))?;
        let timeline = match timeline {
            None => 0,
            Some(hex) => u32::from_str_radix(&hex, 16)
                .map_err(|_| PostgresError::Nonsense { what: WHAT, answer: hex })?,
        };
        Ok(LocalFacts { in_recovery, writable, timeline, system_identifier, standbys })
    }
}

fn refused(what: &'static str, source: tokio_postgres::Error) -> PostgresError {
    PostgresError::Query { what, source }
}

fn standby(row: &Row) -> Result<Standby, tokio_postgres::Error> {
    let address: Option<String> = row.try_get("address")?;
    let lag: i64 = row.try_get("replay_lag_bytes")?;
    Ok(Standby {
        name: row.try_get("name")?,
        address: address.and_then(|address| address.parse().ok()),
        state: row.try_get("state")?,
        sync_state: row.try_get("sync_state")?,
        replay_lag_bytes: u64::try_from(lag).unwrap_or(0),
    })
}

fn open_transaction(row: &Row) -> Result<OpenTransaction, tokio_postgres::Error> {
    let age_ms: i64 = row.try_get("age_ms")?;
    Ok(OpenTransaction {
        pid: row.try_get("pid")?,
        user: row.try_get("usename")?,
        database: row.try_get("datname")?,
        application: row.try_get("application_name")?,
        state: row.try_get("state")?,
        age: Duration::from_millis(u64::try_from(age_ms).unwrap_or(0)),
        query: row.try_get("query")?,
    })
}
