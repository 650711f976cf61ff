//! What supervise and proxy have in common: the API, the registration, HTTP, and an orderly end.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use slog::{Logger, info};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use super::{
    complain,
    parts::{Identity, PartsError},
};
use crate::{
    config::Config,
    edge::{address::AddressError, etcd::Etcd, files::FileError, pgbouncer::Console},
    exit::Exit,
    model::registration::{AgentKind, Registration},
    work::{
        api::{self, Api, ApiError, ApiOptions, Parts},
        checks::namesake::WithNamesake,
        fence::SharedGate,
        follow::Follower,
        join::Joining,
        pauser::{Pauser, PauserOptions},
        register,
        shutdown::{Stop, Tasks},
        web::{self, Page},
    },
};

/// How long a pause may last on after a signal. With what follows it is less than the units' TimeoutStopSec.
const DRAIN: Duration = Duration::from_secs(12);
/// How long running work may take to end after a signal.
const GRACE: Duration = Duration::from_secs(10);

/// Why a daemon cannot begin.
#[derive(Debug, thiserror::Error)]
pub(super) enum DaemonError {
    #[error(transparent)]
    Parts(#[from] PartsError),
    #[error("cannot read a secret")]
    Secret(#[from] FileError),
    #[error("cannot serve the API")]
    Api(#[from] ApiError),
    #[error(
        "cannot serve metrics and health on {address}; is another pgcm running, or the port taken?"
    )]
    Web {
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

impl DaemonError {
    /// What the configuration asks for may be right, and only be not to be had now.
    fn exit(&self) -> Exit {
        let is_outside = match self {
            Self::Parts(PartsError::NoAddress(AddressError::Resolve { .. })) => true,
            Self::Api(ApiError::Listen { source, .. }) | Self::Web { source, .. } => {
                source.kind() == io::ErrorKind::AddrInUse
            }
            _ => false,
        };
        if is_outside { Exit::Unreachable } else { Exit::Usage }
    }
}

/// The frame of a daemon: tasks that all end together.
pub(super) struct Daemon {
    pub(super) identity: Identity,
    pub(super) etcd: Arc<Etcd>,
    /// Of this machine's PgBouncer processes.
    pub(super) pauser: Arc<Pauser>,
    recovery: Recovery,
    pub(super) gate: SharedGate,
    pub(super) stop: Stop,
    pub(super) log: Logger,
    kind: AgentKind,
    token: Option<String>,
    switch: watch::Sender<bool>,
    tasks: Tasks,
}

impl Daemon {
    pub(super) async fn new(
        config: &Config,
        kind: AgentKind,
        log: Logger,
    ) -> Result<Self, DaemonError> {
        let (switch, stop) = Stop::new();
        let gate = SharedGate::default();
        let pauser = pauser(config, &gate, &log);
        let etcd = super::parts::etcd(config);
        let recovery = recover(&pauser, etcd.as_ref().ok(), config.etcd.call_timeout.get());
        let parts = async {
            let identity = super::parts::identity(config).await?;
            Ok::<_, DaemonError>((etcd?, identity, super::parts::token(config)?))
        };
        let (etcd, identity, token) = match parts.await {
            Ok(parts) => parts,
            Err(error) => return Err(recovery.before(error).await),
        };
        info!(log, "starting"; "event" => "daemon.start", "kind" => %kind,
            "host" => &identity.name, "address" => %identity.address,
            "version" => env!("CARGO_PKG_VERSION"));
        Ok(Self {
            identity,
            etcd,
            pauser,
            recovery,
            gate,
            token,
            stop,
            log,
            kind,
            switch,
            tasks: Tasks::default(),
        })
    }

    /// Starts a loop that ends when `stop` says so.
    pub(super) fn spawn(
        &mut self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) {
        self.tasks.spawn(name, task);
    }

    /// Serves the API at `listen`, and registers it.
    pub(super) async fn serve_api(
        &mut self,
        config: &Config,
        listen: SocketAddr,
        mut parts: Parts,
    ) -> Result<(), DaemonError> {
        self.recovery.is_over().await;
        let Identity { name, address } = self.identity.clone();
        let listener = api::bind(listen, self.token.is_some(), &self.log).await?;
        let bound = listener.local_addr().unwrap_or(listen);
        // What listens on loopback only can be reached there only.
        let reached = if bound.ip().is_loopback() { bound.ip() } else { address };
        let registration = Registration {
            host: name.clone(),
            kind: self.kind,
            api: SocketAddr::new(reached, bound.port()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        if let Some((pauser, follower)) = parts.pauser.clone().zip(parts.follower.clone()) {
            self.join(pauser, follower, registration.clone()).await;
        }
        let ttl = config.api.registration_ttl.get();
        let (namesake, seen) = watch::channel(None);
        parts.checks = Arc::new(WithNamesake::new(parts.checks, registration.clone(), seen, ttl));
        let options = ApiOptions { host: name, kind: self.kind, token: self.token.clone() };
        let api = Api::new(options, parts, self.log.clone());
        let (stop, log) = (self.stop.clone(), self.log.clone());
        self.spawn("api", api::run(listener, api, stop, log));
        let (etcd, stop, log) = (Arc::clone(&self.etcd), self.stop.clone(), self.log.clone());
        self.spawn("registration", register::run(etcd, registration, ttl, namesake, stop, log));
        Ok(())
    }

    /// Takes part in the pause of a failover that began without this agent.
    async fn join(
        &mut self,
        pauser: Arc<Pauser>,
        follower: Arc<Follower>,
        registration: Registration,
    ) {
        let (etcd, log, mut stop) = (Arc::clone(&self.etcd), self.log.clone(), self.stop.clone());
        let joining = Joining { etcd, pauser, follower, registration, log };
        let held = joining.begin().await;
        self.spawn("join", async move {
            let watched = async {
                joining.run(held).await;
                std::future::pending::<()>().await;
            };
            tokio::select! {
                () = watched => {}
                () = stop.wait() => {}
            }
        });
    }

    /// Serves metrics, health and roles at `listen`, unless that is empty.
    pub(super) async fn serve_web(
        &mut self,
        listen: &str,
        page: Arc<dyn Page>,
    ) -> Result<(), DaemonError> {
        let Ok(address) = listen.parse::<SocketAddr>() else { return Ok(()) };
        let listener = match TcpListener::bind(address).await {
            Ok(listener) => listener,
            Err(source) => {
                self.recovery.is_over().await;
                return Err(DaemonError::Web { address, source });
            }
        };
        let (stop, log) = (self.stop.clone(), self.log.clone());
        self.spawn("web", web::serve(listener, page, stop, log));
        Ok(())
    }

    /// Runs until a signal, then ends everything; returns whether a signal was the cause.
    ///
    /// A pause that is held then is left to whoever ends it, at most for [`DRAIN`]: let go by this
    /// agent, its clients would run into the middle of a move.
    pub(super) async fn run(self) -> bool {
        let pauser = &self.pauser;
        let flowing = async {
            let _ = tokio::time::timeout(DRAIN, pauser.drain()).await;
            pauser.stop().await;
        };
        let signalled = self.tasks.run(&self.log, self.switch, flowing, GRACE).await;
        // Where that was cut short, or a task has ended.
        pauser.stop().await;
        signalled
    }
}

fn pauser(config: &Config, gate: &SharedGate, log: &Logger) -> Arc<Pauser> {
    let options = PauserOptions {
        consoles: consoles(config),
        resume_limit: config.failover.resume_timeout.get(),
        adopt_ceiling: config.failover.pause_expiry.get(),
    };
    Arc::new(Pauser::new(options, gate.clone(), log.clone()))
}

/// Ends a pause that nobody owns any more. Neither what is published nor what is rendered waits for it, but the daemon
/// does before it takes part in another pause, and before it ends because it cannot begin: clients may be held.
struct Recovery(JoinHandle<()>);

impl Recovery {
    async fn is_over(&mut self) {
        if !self.0.is_finished() {
            let _ = (&mut self.0).await;
        }
    }

    async fn before<E>(mut self, error: E) -> E {
        self.is_over().await;
        error
    }
}

/// Begins it. Without `etcd` nobody can say whose a pause is.
fn recover(pauser: &Arc<Pauser>, etcd: Option<&Arc<Etcd>>, limit: Duration) -> Recovery {
    let (pauser, etcd) = (Arc::clone(pauser), etcd.cloned());
    Recovery(tokio::spawn(async move {
        match etcd {
            Some(etcd) => pauser.recover_from(&etcd, limit).await,
            None => pauser.recover(None).await,
        }
    }))
}

/// One console for each PgBouncer process.
pub(super) fn consoles(config: &Config) -> Vec<Console> {
    let section = &config.pgbouncer;
    let limit = section.query_timeout.get();
    let console = |socket: &std::path::PathBuf| {
        Console::new(socket.clone(), section.admin_user.clone(), limit)
    };
    section.admin_sockets.iter().map(console).collect()
}

/// An address that `check` has accepted.
pub(super) fn listen(address: &str) -> SocketAddr {
    address.parse().unwrap_or_else(|_| SocketAddr::from(([127, 0, 0, 1], 0)))
}

/// How a daemon's end is told: by a signal, by a task that ended, or by an error before it began.
pub(super) fn exit(served: Result<bool, DaemonError>) -> Exit {
    match served {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::NeedsHands,
        Err(error) => complain(&error, error.exit()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_somebody_has_to_write_otherwise_is_a_wrong_configuration() {
        let host = || "pg01".to_owned();
        let no_address = |error| DaemonError::Parts(PartsError::NoAddress(error));
        let listen = |kind: io::ErrorKind| {
            let address = SocketAddr::from(([127, 0, 0, 1], 1));
            let api = DaemonError::Api(ApiError::Listen { address, source: kind.into() });
            [api, DaemonError::Web { address, source: kind.into() }]
        };
        let resolve = AddressError::Resolve { host: host(), source: io::ErrorKind::Other.into() };
        assert_eq!(no_address(resolve).exit(), Exit::Unreachable);
        let several = AddressError::NotOne { host: host(), found: "10.0.0.1, 10.0.0.2".to_owned() };
        assert_eq!(no_address(several).exit(), Exit::Usage);
        for (kind, expected) in [
            (io::ErrorKind::AddrInUse, Exit::Unreachable),
            (io::ErrorKind::PermissionDenied, Exit::Usage),
        ] {
            assert_eq!(listen(kind).map(|error| error.exit()), [expected; 2]);
        }
    }
}
