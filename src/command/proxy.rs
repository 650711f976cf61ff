//! `pgcm proxy`

use std::sync::Arc;

use prometheus::{Gauge, IntGauge};
use slog::{Logger, info};
use tokio::sync::watch;

use super::{
    complain,
    daemon::{self, Daemon, DaemonError},
    supervise::seconds,
};
use crate::{
    config::Config,
    exit::Exit,
    model::registration::AgentKind,
    telemetry::metrics::Metrics,
    work::{
        api::Parts,
        checks::proxy::ProxyChecks,
        pauser::PauseStatus,
        proxy::{Proxy, ProxyOptions, ProxyState},
        render::Template,
        web::{Page, Role},
    },
};

pub(super) async fn run(config: Config, log: Logger) -> Exit {
    match serve(&config, log).await {
        Ok(true) => Exit::Done,
        Ok(false) => Exit::NeedsHands,
        Err(error) => complain(&error, Exit::Usage),
    }
}

async fn serve(config: &Config, log: Logger) -> Result<bool, DaemonError> {
    let mut daemon = Daemon::new(config, AgentKind::Proxy, log.clone()).await?;
    info!(log, "keeping PgBouncer pointed at the primary"; "event" => "daemon.start",
        "host" => &daemon.identity.name, "version" => env!("CARGO_PKG_VERSION"));
    let consoles = daemon::consoles(config);
    let options = ProxyOptions {
        templates: templates(config),
        consoles: consoles.clone(),
        poll_interval: config.proxy.poll_interval.get(),
    };
    let (etcd, gate) = (Arc::clone(&daemon.etcd), Arc::clone(&daemon.gate));
    let proxy = Proxy::new(options, etcd, gate, log);
    let (state, follower) = (proxy.state(), Arc::new(proxy.follower()));
    daemon.spawn("render", proxy.run(daemon.stop.clone()));

    let pauser = daemon.pauser(config).await;
    let page = Arc::new(ProxyPage::new(state.clone(), pauser.status()));
    daemon.serve_web(&config.web.proxy_listen, page).await?;
    let checks = ProxyChecks::new(consoles, state, pauser.status());
    let parts = Parts {
        pauser: Some(Arc::clone(&pauser)),
        follower: Some(follower),
        mover: None,
        checks: Arc::new(checks),
        view: None,
        gate: Arc::clone(&daemon.gate),
    };
    daemon.serve_api(config, daemon::listen(&config.api.proxy_listen), parts).await?;
    let signalled = daemon.run().await;
    pauser.stop().await;
    Ok(signalled)
}

fn templates(config: &Config) -> Vec<Template> {
    let template = |file: &crate::config::TemplateFile| Template {
        source: file.source.clone(),
        target: file.target.clone(),
    };
    config.proxy.templates.iter().map(template).collect()
}

struct ProxyPage {
    state: watch::Receiver<ProxyState>,
    pause: watch::Receiver<PauseStatus>,
    metrics: Metrics,
    paused: IntGauge,
    following: IntGauge,
    writes: IntGauge,
    reloads: IntGauge,
    pauses: IntGauge,
    expiries: IntGauge,
    proven: Gauge,
}

impl ProxyPage {
    fn new(state: watch::Receiver<ProxyState>, pause: watch::Receiver<PauseStatus>) -> Self {
        let metrics = Metrics::default();
        Self {
            state,
            pause,
            paused: metrics.gauge("pgcm_pgbouncer_paused", "Whether clients are held now."),
            following: metrics
                .gauge("pgcm_pgbouncer_following", "Whether PgBouncer was last seen to follow."),
            writes: metrics
                .gauge("pgcm_proxy_writes", "Times that rendered files changed since the start."),
            reloads: metrics.gauge("pgcm_proxy_reloads", "RELOADs since the start."),
            pauses: metrics.gauge("pgcm_pgbouncer_pauses", "Proven pauses since the start."),
            expiries: metrics.gauge(
                "pgcm_pgbouncer_pause_expiries",
                "Pauses since the start that nobody ended but their expiry.",
            ),
            proven: metrics.timestamp(
                "pgcm_pgbouncer_last_proven_timestamp_seconds",
                "When PgBouncer was last proven to follow the primary.",
            ),
            metrics,
        }
    }
}

impl Page for ProxyPage {
    fn metrics(&self) -> String {
        let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let (state, pause) = (self.state.borrow().clone(), self.pause.borrow().clone());
        self.paused.set(i64::from(pause.paused));
        self.following.set(i64::from(state.proven));
        self.writes.set(count(state.writes));
        self.reloads.set(count(state.reloads));
        self.pauses.set(count(pause.pauses));
        self.expiries.set(count(pause.expiries));
        self.proven.set(seconds(state.proven_unix_ms));
        self.metrics.text()
    }

    fn ready(&self) -> Result<(), String> {
        let state = self.state.borrow();
        if state.ready {
            return Ok(());
        }
        let troubles = [&state.etcd, &state.value, &state.render, &state.pgbouncer];
        let trouble = troubles.into_iter().flatten().next();
        Err(trouble.cloned().unwrap_or_else(|| "nothing has been rendered yet".to_owned()))
    }

    fn role(&self) -> Role {
        Role::None
    }
}
