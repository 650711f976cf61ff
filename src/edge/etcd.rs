//! etcd: reads, compare-and-swap, leases and wake-ups, all below one namespace.
//!
//! Every call has a limit, and asks for a member that sees a leader, so that a partitioned one never
//! answers from the past.

mod members;
pub mod tls;

use std::{convert::Infallible, sync::Arc, time::Duration};

use etcd_client::{
    Client, Compare, CompareOp, GetOptions, PutOptions, SortOrder, SortTarget, Txn, TxnOp,
    TxnOpResponse, WatchOptions,
};
use slog::{Logger, debug};
use tokio::{sync::Notify, task::JoinSet};

use self::{members::Members, tls::Tls};
use crate::{error::chain, model::cluster::MASTER};

/// How to reach etcd.
#[derive(Debug, Clone)]
pub struct EtcdOptions {
    /// Client URLs of the members; at least one.
    pub endpoints: Vec<String>,
    /// Prefix of every key, without a slash at its end.
    pub namespace: String,
    /// Bounds each request to one member, connecting included.
    pub call_timeout: Duration,
    /// User and password, when etcd asks for them.
    pub user: Option<(String, String)>,
    /// For URLs that begin with `https://`, and only for them.
    pub tls: Option<Tls>,
}

#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    #[error("no etcd member answered ({})", .tried.join("; "))]
    Unreachable { tried: Vec<String> },
    #[error("etcd refused to {what}")]
    Refused {
        what: &'static str,
        #[source]
        source: etcd_client::Error,
    },
    #[error("etcd ended the watch: {reason}")]
    Canceled { reason: String },
    #[error("the etcd lease {lease:x} is gone")]
    LeaseGone { lease: i64 },
}

/// A key with its value, as etcd had it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Key below the namespace.
    pub key: String,
    pub value: String,
    pub create_revision: i64,
    pub mod_revision: i64,
    /// 0 when the key is under no lease.
    pub lease: i64,
}

/// Some keys as they were at one revision.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub revision: i64,
    pub entries: Vec<Entry>,
}

impl Snapshot {
    /// The entry of `key` (below the namespace).
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.key == key)
    }
}

/// What a key must be for a write to happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    Absent,
    /// Unchanged since this modification.
    ModRevision(i64),
    /// Still the key that was created at this revision.
    CreateRevision(i64),
}

/// A key to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Put {
    pub key: String,
    pub value: String,
    /// 0 for none.
    pub lease: i64,
}

/// How a conditional write ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Swap {
    /// Written, at this revision.
    Done(i64),
    /// An expectation did not hold; nothing was written.
    Changed,
}

/// A connection to etcd. Cheap to share; connects when it is first used.
pub struct Etcd {
    namespace: String,
    members: Members,
}

impl Etcd {
    pub fn new(options: EtcdOptions) -> Self {
        Self { namespace: options.namespace.clone(), members: Members::of(options) }
    }

    /// Members that do not serve, each with its reason. All are asked at once, twice, for two seconds at most
    /// each time.
    pub async fn silent_members(self: &Arc<Self>) -> Vec<String> {
        let mut asked = JoinSet::new();
        for index in 0..self.members.count() {
            let etcd = Arc::clone(self);
            asked.spawn(async move {
                let key = etcd.full(MASTER);
                let get = |mut client: Client| {
                    let key = key.clone();
                    async move { client.get(key, None).await }
                };
                etcd.members.why_silent(index, get).await
            });
        }
        let mut silent: Vec<String> = asked.join_all().await.into_iter().flatten().collect();
        silent.sort();
        silent
    }

