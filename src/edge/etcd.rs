//! etcd: reads, compare-and-swap, leases and wake-ups, all below one namespace.
//!
//! There is one client for each member, tried in turn: a client that balances over all members keeps
//! picking dead ones (grpc/grpc-rust#2859). Every call has a limit, and asks for a member that
//! sees a leader, so that a partitioned one never answers from the past.

use std::{
    convert::Infallible,
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{
    Client, Compare, CompareOp, ConnectOptions, GetOptions, PutOptions, SortOrder, SortTarget, Txn,
    TxnOp, TxnOpResponse, WatchOptions,
};
use slog::{Logger, debug};
use tokio::{
    sync::{Mutex, Notify},
    time::{Instant, timeout},
};

use crate::error::chain;

/// A member that did not answer is asked last for so long: a lost machine must not cost each call its limit.
const SUSPECT: Duration = Duration::from_secs(5);

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
    options: EtcdOptions,
    members: Vec<Member>,
    /// Index of the member that answered last.
    preferred: AtomicUsize,
}

struct Member {
    endpoint: String,
    client: Mutex<Option<Client>>,
    /// When it last left a call or a watch without an answer, if nothing came from it since.
    failed_at: std::sync::Mutex<Option<Instant>>,
}

impl Member {
    fn note(&self, failed_at: Option<Instant>) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = failed_at;
    }

    /// Whether it is likely to cost a call its whole limit.
    fn is_suspect(&self) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|at| at.elapsed() < SUSPECT)
    }
}

impl Etcd {
    pub fn new(options: EtcdOptions) -> Self {
        let members = options
            .endpoints
            .iter()
            .map(|endpoint| Member {
                endpoint: endpoint.clone(),
                client: Mutex::new(None),
                failed_at: std::sync::Mutex::default(),
            })
            .collect();
        Self { options, members, preferred: AtomicUsize::new(0) }
    }

    /// The value of one key, read through consensus.
    pub async fn get(&self, key: &str) -> Result<Option<Entry>, EtcdError> {
        let full = self.full(key);
        let response = self
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
            self.call("grant a lease", |mut client| async move {
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
            .call_some("watch keys", |mut client| {
                let full = full.clone();
                async move { client.watch(full, Some(WatchOptions::new().with_prefix())).await }
            })
            .await?;
        let ended = loop {
            match stream.message().await {
                Ok(Some(message)) if message.canceled() => break Ok(()),
                Ok(Some(_)) => wake.notify_one(),
                Ok(None) => break Ok(()),
                Err(source) => break Err(EtcdError::Refused { what: "go on watching", source }),
            }
        };
        // The member may be the one in trouble.
        member.note(Some(Instant::now()));
        ended
    }

    /// Asks one member after the other until one answers.
    async fn call<T, F>(
        &self,
        what: &'static str,
        request: impl Fn(Client) -> F,
    ) -> Result<T, EtcdError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        self.call_some(what, request).await.map(|(_, value)| value)
    }

    /// The same, and says who answered. Whoever failed just now is asked last.
    async fn call_some<T, F>(
        &self,
        what: &'static str,
        request: impl Fn(Client) -> F,
    ) -> Result<(&Member, T), EtcdError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.members.len();
        let mut turns: Vec<usize> = (first..first + count).map(|turn| turn % count).collect();
        turns.sort_by_key(|&index| self.members[index].is_suspect());
        let mut tried = Vec::new();
        for index in turns {
            let member = &self.members[index];
            let attempt = async { request(self.client(member).await?).await };
            match timeout(self.options.call_timeout, attempt).await {
                Ok(Ok(value)) => {
                    member.note(None);
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((member, value));
                }
                Ok(Err(source)) if !worth_another_member(&source) => {
                    return Err(EtcdError::Refused { what, source });
                }
                Ok(Err(error)) => tried.push(format!("{}: {}", member.endpoint, chain(&error))),
                Err(_) => tried.push(format!(
                    "{}: no answer within {:?}",
                    member.endpoint, self.options.call_timeout
                )),
            }
            member.note(Some(Instant::now()));
            // A connection that failed is not used again.
            *member.client.lock().await = None;
        }
        Err(EtcdError::Unreachable { tried })
    }

    async fn client(&self, member: &Member) -> Result<Client, etcd_client::Error> {
        let mut slot = member.client.lock().await;
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let limit = self.options.call_timeout;
        let mut options = ConnectOptions::new()
            .with_connect_timeout(limit)
            .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2))
            .with_require_leader(true);
        if let Some((name, password)) = &self.options.user {
            options = options.with_user(name, password).with_auto_token_refresh(true);
        }
        let client = Client::connect([member.endpoint.as_str()], Some(options)).await?;
        *slot = Some(client.clone());
        Ok(client)
    }

    fn full(&self, key: &str) -> String {
        format!("{}{key}", self.options.namespace)
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
            key: key.strip_prefix(&self.options.namespace).unwrap_or(&key).to_owned(),
            // A value that is no text is judged, and healed, as a wrong text.
            value: String::from_utf8_lossy(kv.value()).into_owned(),
            create_revision: kv.create_revision(),
            mod_revision: kv.mod_revision(),
            lease: kv.lease(),
        }
    }
}

/// Whether the trouble lies with the member rather than with the request.
fn worth_another_member(error: &etcd_client::Error) -> bool {
    use tonic::Code;
    match error {
        etcd_client::Error::GRpcStatus(status) => matches!(
            status.code(),
            Code::Unavailable
                | Code::DeadlineExceeded
                | Code::Unknown
                | Code::Cancelled
                | Code::Internal
                | Code::Unauthenticated
                | Code::ResourceExhausted
        ),
        etcd_client::Error::InvalidArgs(_) | etcd_client::Error::InvalidUri(_) => false,
        _ => true,
    }
}
