//! The client of one agent: one method for each call, each with a limit.

use std::{future::Future, net::IpAddr, time::Duration};

use tonic::{
    Code, Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

use super::{BUSY, REASON, STALE_TOKEN, pb};
use crate::model::{cluster::Primary, span::millis, terminated::Terminated};

/// How agents are reached.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// Bounds the establishment of a connection.
    pub connect_limit: Duration,
    /// What changing calls show, when the agents ask for it.
    pub token: Option<String>,
}

/// What an agent did not do, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    #[error("{agent} cannot be reached: {reason}")]
    Unreachable { agent: String, reason: String },
    #[error("{agent} refused to {what}: {message}")]
    Refused { agent: String, what: &'static str, message: String },
    #[error("{agent} refused to {what}: {message}")]
    Stale { agent: String, what: &'static str, message: String },
    #[error("{agent} did not {what} within {limit:?}")]
    TimedOut { agent: String, what: &'static str, limit: Duration },
    #[error("{agent} could not {what}, since it is in use: {message}")]
    Busy { agent: String, what: &'static str, message: String },
    #[error("{agent} does not accept our token: {message}; is api.token-file the same on both?")]
    Unauthenticated { agent: String, message: String },
    #[error("`{authority}` is not an agent's address; give host:port such as pg01:8080")]
    Address { authority: String },
}

/// One agent. Connects when it is first used, and again after a connection broke.
#[derive(Debug, Clone)]
pub struct Peer {
    name: String,
    bearer: Option<MetadataValue<Ascii>>,
    client: pb::agent_client::AgentClient<Channel>,
}

impl Peer {
    /// The agent that people know as `name`, at `authority` (`host:port`). Must be called inside a
    /// runtime.
    pub fn new(name: &str, authority: &str, options: &PeerOptions) -> Result<Self, PeerError> {
        const KEEPALIVE: Duration = Duration::from_secs(2);
        let not_an_address = || PeerError::Address { authority: authority.to_owned() };
        let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
        let endpoint = Endpoint::from_shared(format!("http://{authority}"))
            .ok()
            .filter(|_| port.is_some())
            .ok_or_else(not_an_address)?
            .connect_timeout(options.connect_limit)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(KEEPALIVE))
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let bearer = options.token.as_ref().map(|token| {
            MetadataValue::try_from(format!("Bearer {token}")).map(|mut value| {
                value.set_sensitive(true);
                value
            })
        });
        let bearer = bearer.transpose().map_err(|_| PeerError::Unauthenticated {
            agent: name.to_owned(),
            message: "the token has characters that cannot be sent".to_owned(),
        })?;
        let client = pb::agent_client::AgentClient::new(endpoint.connect_lazy());
        Ok(Self { name: name.to_owned(), bearer, client })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub async fn health(&self, limit: Duration) -> Result<pb::HealthResponse, PeerError> {
        let request = self.request(pb::HealthRequest {});
        let mut client = self.client.clone();
        self.within("tell its health", limit, client.health(request)).await
    }

    pub async fn check(
        &self,
        request: pb::CheckRequest,
        limit: Duration,
    ) -> Result<pb::CheckResponse, PeerError> {
        let request = self.request(request);
        let mut client = self.client.clone();
        self.within("run its checks", limit, client.check(request)).await
    }

    /// Holds clients; returns how many PgBouncers do.
    pub async fn pause(
        &self,
        attempt: pb::Attempt,
        timeout: Duration,
        expiry: Duration,
        limit: Duration,
    ) -> Result<u32, PeerError> {
        let request = self.request(pb::PauseRequest {
            attempt: Some(attempt),
            timeout_ms: millis(timeout),
            expiry_ms: millis(expiry),
        });
        let mut client = self.client.clone();
        Ok(self.within("pause", limit, client.pause(request)).await?.paused)
    }

    pub async fn resume(&self, attempt: pb::Attempt, limit: Duration) -> Result<(), PeerError> {
        let request = self.request(pb::ResumeRequest { attempt: Some(attempt) });
        let mut client = self.client.clone();
        self.within("resume", limit, client.resume(request)).await.map(|_| ())
    }

    /// Returns once the agent's PgBouncers point at `address`, which it awaits for `timeout`.
    pub async fn follow(
        &self,
        attempt: pb::Attempt,
        address: IpAddr,
        timeout: Duration,
        limit: Duration,
    ) -> Result<(), PeerError> {
        let request = self.request(pb::FollowRequest {
            attempt: Some(attempt),
            address: address.to_string(),
            timeout_ms: millis(timeout),
        });
        let mut client = self.client.clone();
        self.within("follow the new primary", limit, client.follow(request)).await.map(|_| ())
    }

    /// Server connections that the agent's PgBouncers have in use.
    pub async fn blockers(&self, limit: Duration) -> Result<Vec<pb::Backend>, PeerError> {
        let request = self.request(pb::BlockersRequest {});
        let mut client = self.client.clone();
        let what = "name the transactions that are open";
        Ok(self.within(what, limit, client.blockers(request)).await?.backends)
    }

    /// Ends those of `backends` that have been in a transaction for `min_age`; returns what they were.
    pub async fn terminate(
        &self,
        attempt: pb::Attempt,
        backends: Vec<pb::Backend>,
        min_age: Duration,
        limit: Duration,
    ) -> Result<Vec<Terminated>, PeerError> {
        // None at all is refused: too easily it is only missing.
        let min_age_ms = millis(min_age).max(1);
        let request =
            self.request(pb::TerminateRequest { attempt: Some(attempt), backends, min_age_ms });
        let mut client = self.client.clone();
        let what = "terminate transactions";
        let answer = self.within(what, limit, client.terminate(request)).await?;
        let ended = answer.terminated.into_iter().map(|ended| {
            let pb::Terminated { pid, user, database, application, state, age_ms, query } = ended;
            Terminated { pid, user, database, application, state, age_ms, query }
        });
        Ok(ended.collect())
    }

    /// Runs a CHECKPOINT; returns how long it took.
    pub async fn prepare(
        &self,
        attempt: pb::Attempt,
        timeout: Duration,
        limit: Duration,
    ) -> Result<Duration, PeerError> {
        let request = self
            .request(pb::PrepareRequest { attempt: Some(attempt), timeout_ms: millis(timeout) });
        let mut client = self.client.clone();
        let answer = self.within("run a checkpoint", limit, client.prepare(request)).await?;
        Ok(Duration::from_millis(answer.checkpoint_ms))
    }

    /// Moves the primary; returns who it is then.
    pub async fn migrate(
        &self,
        request: pb::MigrateRequest,
        limit: Duration,
    ) -> Result<Primary, PeerError> {
        let what = "move the primary";
        let request = self.request(request);
        let mut client = self.client.clone();
        let answer = self.within(what, limit, client.migrate(request)).await?;
        self.primary(what, answer)
    }

    /// Waits for whichever node is primary; returns it.
    pub async fn settle(
        &self,
        attempt: pb::Attempt,
        timeout: Duration,
        limit: Duration,
    ) -> Result<Primary, PeerError> {
        let what = "name the primary";
        let request =
            self.request(pb::SettleRequest { attempt: Some(attempt), timeout_ms: millis(timeout) });
        let mut client = self.client.clone();
        let answer = self.within(what, limit, client.settle(request)).await?;
        self.primary(what, answer)
    }

    /// Removes the move constraint; returns whether there was one.
    pub async fn unmigrate(
        &self,
        attempt: pb::Attempt,
        limit: Duration,
    ) -> Result<bool, PeerError> {
        let request = self.request(pb::UnmigrateRequest { attempt: Some(attempt) });
        let mut client = self.client.clone();
        let what = "remove the move constraint";
        Ok(self.within(what, limit, client.unmigrate(request)).await?.removed)
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }

    async fn within<T>(
        &self,
        what: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, PeerError> {
        match tokio::time::timeout(limit, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(self.error(what, limit, &status)),
            Err(_) => Err(PeerError::TimedOut { agent: self.name.clone(), what, limit }),
        }
    }

    fn error(&self, what: &'static str, limit: Duration, status: &Status) -> PeerError {
        let agent = self.name.clone();
        let message = status.message().to_owned();
        match status.metadata().get(REASON).and_then(|reason| reason.to_str().ok()) {
            Some(STALE_TOKEN) => return PeerError::Stale { agent, what, message },
            Some(BUSY) => return PeerError::Busy { agent, what, message },
            _ => {}
        }
        match status.code() {
            Code::Unavailable | Code::Unknown | Code::Cancelled => {
                PeerError::Unreachable { agent, reason: innermost(status) }
            }
            Code::DeadlineExceeded => PeerError::TimedOut { agent, what, limit },
            Code::Unauthenticated => PeerError::Unauthenticated { agent, message },
            _ => PeerError::Refused { agent, what, message },
        }
    }

    fn primary(
        &self,
        what: &'static str,
        answer: pb::MigrateResponse,
    ) -> Result<Primary, PeerError> {
        let address = answer.address.parse().map_err(|_| PeerError::Refused {
            agent: self.name.clone(),
            what,
            message: format!("it answered with `{}` as the address", answer.address),
        })?;
        Ok(Primary { name: answer.primary, address, timeline: answer.timeline })
    }
}

/// The cause that says most: tonic's own words are just "transport error".
fn innermost(status: &Status) -> String {
    let mut words = status.message().to_owned();
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        words = error.to_string();
        cause = error.source();
    }
    words
}
