//! Replication slots, on this node by SQL and on the primary over connections of a standby.

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use super::{
    agent_sql::{Local, REPLICATION, Remote, SqlError},
    command::Run,
};
use crate::model::agent::{
    lsn::Lsn,
    slots::{Slot, Step},
};

/// What the local server says of its slots, and what moving them takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slots {
    /// Of the whole cluster of databases: a position of another system is worth nothing here.
    pub system: String,
    /// The timeline that streams in; `None` while nothing does.
    pub received_timeline: Option<u32>,
    /// `wal_level` allows logical decoding.
    pub wal_level_logical: bool,
    /// Where the last checkpoint begins.
    pub redo: Lsn,
    pub slots: Vec<Slot>,
}

// Older servers lack some columns; as JSON those are null instead of an error.
const SLOTS: &str = "
select (select system_identifier from pg_control_system()),
       (select received_tli from pg_stat_wal_receiver where status = 'streaming'),
       current_setting('wal_level') = 'logical',
       (select redo_lsn from pg_control_checkpoint());
select slot_name, slot_type = 'physical', active, temporary,
       (wal_status = 'lost' and restart_lsn is null)
           or to_jsonb(s) ->> 'invalidation_reason' is not null,
       restart_lsn,
       xmin is not null or catalog_xmin is not null,
       to_jsonb(s) ->> 'failover' = 'true', to_jsonb(s) ->> 'synced' = 'true'
  from pg_replication_slots s";

/// SQLSTATE `duplicate_object`.
const EXISTS: &str = "42710";

impl Local {
    /// Reads all slots.
    pub async fn slots(&self) -> Result<Slots, SqlError> {
        let messages = self.ask(SLOTS).await?;
        let mut rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        let own = rows.next().ok_or(SqlError::Incomplete("its slots"))?;
        Ok(Slots {
            system: own.get(0).unwrap_or_default().to_owned(),
            received_timeline: own.get(1).and_then(|timeline| timeline.parse().ok()),
            wal_level_logical: own.get(2) == Some("t"),
            redo: position(own, 3).unwrap_or_default(),
            slots: rows.map(slot).collect(),
        })
    }

    /// Carries out one step; what cannot be done is refused by the server and changes nothing.
    pub async fn change_slot(&self, step: &Step) -> Result<(), SqlError> {
        let sql = match step {
            Step::Create { slot, reserve } => {
                format!("select pg_create_physical_replication_slot({}, {reserve})", literal(slot))
            }
            Step::Advance { slot, to } => {
                format!("select pg_replication_slot_advance({}, '{to}')", literal(slot))
            }
            Step::Drop { slot, .. } => {
                format!("select pg_drop_replication_slot({})", literal(slot))
            }
        };
        self.ask(&sql).await.map(|_| ())
    }

    /// Drops a logical slot that nobody uses.
    pub async fn drop_logical_slot(&self, slot: &str) -> Result<(), SqlError> {
        self.ask(&format!("select pg_drop_replication_slot({})", literal(slot))).await.map(|_| ())
    }
}

impl<R: Run> Remote<R> {
    /// Makes a physical slot there, unless there is one of that name.
    pub async fn ensure_slot(&self, slot: &str) -> Result<(), SqlError> {
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" PHYSICAL");
        match self.ask_through(REPLICATION, "sqlstate", &command).await {
            Err(SqlError::Unreachable { reason, .. }) if reason.contains(EXISTS) => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    /// Whether a slot there keeps no WAL, or what it asks for is gone; `None` when there is no such
    /// slot.
    ///
    /// Needs a normal connection to the database `postgres`.
    pub async fn lacks_wal(&self, slot: &str) -> Result<Option<bool>, SqlError> {
        let sql = format!(
            "select wal_status is null or wal_status = 'lost' from pg_replication_slots \
             where slot_name = {}",
            literal(slot)
        );
        let answer = self.ask_through("dbname=postgres", "default", &sql).await?;
        match answer.trim() {
            "" => Ok(None),
            "t" => Ok(Some(true)),
            "f" => Ok(Some(false)),
            _ => Err(self.strange(&answer)),
        }
    }

    /// The names of the logical slots there that standbys may copy.
    ///
    /// From Postgres 17 on; needs a normal connection to the database `postgres`.
    pub async fn failover_slots(&self) -> Result<Vec<String>, SqlError> {
        let sql = "select slot_name from pg_replication_slots \
                   where failover and not temporary and invalidation_reason is null";
        let answer = self.ask_through("dbname=postgres", "default", sql).await?;
        Ok(answer.lines().map(str::to_owned).collect())
    }
}

fn slot(row: &SimpleQueryRow) -> Slot {
    let is = |column: usize| row.get(column) == Some("t");
    Slot {
        name: row.get(0).unwrap_or_default().to_owned(),
        physical: is(1),
        active: is(2),
        temporary: is(3),
        lost: is(4),
        restart: position(row, 5),
        keeps_rows: is(6),
        failover: is(7),
        synced: is(8),
    }
}

fn position(row: &SimpleQueryRow, column: usize) -> Option<Lsn> {
    row.get(column)?.parse().ok()
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
