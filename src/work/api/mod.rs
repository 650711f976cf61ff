//! The gRPC API that supervise and proxy serve: `pgcm.v1.Agent`, health and reflection.
//!
//! Whoever asks for a change shows the shared token, names its attempt and brings a fencing token;
//! what is asked must make sense before anything is touched.

mod answer;
mod argument;
mod auth;
mod service;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use slog::{Logger, info, warn};
use tokio::{net::TcpListener, sync::Semaphore};
use tonic::transport::{Server, server::TcpIncoming};

pub use auth::Auth;

use super::{
    checks::{Terms, proxy::ProxyChecks, supervise::SuperviseChecks},
    fence::SharedGate,
    follow::Follower,
    mover::Mover,
    pauser::Pauser,
    shutdown::Stop,
};
use crate::{
    edge::peer::pb,
    error::chain,
    model::{cluster::ClusterView, finding::Finding, health::Health, registration::AgentKind},
};

/// No pause, and no wait that a caller asks for, may be longer.
pub const CEILING: Duration = Duration::from_secs(600);

/// Calls that are worked on at the same time; changing ones are counted apart, so that no flood of
/// questions keeps a resume out.
const CONCURRENT_CALLS: usize = 64;

/// Who this agent is.
#[derive(Debug, Clone)]
pub struct ApiOptions {
    pub host: String,
    pub kind: AgentKind,
    /// What changing calls must show. None: they need nothing, and the API is on loopback only.
    pub token: Option<String>,
}

/// The checks of either daemon; bounded, and never an error: no answer is itself a finding.
#[tonic::async_trait]
pub trait Checks: Send + Sync {
    async fn findings(&self, terms: &Terms) -> Vec<Finding>;
    /// Logical failover slots that subscribers find here after a move.
    async fn failover_slots(&self) -> Vec<String>;
    async fn health(&self) -> Health;
}

#[tonic::async_trait]
impl Checks for SuperviseChecks {
    async fn findings(&self, terms: &Terms) -> Vec<Finding> {
        SuperviseChecks::findings(self, terms).await
    }

    async fn failover_slots(&self) -> Vec<String> {
        SuperviseChecks::failover_slots(self).await
    }

    async fn health(&self) -> Health {
        SuperviseChecks::health(self).await
    }
}

#[tonic::async_trait]
impl Checks for ProxyChecks {
    async fn findings(&self, terms: &Terms) -> Vec<Finding> {
        ProxyChecks::findings(self, terms).await
    }

    async fn failover_slots(&self) -> Vec<String> {
        Vec::new()
    }

    async fn health(&self) -> Health {
        Health { components: ProxyChecks::health(self).await, ..Health::default() }
    }
}

/// Gives the latest view of the cluster, when there is one.
pub type LatestView = Arc<dyn Fn() -> Option<ClusterView> + Send + Sync>;

/// What this agent can be asked for. A call without its part is refused with a sentence.
#[derive(Clone)]
pub struct Parts {
    pub pauser: Option<Arc<Pauser>>,
    pub follower: Option<Arc<Follower>>,
    pub mover: Option<Arc<Mover>>,
    pub checks: Arc<dyn Checks>,
    pub view: Option<LatestView>,
    /// Shared with whatever else learns fencing tokens.
    pub gate: SharedGate,
}

/// The implementation of `pgcm.v1.Agent`.
#[derive(Clone)]
pub struct Api {
    options: Arc<ApiOptions>,
    auth: Arc<Auth>,
    parts: Parts,
    questions: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    log: Logger,
}

impl Api {
    pub fn new(options: ApiOptions, parts: Parts, log: Logger) -> Self {
        Self {
            auth: Arc::new(Auth::new(options.token.as_deref())),
            options: Arc::new(options),
            parts,
            questions: Arc::new(Semaphore::new(CONCURRENT_CALLS)),
            changes: Arc::new(Semaphore::new(CONCURRENT_CALLS)),
            log,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("cannot listen on {address}; is another pgcm running, or the port taken?")]
    Listen {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
    #[error("the gRPC server ended")]
    Serve(#[source] tonic::transport::Error),
    #[error("cannot describe the API for reflection")]
    Reflection(#[source] tonic_reflection::server::Error),
}

/// Opens the socket of the API: at `address`, or, when there is no token, on loopback only.
pub async fn bind(
    address: SocketAddr,
    has_token: bool,
    log: &Logger,
) -> Result<TcpListener, ApiError> {
    let address = if has_token || address.ip().is_loopback() { address } else { loopback(address) };
    if !has_token {
        warn!(log, "no API token is configured, so the API listens on loopback only";
            "event" => "api.token.missing", "address" => %address,
            "remedy" => "set api.token-file");
    }
    TcpListener::bind(address).await.map_err(|source| ApiError::Listen { address, source })
}

fn loopback(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
    };
    SocketAddr::new(ip, address.port())
}

/// Serves `api` on `listener` until `stop`, then lets running calls end for a short while.
///
/// # Errors
/// [`ApiError`] when serving cannot begin or ends by itself.
pub async fn serve(
    listener: TcpListener,
    api: Api,
    mut stop: Stop,
    log: Logger,
) -> Result<(), ApiError> {
    const KEEPALIVE: Duration = Duration::from_secs(10);
    const DRAIN: Duration = Duration::from_secs(2);
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(pb::DESCRIPTOR)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(ApiError::Reflection)?;
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<pb::agent_server::AgentServer<Api>>().await;
    info!(log, "serving the API"; "event" => "api.serve.begin",
        "address" => listener.local_addr().map_or_else(|_| "?".to_owned(), |a| a.to_string()));
    let serving = Server::builder()
        // Each call has its own limit; this one is for whatever that forgot.
        .timeout(CEILING + Duration::from_secs(60))
        .concurrency_limit_per_connection(CONCURRENT_CALLS)
        .max_concurrent_streams(u32::try_from(CONCURRENT_CALLS).ok())
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(health_service)
        .add_service(reflection)
        .add_service(pb::agent_server::AgentServer::new(api))
        .serve_with_incoming_shutdown(
            TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEPALIVE)),
            {
                let mut stop = stop.clone();
                async move { stop.wait().await }
            },
        );
    tokio::select! {
        served = serving => served.map_err(ApiError::Serve),
        () = async { stop.wait().await; tokio::time::sleep(DRAIN).await } => Ok(()),
    }
}

/// [`serve`] as a task of a daemon, which logs how it ended.
pub async fn run(listener: TcpListener, api: Api, stop: Stop, log: Logger) {
    if let Err(error) = serve(listener, api, stop, log.clone()).await {
        slog::error!(log, "the API is not served any more";
            "event" => "api.serve.fail", "error" => %chain(&error));
    }
}
