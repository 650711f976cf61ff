//! SQL on this node as the operating system user of Postgres, and questions to other nodes over
//! replication connections.

use std::{
    future::Future,
    io,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::timeout;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, SimpleQueryRow};

use super::{
    command::{CommandError, Output, Run},
    identity::Identity,
};
use crate::model::agent::{
    history::History,
    lsn::{Lsn, Position},
    rejoin::Primary,
    sync_plan::Row,
};

#[derive(Debug, thiserror::Error)]
pub enum SqlError {
    #[error("nothing listens at {path}", path = .path.display())]
    NotListening {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot become the user of Postgres")]
    Identity(#[source] io::Error),
    #[error("Postgres did not answer within {0:?}")]
    TimedOut(Duration),
    #[error("Postgres refused")]
    Refused(#[source] tokio_postgres::Error),
    #[error("Postgres answered without {0}")]
    Incomplete(&'static str),
    #[error("cannot ask {address}")]
    Command {
        address: String,
        #[source]
        source: CommandError,
    },
    #[error("{address} did not answer a {kind} connection: {reason}")]
    Unreachable { address: String, kind: &'static str, reason: String },
    #[error("{address} answered what cannot be understood: {answer}")]
    Strange { address: String, answer: String },
}

/// A connection to this node's Postgres.
pub struct Local {
    client: Client,
    limit: Duration,
}

/// What the local server says of itself, read in one round trip.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct State {
    pub in_recovery: bool,
    pub sync_names: String,
    pub primary_conninfo: String,
    /// On a primary what is safely on disk, on a standby what was received or replayed.
    pub position: Lsn,
    pub replayed: Lsn,
    /// The primary's timeline; `None` in recovery.
    pub timeline: Option<u32>,
    pub checkpoint_timeline: u32,
    /// The checkpointer waits for work, so it has taken over the settings of the last reload.
    pub checkpointer_idle: bool,
    /// WAL streams in; a walreceiver that only waits for a better time does not count.
    pub receives: bool,
    /// A standby that has read all WAL on its own disk, so that `position` is where that ends.
    pub exhausted: bool,
    /// The primary's standbys.
    pub rows: Vec<Row>,
}

const STATE: &str = "
select pg_is_in_recovery(),
       current_setting('synchronous_standby_names'),
       current_setting('primary_conninfo'),
       case when pg_is_in_recovery() then greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())
            else pg_current_wal_flush_lsn() end,
       pg_last_wal_replay_lsn(),
       case when pg_is_in_recovery() then null
            else substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8) end,
       (select timeline_id from pg_control_checkpoint()),
       exists (select from pg_stat_activity where backend_type = 'checkpointer'
               and wait_event in ('CheckpointerMain', 'CheckpointWriteDelay')),
       exists (select from pg_stat_wal_receiver r where status = 'streaming' and not exists
               (select from pg_stat_activity a where a.pid = r.pid
                and wait_event = 'WalReceiverUpstreamCatchup')),
       exists (select from pg_stat_activity where backend_type = 'startup'
               and wait_event in ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval'));
select application_name, state, sync_state, flush_lsn from pg_stat_replication
 where state is not null";

const MAY_REWIND: &str =
    "select bool_and(has_function_privilege(name, 'execute')) from unnest(array[
    'pg_ls_dir(text,boolean,boolean)', 'pg_stat_file(text,boolean)', 'pg_read_binary_file(text)',
    'pg_read_binary_file(text,bigint,bigint,boolean)']) as name";

const END_SLOT_SYNC: &str =
    "select pg_terminate_backend(pid) from pg_stat_activity where backend_type = 'slotsync worker'";

impl Local {
    /// Connects to the server behind `socket` as `user`, whose operating system identity is taken
    /// for the moment of connecting. `limit` bounds this and every later question.
    ///
    /// A superuser gets one of the reserved slots when all others are taken.
    pub async fn connect(
        socket: &Path,
        user: &Identity,
        limit: Duration,
    ) -> Result<Self, SqlError> {
        let stream = user
            .assume(|| UnixStream::connect(socket))
            .map_err(SqlError::Identity)?
            .map_err(|source| SqlError::NotListening { path: socket.to_owned(), source })?;
        stream.set_nonblocking(true).map_err(SqlError::Identity)?;
        let stream = tokio::net::UnixStream::from_std(stream).map_err(SqlError::Identity)?;
        let mut config = tokio_postgres::Config::new();
        config.user(&user.name).dbname("postgres").application_name("pgcm resource agent");
        let (client, connection) = timeout(limit, config.connect_raw(stream, NoTls))
            .await
            .map_err(|_| SqlError::TimedOut(limit))?
            .map_err(SqlError::Refused)?;
        tokio::spawn(connection);
        Ok(Self { client, limit })
    }

