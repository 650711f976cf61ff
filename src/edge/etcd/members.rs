//! The members of etcd, one client for each, tried in turn: a client that balances over all members keeps
//! picking dead ones (grpc/grpc-rust#2859).

use std::{
    sync::{
        PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use etcd_client::{Client, ConnectOptions};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{EtcdError, EtcdOptions};
use crate::error::chain;

/// A member that did not answer is asked last for so long: a lost machine must not cost each call its limit.
const SUSPECT: Duration = Duration::from_secs(5);

/// Bounds each of two tries to find out whether a member serves.
const PROBE: Duration = Duration::from_secs(2);

pub(super) struct Members {
    options: EtcdOptions,
    members: Vec<Member>,
    /// Index of the member that answered last.
    preferred: AtomicUsize,
}

pub(super) struct Member {
    endpoint: String,
    client: Mutex<Option<Client>>,
    /// When it last left a call or a watch without an answer, if nothing came from it since.
    failed_at: std::sync::Mutex<Option<Instant>>,
}

impl Member {
    fn at(endpoint: &str) -> Self {
        Self {
            endpoint: endpoint.to_owned(),
            client: Mutex::new(None),
            failed_at: std::sync::Mutex::default(),
        }
    }

    fn has_answered(&self) {
        self.note(None);
    }

    /// From now on it is asked last for a while, and over a new connection.
    pub(super) async fn has_failed(&self) {
        self.note(Some(Instant::now()));
        self.disconnect().await;
    }

    /// The next call connects, and authenticates, anew.
    async fn disconnect(&self) {
        *self.client.lock().await = None;
    }

    fn note(&self, failed_at: Option<Instant>) {
        *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner) = failed_at;
    }

    /// Whether it is likely to cost a call its whole limit.
    fn is_suspect(&self) -> bool {
        let failed_at = *self.failed_at.lock().unwrap_or_else(PoisonError::into_inner);
        failed_at.is_some_and(|at| at.elapsed() < SUSPECT)
    }
}

impl Members {
    pub(super) fn of(options: EtcdOptions) -> Self {
        let members = options.endpoints.iter().map(|endpoint| Member::at(endpoint)).collect();
        Self { options, members, preferred: AtomicUsize::new(0) }
    }

    /// Asks one member after the other until one answers.
    pub(super) async fn call<T, F>(
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
    pub(super) async fn call_some<T, F>(
        &self,
        what: &'static str,
        request: impl Fn(Client) -> F,
    ) -> Result<(&Member, T), EtcdError>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let mut tried = Vec::new();
        for index in self.turns() {
            let member = &self.members[index];
            match timeout(self.options.call_timeout, self.ask(member, &request)).await {
                Ok(Ok(value)) => {
                    member.has_answered();
                    self.preferred.store(index, Ordering::Relaxed);
                    return Ok((member, value));
                }
                Ok(Err(source)) if !worth_another_member(&source) => {
                    return Err(EtcdError::Refused { what, source });
                }
                Ok(Err(error)) => tried.push(self.failure(member, &error)),
                Err(_) => tried.push(silence(member, self.options.call_timeout)),
            }
            member.has_failed().await;
        }
        Err(EtcdError::Unreachable { tried })
    }

    pub(super) fn count(&self) -> usize {
        self.members.len()
    }

    /// Why the member `index` does not serve `request`, if it does not, at the second try either.
    pub(super) async fn why_silent<T, F>(
        &self,
        index: usize,
        request: impl Fn(Client) -> F,
    ) -> Option<String>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        let member = self.members.get(index)?;
        let limit = self.options.call_timeout.min(PROBE);
        let mut why = None;
        for _ in 0..2 {
            why = match timeout(limit, self.ask(member, &request)).await {
                Ok(Err(error)) if worth_another_member(&error) => {
                    Some(self.failure(member, &error))
                }
                Ok(_) => return None,
                Err(_) => Some(silence(member, limit)),
            };
            // The connection may be what is broken, and a disk may have stood still for a moment.
            member.disconnect().await;
        }
        why
    }

    async fn ask<T, F>(
        &self,
        member: &Member,
        request: &impl Fn(Client) -> F,
    ) -> Result<T, etcd_client::Error>
    where
        F: Future<Output = Result<T, etcd_client::Error>>,
    {
        match request(self.client(member).await?).await {
            // Nothing was done, so that it can be asked for again.
            Err(error) if wants_a_new_token(&error) => {
                member.disconnect().await;
                request(self.client(member).await?).await
            }
            answer => answer,
        }
    }

    fn failure(&self, member: &Member, error: &etcd_client::Error) -> String {
        let words = format!("{}: {}", member.endpoint, words(error));
        match self.options.tls.as_ref().and_then(|tls| tls.hint(error)) {
            Some(hint) => format!("{words}, {hint}"),
            None => words,
        }
    }

    async fn client(&self, member: &Member) -> Result<Client, etcd_client::Error> {
        let mut slot = member.client.lock().await;
        if let Some(client) = slot.as_ref() {
            return Ok(client.clone());
        }
        let mut anonymous = ConnectOptions::new()
            .with_connect_timeout(self.options.call_timeout)
            .with_keep_alive(Duration::from_secs(2), Duration::from_secs(2))
            .with_require_leader(true);
        if let Some(tls) = &self.options.tls {
            anonymous = anonymous.with_tls(tls.options());
        }
        let options = match &self.options.user {
            Some((name, password)) => anonymous.clone().with_user(name, password),
            None => anonymous.clone(),
        };
        let endpoint = [member.endpoint.as_str()];
        let client = match Client::connect(endpoint, Some(options)).await {
            // Whoever turns users on or off need not do so on all machines at one moment.
            Err(error) if says(&error, NO_USERS) => {
                Client::connect(endpoint, Some(anonymous)).await?
            }
            connected => connected?,
        };
        *slot = Some(client.clone());
        Ok(client)
    }

    /// Indexes of the members in the order in which they are asked.
    fn turns(&self) -> Vec<usize> {
        let first = self.preferred.load(Ordering::Relaxed);
        let count = self.members.len();
        let mut turns: Vec<usize> = (first..first + count).map(|turn| turn % count).collect();
        turns.sort_by_key(|&index| self.members[index].is_suspect());
        turns
    }
}

