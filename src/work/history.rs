//! The memory of past changes of the primary, in etcd below `/history/`, bounded in number.

use std::time::Duration;

use slog::{Logger, warn};
use tokio::time::timeout;

use crate::{
    edge::etcd::{Etcd, EtcdError, Expect, Put, Snapshot},
    error::chain,
    model::{
        cluster::Primary,
        history::{Change, Entry, HISTORY, KEPT, Kind},
    },
};

/// Bounds each write: nothing that clients wait for may depend on it.
const LIMIT: Duration = Duration::from_secs(3);

/// Writes `value` under `key`, best effort: a failover is not less done for not being remembered.
///
/// Drops what is beyond the bound, and what a supervise took for an unplanned change to `moved_to`.
pub async fn write(
    etcd: &Etcd,
    key: &str,
    value: String,
    moved_to: Option<&Primary>,
    log: &Logger,
) {
    let work = async {
        let put = Put { key: key.to_owned(), value, lease: 0 };
        etcd.put_if(&[], &[put]).await?;
        tidy(etcd, moved_to).await
    };
    let reason = match timeout(LIMIT, work).await {
        Ok(Ok(())) => return,
        Ok(Err(error)) => chain(&error).to_string(),
        Err(_) => format!("no answer within {LIMIT:?}"),
    };
    warn!(log, "the change of primary is not in the history"; "event" => "history.write.fail",
        "key" => key, "error" => reason);
}

/// Drops what is beyond the bound, best effort.
pub async fn trim(etcd: &Etcd, log: &Logger) {
    if let Ok(Err(error)) = timeout(LIMIT, tidy(etcd, None)).await {
        warn!(log, "old entries of the history stay"; "event" => "history.trim.fail",
            "error" => %chain(&error));
    }
}

async fn tidy(etcd: &Etcd, moved_to: Option<&Primary>) -> Result<(), EtcdError> {
    let mut snapshot = etcd.get_prefix(HISTORY).await?;
    snapshot.entries.sort_by(|a, b| a.key.cmp(&b.key));
    let excess = snapshot.entries.len().saturating_sub(KEPT);
    for (place, entry) in snapshot.entries.iter().enumerate() {
        let twice = moved_to.is_some_and(|primary| {
            serde_json::from_str::<Change>(&entry.value).is_ok_and(|change| {
                change.kind == Kind::Unplanned && change.new_primary.as_ref() == Some(primary)
            })
        });
        if place < excess || twice {
            etcd.delete_if(&entry.key, Expect::CreateRevision(entry.create_revision)).await?;
        }
    }
    Ok(())
}

/// What is on record, newest first, and which keys hold something else.
///
/// # Errors
/// When etcd does not answer.
pub async fn read(etcd: &Etcd) -> Result<(Snapshot, Vec<Entry>, Vec<String>), EtcdError> {
    let mut snapshot = etcd.get_prefix(HISTORY).await?;
    snapshot.entries.sort_by(|a, b| b.key.cmp(&a.key));
    let (mut entries, mut odd) = (Vec::new(), Vec::new());
    for entry in &snapshot.entries {
        match serde_json::from_str(&entry.value) {
            Ok(change) => entries.push(Entry { key: entry.key.clone(), change }),
            Err(error) => odd.push(format!("{} cannot be read: {error}", entry.key)),
        }
    }
    Ok((snapshot, entries, odd))
}