    /// Reads the server's state.
    pub async fn state(&self) -> Result<State, SqlError> {
        let messages = self.ask(STATE).await?;
        let mut rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let own = rows.next().ok_or(SqlError::Incomplete("its state"))?;
        let timeline = own.get(5).map(|digits| u32::from_str_radix(digits, 16));
        Ok(State {
            in_recovery: own.get(0) == Some("t"),
            sync_names: own.get(1).unwrap_or_default().to_owned(),
            primary_conninfo: own.get(2).unwrap_or_default().to_owned(),
            position: lsn(own, 3),
            replayed: lsn(own, 4),
            timeline: timeline.transpose().map_err(|_| SqlError::Incomplete("a timeline"))?,
            checkpoint_timeline: own.get(6).and_then(|id| id.parse().ok()).unwrap_or(0),
            checkpointer_idle: own.get(7) == Some("t"),
            receives: own.get(8) == Some("t"),
            exhausted: own.get(8) == Some("t") || own.get(9) == Some("t"),
            rows: rows.map(standby).collect(),
        })
    }

    /// Asks the server to leave recovery, and does not wait for it.
    pub async fn promote(&self) -> Result<(), SqlError> {
        self.ask("select pg_promote(wait => false)").await.map(|_| ())
    }

    /// Ends the process that copies logical slots, if there is one.
    ///
    /// In older releases of 17 and 18 one that waits for a dead primary's answer does not hear of a
    /// promotion, which waits for it. One that begins in that very moment is not seen by a single call.
    pub async fn end_slot_sync(&self) -> Result<(), SqlError> {
        self.ask(END_SLOT_SYNC).await.map(|_| ())
    }

    pub async fn in_recovery(&self) -> Result<bool, SqlError> {
        self.is("pg_is_in_recovery()").await
    }

    /// Whether this connection's role is a superuser.
    pub async fn is_superuser(&self) -> Result<bool, SqlError> {
        self.is("current_setting('is_superuser')::bool").await
    }

    async fn is(&self, expression: &'static str) -> Result<bool, SqlError> {
        let messages = self.ask(&format!("select {expression}")).await?;
        let answer = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row.get(0) == Some("t")),
            _ => None,
        });
        answer.ok_or(SqlError::Incomplete(expression))
    }

    /// Writes a checkpoint, which takes as long as there are dirty buffers.
    pub async fn checkpoint(&self) -> Result<(), SqlError> {
        self.ask("checkpoint").await.map(|_| ())
    }

    pub(super) async fn ask(&self, sql: &str) -> Result<Vec<SimpleQueryMessage>, SqlError> {
        timeout(self.limit, self.client.simple_query(sql))
            .await
            .map_err(|_| SqlError::TimedOut(self.limit))?
            .map_err(SqlError::Refused)
    }
}