fn silence(member: &Member, limit: Duration) -> String {
    format!("{}: no answer within {limit:?}", member.endpoint)
}

/// What a member, or the way to it, said, without the layers in between.
fn words(error: &etcd_client::Error) -> String {
    let etcd_client::Error::GRpcStatus(status) = error else { return chain(error).to_string() };
    let mut causes =
        std::iter::successors(std::error::Error::source(status), |cause| cause.source());
    let said = status.message();
    match causes.by_ref().last() {
        Some(cause) if said.is_empty() => cause.to_string(),
        Some(cause) => format!("{said}: {cause}"),
        None if said.is_empty() => status.code().description().to_owned(),
        None => said.to_owned(),
    }
}

const NO_USERS: &str = "etcdserver: authentication is not enabled";

/// Whether etcd did not look at the request, for want of a token that counts.
///
/// One expires, and is lost with the member that gave it. A signed one counts until any user or role
/// changes, and an empty one until users are turned on.
fn wants_a_new_token(error: &etcd_client::Error) -> bool {
    [
        "etcdserver: invalid auth token",
        "etcdserver: revision of auth store is old",
        "etcdserver: user name is empty",
    ]
    .iter()
    .any(|message| says(error, message))
}

fn says(error: &etcd_client::Error, message: &str) -> bool {
    matches!(error, etcd_client::Error::GRpcStatus(status) if status.message() == message)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_member_that_failed_is_asked_last_for_a_while() {
        let members = Members::of(EtcdOptions {
            endpoints: ["a", "b", "c"].map(str::to_owned).to_vec(),
            namespace: String::new(),
            call_timeout: Duration::from_secs(1),
            user: None,
            tls: None,
        });
        members.preferred.store(1, Ordering::Relaxed);
        assert_eq!(members.turns(), [1, 2, 0]);
        members.members[1].has_failed().await;
        assert_eq!(members.turns(), [2, 0, 1]);
        members.members[1].has_answered();
        assert_eq!(members.turns(), [1, 2, 0]);
        members.members[1].note(Instant::now().checked_sub(SUSPECT));
        assert_eq!(members.turns(), [1, 2, 0]);
    }
}
