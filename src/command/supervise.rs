//! `pgcm supervise`

use std::{path::PathBuf, sync::Arc};

use prometheus::{Gauge, IntCounterVec, IntGauge};
use slog::Logger;
use tokio::sync::watch;

use super::daemon::{self, Daemon, DaemonError};
use crate::{
    config::Config,
    edge::{
        clock,
        command::Processes,
        pacemaker::{Pacemaker, PacemakerOptions},
        poke,
        postgres::{Postgres, PostgresOptions},
    },
    exit::Exit,
    model::registration::AgentKind,
    telemetry::metrics::Metrics,
    work::{
        api::Parts,
        checks::supervise::SuperviseChecks,
        mover::Mover,
        publish::{Latest, Outcome, PublishOptions, Publisher},
        shutdown::Stop,
        web::{Page, Role},
    },
};

pub(super) async fn run(config: Config, log: Logger) -> Exit {
    daemon::exit(serve(&config, log).await)
}

async fn serve(config: &Config, log: Logger) -> Result<bool, DaemonError> {
    let mut daemon = Daemon::new(config, AgentKind::Supervise, log.clone()).await?;
    let node = daemon.identity.name.clone();
    let pacemaker = Arc::new(Pacemaker::new(Processes, pacemaker_options(config)));
    let postgres = Arc::new(Postgres::new(postgres_options(config)));
    let etcd = Arc::clone(&daemon.etcd);

    let options = PublishOptions {
        node: node.clone(),
        address: daemon.identity.address,
        namespace: config.etcd.namespace.clone(),
        poll_interval: config.pacemaker.poll_interval.get(),
        socket: PathBuf::from(poke::SOCKET),
    };
    let (publisher, latest) = Publisher::new(
        options,
        Arc::clone(&pacemaker),
        Arc::clone(&postgres),
        Arc::clone(&etcd),
        daemon.gate.clone(),
        log.clone(),
    );
    daemon.spawn("publish", publisher.run(daemon.stop.clone()));

    let metrics = Metrics::default();
    let counted = Counted::new(&metrics);
    daemon.spawn("metrics", counted.clone().run(latest.clone(), daemon.stop.clone()));
    let page = Arc::new(SupervisePage { node: node.clone(), latest: latest.clone(), metrics });
    daemon.serve_web(&config.web.supervise_listen, page).await?;

    let pauser = Arc::clone(&daemon.pauser);
    let checks = SuperviseChecks::new(
        node.clone(),
        Arc::clone(&pacemaker),
        Arc::clone(&postgres),
        Arc::clone(&etcd),
        daemon::consoles(config),
    );
    let parts = Parts {
        pauser: Some(Arc::clone(&pauser)),
        follower: None,
        mover: Some(Arc::new(Mover::new(node, pacemaker, postgres, etcd, log))),
        checks: Arc::new(checks),
        view: Some(Arc::new(move || latest.borrow().stored.as_ref().ok()?.view.clone())),
        gate: daemon.gate.clone(),
    };
    daemon.serve_api(config, daemon::listen(&config.api.supervise_listen), parts).await?;
    Ok(daemon.run().await)
}

fn pacemaker_options(config: &Config) -> PacemakerOptions {
    PacemakerOptions {
        resource: config.pacemaker.resource.clone(),
        limit: config.pacemaker.command_timeout.get(),
    }
}

fn postgres_options(config: &Config) -> PostgresOptions {
    let section = &config.postgres;
    PostgresOptions {
        socket_dir: section.socket_dir.clone(),
        port: section.port,
        user: section.user.clone(),
        database: section.database.clone(),
        query_timeout: section.query_timeout.get(),
    }
}

/// Counts what each look led to.
#[derive(Clone)]
struct Counted {
    looks: IntCounterVec,
    published: Gauge,
    quorum: IntGauge,
}

impl Counted {
    fn new(metrics: &Metrics) -> Self {
        Self {
            looks: metrics.counters(
                "pgcm_primary_publish_total",
                "Looks at the cluster, by what came of publishing.",
                "result",
            ),
            published: metrics.timestamp(
                "pgcm_primary_last_published_timestamp_seconds",
                "When this node last wrote, or confirmed, that it is the primary.",
            ),
            quorum: metrics.gauge(
                "pgcm_cluster_quorum",
                "Whether this node's side of the cluster has quorum; 0 also when unknown.",
            ),
        }
    }

    async fn run(self, mut latest: watch::Receiver<Arc<Latest>>, mut stop: Stop) {
        loop {
            tokio::select! {
                changed = latest.changed() => if changed.is_err() { return },
                () = stop.wait() => return,
            }
            let seen = Arc::clone(&latest.borrow_and_update());
            self.looks.with_label_values(&[seen.outcome.name()]).inc();
            self.quorum.set(i64::from(seen.pacemaker.as_ref().is_ok_and(|view| view.quorum)));
            if matches!(seen.outcome, Outcome::Written | Outcome::Unchanged) {
                self.published.set(seconds(clock::unix_ms()));
            }
        }
    }
}

/// Milliseconds as the seconds that metrics count in.
#[expect(clippy::cast_precision_loss, reason = "exact until the year 287396")]
pub(super) fn seconds(unix_ms: u64) -> f64 {
    unix_ms as f64 / 1000.0
}

struct SupervisePage {
    node: String,
    latest: watch::Receiver<Arc<Latest>>,
    metrics: Metrics,
}

impl Page for SupervisePage {
    fn metrics(&self) -> String {
        self.metrics.text()
    }

    fn health(&self) -> Result<(), String> {
        self.latest.borrow().outcome.trouble().map_or(Ok(()), Err)
    }

    fn role(&self) -> Role {
        let latest = self.latest.borrow();
        match &latest.local {
            Ok(_) if latest.is_primary() => Role::Primary,
            Ok(facts) if facts.in_recovery && self.runs_here(&latest) => Role::Standby,
            _ => Role::None,
        }
    }
}

impl SupervisePage {
    fn runs_here(&self, latest: &Latest) -> bool {
        latest
            .pacemaker
            .as_ref()
            .is_ok_and(|view| view.quorum && view.instance(&self.node).is_some())
    }
}
