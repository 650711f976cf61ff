//! `pgcm proxy`

use std::sync::Arc;

use prometheus::{Gauge, IntCounter, IntGauge};
use slog::Logger;
use tokio::sync::watch;

use super::{
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
    daemon::exit(serve(&config, log).await)
}

async fn serve(config: &Config, log: Logger) -> Result<bool, DaemonError> {
    let mut daemon = Daemon::new(config, AgentKind::Proxy, log.clone()).await?;
    let consoles = daemon::consoles(config);
    let options = ProxyOptions {
        templates: templates(config),
        consoles: consoles.clone(),
        poll_interval: config.proxy.poll_interval.get(),
    };
    let (etcd, gate) = (Arc::clone(&daemon.etcd), daemon.gate.clone());
    let proxy = Proxy::new(options, etcd, gate, log);
    let (state, follower) = (proxy.state(), Arc::new(proxy.follower()));
    daemon.spawn("render", proxy.run(daemon.stop.clone()));

    let pauser = Arc::clone(&daemon.pauser);
    let page = Arc::new(ProxyPage::new(state.clone(), pauser.status()));
    daemon.serve_web(&config.web.proxy_listen, page).await?;
    // `check` has refused a configuration without templates.
    let file = templates(config).into_iter().next().map(|first| first.target).unwrap_or_default();
    let checks = ProxyChecks::new(consoles, file, state, pauser.status());
    let parts = Parts {
        pauser: Some(Arc::clone(&pauser)),
        follower: Some(follower),
        mover: None,
        checks: Arc::new(checks),
        view: None,
        gate: daemon.gate.clone(),
    };
    daemon.serve_api(config, daemon::listen(&config.api.proxy_listen), parts).await?;
    Ok(daemon.run().await)
}

fn templates(config: &Config) -> Vec<Template> {
    let template = |file: &crate::config::TemplateFile| Template {
        source: file.source.clone(),
        target: file.target.clone(),
    };
    config.proxy.templates.iter().map(template).collect()
}

/// Brings a counter up to what was counted elsewhere.
fn raise(counter: &IntCounter, counted: u64) {
    counter.inc_by(counted.saturating_sub(counter.get()));
}

struct ProxyPage {
    state: watch::Receiver<ProxyState>,
    pause: watch::Receiver<PauseStatus>,
    metrics: Metrics,
    paused: IntGauge,
    following: IntGauge,
    writes: IntCounter,
    reloads: IntCounter,
    pauses: IntCounter,
    failures: IntCounter,
    expiries: IntCounter,
    proven: Gauge,
    read: Gauge,
    last_pause: Gauge,
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
                .counter("pgcm_proxy_writes_total", "Times that rendered files changed."),
            reloads: metrics.counter("pgcm_pgbouncer_reloads_total", "RELOADs sent to PgBouncer."),
            pauses: metrics.counter("pgcm_pgbouncer_pauses_total", "Pauses that were proven."),
            failures: metrics.counter(
                "pgcm_pgbouncer_pause_failures_total",
                "Pauses that failed and were undone.",
            ),
            expiries: metrics.counter(
                "pgcm_pgbouncer_pause_expiries_total",
                "Pauses that nobody ended but their expiry.",
            ),
            proven: metrics.timestamp(
                "pgcm_pgbouncer_last_proven_timestamp_seconds",
                "When PgBouncer was last proven to follow the primary.",
            ),
            read: metrics
                .timestamp("pgcm_etcd_last_read_timestamp_seconds", "When etcd last answered."),
            last_pause: metrics.seconds(
                "pgcm_pgbouncer_pause_last_seconds",
                "How long clients were held by the last pause that is over.",
            ),
            metrics,
        }
    }
}

impl Page for ProxyPage {
    fn metrics(&self) -> String {
        let (state, pause) = (self.state.borrow().clone(), self.pause.borrow().clone());
        self.paused.set(i64::from(pause.paused));
        self.following.set(i64::from(state.proven));
        raise(&self.writes, state.writes);
        raise(&self.reloads, state.reloads);
        raise(&self.pauses, pause.pauses);
        raise(&self.failures, pause.failures);
        raise(&self.expiries, pause.expiries);
        self.proven.set(seconds(state.proven_unix_ms));
        self.read.set(seconds(state.read_unix_ms));
        self.last_pause.set(pause.last.unwrap_or_default().as_secs_f64());
        self.metrics.text()
    }

    fn health(&self) -> Result<(), String> {
        let state = self.state.borrow();
        match state.trouble() {
            Some(trouble) => Err(trouble),
            None if state.ready => Ok(()),
            None => Err("nothing has been rendered yet".to_owned()),
        }
    }

    fn role(&self) -> Role {
        Role::None
    }
}