    /// The value of one key, read through consensus.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, EtcdError> {
        let full = self.full(key);
        let response = self
            .members
            .call("read a key", |mut client| {
                let full = full.clone();
                async move { client.get(full, None).await }
            })
            .await?;
        Ok(response.kvs().first().map(|kv| self.entry(kv)))
    }

    /// Those of `keys` that exist, all as they were at one revision, read through consensus.
    pub async fn get_all(&self, keys: &[&str]) -> Result<Snapshot, EtcdError> {
        let gets: Vec<TxnOp> = keys.iter().map(|key| TxnOp::get(self.full(key), None)).collect();
        let txn = Txn::new().and_then(gets);
        let response = self
            .members
            .call("read keys", |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .await?;
        let mut entries = Vec::new();
        for answer in response.op_responses() {
            if let TxnOpResponse::Get(found) = answer {
                for kv in found.kvs() {
                    entries.push(self.entry(kv));
                }
            }
        }
        Ok(Snapshot { revision: response.header().map_or(0, |header| header.revision()), entries })
    }

    /// All keys that start with `prefix` (below the namespace), read through consensus.
    pub async fn get_prefix(&self, prefix: &str) -> Result<Snapshot, EtcdError> {
        let full = self.full(prefix);
        let response = self
            .members
            .call("read keys", |mut client| {
                let full = full.clone();
                async move { client.get(full, Some(GetOptions::new().with_prefix())).await }
            })
            .await?;
        let entries = response.kvs().iter().map(|kv| self.entry(kv)).collect();
        Ok(Snapshot { revision: response.header().map_or(0, |header| header.revision()), entries })
    }

    /// The last `count` keys that start with `prefix` (below the namespace), the last one first.
    pub async fn get_last(&self, prefix: &str, count: u32) -> Result<Vec<Entry>, EtcdError> {
        let full = self.full(prefix);
        let response = self
            .members
            .call("read keys", |mut client| {
                let options = GetOptions::new()
                    .with_prefix()
                    .with_sort(SortTarget::Key, SortOrder::Descend)
                    .with_limit(count.into());
                let full = full.clone();
                async move { client.get(full, Some(options)).await }
            })
            .await?;
        Ok(response.kvs().iter().map(|kv| self.entry(kv)).collect())
    }

    /// Writes all of `puts` if all of `expect` hold, in one transaction.
    ///
    /// When an answer was lost, the write may have happened although another member then says
    /// [`Swap::Changed`]: a caller that must know reads the key again.
    pub async fn put_if(&self, expect: &[(&str, Expect)], puts: &[Put]) -> Result<Swap, EtcdError> {
        let operations = puts.iter().map(|put| {
            let options = (put.lease != 0).then(|| PutOptions::new().with_lease(put.lease));
            TxnOp::put(self.full(&put.key), put.value.clone(), options)
        });
        self.transact("write keys", expect, operations.collect()).await
    }

    /// Deletes `key` if `expect` holds of it.
    pub async fn delete_if(&self, key: &str, expect: Expect) -> Result<Swap, EtcdError> {
        let operations = vec![TxnOp::delete(self.full(key), None)];
        self.transact("delete a key", &[(key, expect)], operations).await
    }

    async fn transact(
        &self,
        what: &'static str,
        expect: &[(&str, Expect)],
        operations: Vec<TxnOp>,
    ) -> Result<Swap, EtcdError> {
        let compares: Vec<Compare> = expect.iter().map(|&(key, e)| self.compare(key, e)).collect();
        let txn = Txn::new().when(compares).and_then(operations);
        let response = self
            .members
            .call(what, |mut client| {
                let txn = txn.clone();
                async move { client.txn(txn).await }
            })
            .await?;
        Ok(if response.succeeded() {
            Swap::Done(response.header().map_or(0, |header| header.revision()))
        } else {
            Swap::Changed
        })
    }

    /// Grants a lease that ends `ttl` (counted in whole seconds) after its last renewal.
    pub async fn grant(&self, ttl: Duration) -> Result<i64, EtcdError> {
        let seconds = i64::try_from(ttl.as_secs().max(1)).unwrap_or(i64::MAX);
        let granted =
            self.members
                .call("grant a lease", |mut client| async move {
                    client.lease_grant(seconds, None).await
                })
                .await?;
        Ok(granted.id())
    }

    /// Renews a lease; returns how long it lives from now.
    ///
    /// # Errors
    /// [`EtcdError::LeaseGone`] when the lease has ended: whatever stood under it is lost.
    pub async fn renew(&self, lease: i64) -> Result<Duration, EtcdError> {
        let left = self
            .members
            .call("renew a lease", |mut client| async move {
                let (mut keeper, mut answers) = match client.lease_keep_alive(lease).await {
                    Ok(begun) => begun,
                    // This is how the client reports that the first answer gave no time to live.
                    Err(etcd_client::Error::LeaseKeepAliveError(reason))
                        if reason == "lease not found" =>
                    {
                        return Ok(0);
                    }
                    Err(error) => return Err(error),
                };
                keeper.keep_alive().await?;
                Ok(answers.message().await?.map_or(0, |answer| answer.ttl()))
            })
            .await?;
        match u64::try_from(left) {
            Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
            _ => Err(EtcdError::LeaseGone { lease }),
        }
    }

    /// Ends a lease, and with it every key under it. A lease that is gone already is fine.
    pub async fn revoke(&self, lease: i64) -> Result<(), EtcdError> {
        let revoked = self
            .members
            .call("revoke a lease", |mut client| async move { client.lease_revoke(lease).await })
            .await;
        match revoked {
            Err(EtcdError::Refused { source: etcd_client::Error::GRpcStatus(status), .. })
                if status.code() == tonic::Code::NotFound =>
            {
                Ok(())
            }
            other => other.map(|_| ()),
        }
    }

    /// Notifies `wake` whenever a key below `prefix` changes; runs until it is dropped.
    ///
    /// Watches can die in silence, so this is a hint that saves waiting for the next poll, never the
    /// only way to learn of a change. `wake` is also notified whenever a watch begins, since
    /// changes before that were not seen.
    pub async fn wake_on_change(&self, prefix: &str, wake: &Notify, log: &Logger) -> Infallible {
        const RETRY: Duration = Duration::from_millis(500);
        loop {
            if let Err(error) = self.watch_once(prefix, wake).await {
                debug!(log, "the watch on etcd ended, starting another";
                    "event" => "etcd.watch.end", "error" => %chain(&error));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn watch_once(&self, prefix: &str, wake: &Notify) -> Result<(), EtcdError> {
        let full = self.full(prefix);
        let (member, mut stream) = self
            .members
            .call_some("watch keys", |mut client| {
                let full = full.clone();
                async move { client.watch(full, Some(WatchOptions::new().with_prefix())).await }
            })
            .await?;
        let ended = loop {
            match stream.message().await {
                Ok(Some(message)) if message.canceled() => {
                    break Err(EtcdError::Canceled { reason: message.cancel_reason().to_owned() });
                }
                Ok(Some(_)) => wake.notify_one(),
                Ok(None) => break Ok(()),
                Err(source) => break Err(EtcdError::Refused { what: "go on watching", source }),
            }
        };
        // The member may be the one in trouble, or the token.
        member.has_failed().await;
        ended
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.namespace)
    }

    fn compare(&self, key: &str, expect: Expect) -> Compare {
        let key = self.full(key);
        match expect {
            Expect::Absent => Compare::version(key, CompareOp::Equal, 0),
            Expect::ModRevision(revision) => Compare::mod_revision(key, CompareOp::Equal, revision),
            Expect::CreateRevision(revision) => {
                Compare::create_revision(key, CompareOp::Equal, revision)
            }
        }
    }

    fn entry(&self, kv: &etcd_client::KeyValue) -> Entry {
        let key = String::from_utf8_lossy(kv.key());
        Entry {
            key: key.strip_prefix(&self.namespace).unwrap_or(&key).to_owned(),
            // A value that is no text is judged, and healed, as a wrong text.
            value: String::from_utf8_lossy(kv.value()).into_owned(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}
