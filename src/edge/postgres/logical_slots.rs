//! Logical replication slots: subscribers go on with them, or have to be set up anew.

use tokio_postgres::Row;

use super::{Postgres, PostgresError, refused};

/// A logical slot that somebody may come back for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogicalSlot {
    pub name: String,
    /// Whether a subscriber uses it now.
    pub active: bool,
    /// Whether standbys may copy it; `None` before Postgres 17, where none can.
    pub failover: Option<bool>,
    /// Whether it can be used on this node once that is the primary: of a standby's, the server has
    /// copied it in full.
    pub usable: bool,
}

impl LogicalSlot {
    /// Whether a subscriber finds it on this node after a move.
    pub fn is_carried(&self) -> bool {
        self.failover == Some(true) && self.usable
    }
}

/// Older servers lack some columns; as JSON those are null instead of an error.
const LOGICAL_SLOTS: &str = "
    SELECT slot_name::text AS name, active, (to_jsonb(s) ->> 'failover')::bool AS failover,
           NOT pg_is_in_recovery() OR COALESCE((to_jsonb(s) ->> 'synced')::bool, false) AS usable
      FROM pg_replication_slots s
     WHERE slot_type = 'logical' AND NOT temporary AND wal_status IS DISTINCT FROM 'lost'
       AND to_jsonb(s) ->> 'invalidation_reason' IS NULL
     ORDER BY slot_name";

impl Postgres {
    /// Logical slots, but for temporary ones and those that were invalidated.
    pub async fn logical_slots(&self) -> Result<Vec<LogicalSlot>, PostgresError> {
        const WHAT: &str = "list its logical slots";
        let rows = self.query(WHAT, LOGICAL_SLOTS, &[]).await?;
        rows.iter().map(logical_slot).collect::<Result<_, _>>().map_err(|s| refused(WHAT, s))
    }
}

fn logical_slot(row: &Row) -> Result<LogicalSlot, tokio_postgres::Error> {
    Ok(LogicalSlot {
        name: row.try_get("name")?,
        active: row.try_get("active")?,
        failover: row.try_get("failover")?,
        usable: row.try_get("usable")?,
    })
}
