//! What else a shutdown of the primary has to wait for, or needs.

use std::path::PathBuf;

use tokio_postgres::Row;

use super::{Postgres, PostgresError, refused};

/// A process that sends WAL: to a standby, or to somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Walsender {
    pub application: String,
    pub pid: i32,
    /// Whether it decodes for a logical slot.
    pub is_logical: bool,
    /// Whether it sends a base backup.
    pub is_backup: bool,
    /// Bytes of WAL that its receiver has not confirmed.
    pub behind_bytes: u64,
}

/// A logical receiver that has confirmed nothing yet stands where its slot does: what was sent to it
/// may lie in a buffer.
const WALSENDERS: &str = "
    SELECT r.application_name AS name, r.pid, COALESCE(s.slot_type = 'logical', false) AS logical,
           COALESCE(r.state, '') = 'backup' AS backup,
           GREATEST(0, COALESCE(pg_wal_lsn_diff(
               CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END,
               COALESCE(r.flush_lsn, s.confirmed_flush_lsn, r.write_lsn, r.sent_lsn)), 0))::bigint AS behind
      FROM pg_stat_replication r LEFT JOIN pg_replication_slots s ON s.active_pid = r.pid
     ORDER BY r.application_name, r.pid";

const DATA_DIRECTORY: &str = "SELECT current_setting('data_directory') AS data_directory";

impl Postgres {
    /// Everybody who is sent WAL now.
    pub async fn walsenders(&self) -> Result<Vec<Walsender>, PostgresError> {
        const WHAT: &str = "list its walsenders";
        let rows = self.query(WHAT, WALSENDERS, &[]).await?;
        rows.iter().map(walsender).collect::<Result<_, _>>().map_err(|s| refused(WHAT, s))
    }

    pub async fn data_directory(&self) -> Result<PathBuf, PostgresError> {
        const WHAT: &str = "name its data directory";
        let row = self.one(WHAT, DATA_DIRECTORY).await?;
        let directory: String =
            row.try_get("data_directory").map_err(|source| refused(WHAT, source))?;
        Ok(PathBuf::from(directory))
    }
}

fn walsender(row: &Row) -> Result<Walsender, tokio_postgres::Error> {
    let behind: i64 = row.try_get("behind")?;
    Ok(Walsender {
        application: row.try_get("name")?,
        pid: row.try_get("pid")?,
        is_logical: row.try_get("logical")?,
        is_backup: row.try_get("backup")?,
        behind_bytes: u64::try_from(behind).unwrap_or(0),
    })
}