fn lsn(row: &SimpleQueryRow, column: usize) -> Lsn {
    row.get(column).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn standby(row: &SimpleQueryRow) -> Row {
    Row {
        name: row.get(0).unwrap_or_default().to_owned(),
        streaming: row.get(1) == Some("streaming"),
        is_sync: matches!(row.get(2), Some("sync" | "quorum")),
        flushed: lsn(row, 3),
    }
}

/// Makes a connection of libpq one for replication.
pub(super) const REPLICATION: &str = "replication=true";
/// Who a server is, and how far it has written or received.
const IDENTIFY: &str = "IDENTIFY_SYSTEM";

/// Asks other nodes over replication connections: the rights that every standby needs anyway.
#[derive(Debug, Clone)]
pub struct Remote<R> {
    pub run: R,
    pub psql: String,
    pub user: Identity,
    /// As for `primary_conninfo`, naming the node that is asked.
    pub conninfo: String,
    /// The node's address, for messages.
    pub address: String,
    /// Bounds each question.
    pub limit: Duration,
}

impl<R: Run> Remote<R> {
    /// The system identifier and how far the node has written, or received, on which timeline.
    pub async fn identify(&self) -> Result<(String, Position), SqlError> {
        let answer = self.ask(IDENTIFY).await?;
        self.identity(&answer)
    }

    /// The same, asked once `go` says how long the answer may take, over a connection that is made
    /// before that.
    pub async fn identify_when(
        &self,
        go: impl Future<Output = Duration> + Send,
    ) -> Result<(String, Position), SqlError> {
        let input = async { (format!("{IDENTIFY};\n"), go.await) };
        let conninfo = self.conninfo_with(REPLICATION);
        // Unlike a command in its arguments, one that it reads does not make psql fail.
        let args = ["-XAtqw", "-F|", "-v", "ON_ERROR_STOP=1", &conninfo];
        let output = self.user.run_fed(&self.run, &self.psql, &args, input).await;
        let answer = self.answered(REPLICATION, output)?;
        self.identity(&answer)
    }

    fn identity(&self, answer: &str) -> Result<(String, Position), SqlError> {
        let mut fields = answer.trim().split('|');
        let mut read = || {
            let system = fields.next()?.to_owned();
            let timeline = fields.next()?.parse().ok()?;
            Some((system, Position { timeline, lsn: fields.next()?.parse().ok()? }))
        };
        read().ok_or_else(|| self.strange(answer))
    }

    /// Whom the node's commits wait for: its `synchronous_standby_names`.
    pub async fn sync_names(&self) -> Result<String, SqlError> {
        Ok(self.ask("SHOW synchronous_standby_names").await?.trim().to_owned())
    }

    /// Who the node is, with the history of its timeline.
    pub async fn describe(&self) -> Result<Primary, SqlError> {
        let (system, position) = self.identify().await?;
        let history = if position.timeline > 1 {
            let answer = self.ask(&format!("TIMELINE_HISTORY {}", position.timeline)).await?;
            let content = answer.split_once('|').map(|(_, content)| content);
            content.and_then(History::parse).ok_or_else(|| self.strange(&answer))?
        } else {
            History::default()
        };
        Ok(Primary { system, position, history })
    }

    /// Whether the role may execute what pg_rewind executes, over a normal connection.
    pub async fn may_rewind(&self) -> Result<bool, SqlError> {
        let answer = self.ask_through("dbname=postgres", "default", MAY_REWIND).await?;
        Ok(answer.trim() == "t")
    }

    pub(super) async fn ask(&self, command: &str) -> Result<String, SqlError> {
        self.ask_through(REPLICATION, "default", command).await
    }

    /// Asks over a connection with further options of libpq; refusals come in psql's `verbosity`.
    pub(super) async fn ask_through(
        &self,
        options: &str,
        verbosity: &str,
        command: &str,
    ) -> Result<String, SqlError> {
        let conninfo = self.conninfo_with(options);
        let verbosity = format!("VERBOSITY={verbosity}");
        let args = ["-XAtqw", "-F|", "-v", &verbosity, "-c", command, &conninfo];
        let output = self.user.run(&self.run, &self.psql, &args, self.limit).await;
        self.answered(options, output)
    }

    fn conninfo_with(&self, options: &str) -> String {
        let seconds = self.limit.as_secs().max(2);
        format!("{} {options} connect_timeout={seconds}", self.conninfo)
    }

    fn answered(
        &self,
        options: &str,
        output: Result<Output, CommandError>,
    ) -> Result<String, SqlError> {
        let output =
            output.map_err(|source| SqlError::Command { address: self.address.clone(), source })?;
        if !output.success() {
            let reason = output.last_words().to_owned();
            let kind = if options == REPLICATION { "replication" } else { "normal" };
            return Err(SqlError::Unreachable { address: self.address.clone(), kind, reason });
        }
        Ok(output.stdout)
    }

    pub(super) fn strange(&self, answer: &str) -> SqlError {
        SqlError::Strange { address: self.address.clone(), answer: answer.trim().to_owned() }
    }
}
