//! The memory of past failovers: `/history/<milliseconds since 1970>`, the last hundred.

use std::time::Duration;

use slog::{Logger, warn};
use tokio::time::timeout;

use super::report::Report;
use crate::{
    edge::{
        clock,
        etcd::{Etcd, EtcdError, Expect, Put},
    },
    error::chain,
};

/// Prefix of the keys, below the namespace.
pub const HISTORY: &str = "/history/";
/// Older entries go.
pub const KEPT: usize = 100;
const LIMIT: Duration = Duration::from_secs(3);

/// Writes `report`, best effort: a failover is not less done for not being remembered.
pub(super) async fn write(etcd: &Etcd, report: &Report, log: &Logger) {
    let value = serde_json::to_string(report).unwrap_or_default();
    let reason = match timeout(LIMIT, append(etcd, value)).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error).to_string(),
        Err(_) => format!("no answer within {LIMIT:?}"),
    };
    warn!(log, "the failover is not in the history"; "event" => "failover.history.fail",
        "error" => reason);
}

/// Adds one entry and drops what is beyond the bound.
pub async fn append(etcd: &Etcd, value: String) -> Result<(), EtcdError> {
    // Fixed width, so that the order of keys is the order of time.
    let key = format!("{HISTORY}{:015}", clock::unix_ms());
    let put = Put { key: key.clone(), value, lease: 0 };
    etcd.put_if(&[(&key, Expect::Absent)], &[put]).await?;
    let mut entries = etcd.get_prefix(HISTORY).await?.entries;
    entries.sort_by(|a, b| a.key.cmp(&b.key));
    let excess = entries.len().saturating_sub(KEPT);
    for entry in &entries[..excess] {
        etcd.delete_if(&entry.key, Expect::CreateRevision(entry.create_revision)).await?;
    }
    Ok(())
}
