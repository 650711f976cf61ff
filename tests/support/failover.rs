//! A planned failover of the cluster that is kept in memory.

use std::{sync::Arc, time::Duration};

use pgcm::{
    edge::etcd::Etcd,
    model::{attempt::LOCK, finding::Severity},
    telemetry::log::discard,
    work::{
        failover::{self, FailoverOptions, check::Found, progress::Silent, report::Report},
        shutdown::Stop,
    },
};

use super::{
    etcd::{EtcdServer, start_etcd},
    fake_cluster::FakeCluster,
};

/// Of the pauses that `options` asks for.
pub const EXPIRY: Duration = Duration::from_secs(4);
pub const SOON: Duration = Duration::from_secs(10);

/// Short limits, so that a fault shows soon.
pub fn options(holder: &str) -> FailoverOptions {
    FailoverOptions {
        holder: holder.to_owned(),
        endpoints: Vec::new(),
        target: None,
        dry_run: false,
        overrides: Vec::new(),
        expected_agents: Vec::new(),
        attempts: 1,
        attempt_backoff: Duration::from_millis(100),
        terminate_after: None,
        health_check_timeout: Duration::from_secs(2),
        lock_timeout: Duration::ZERO,
        lock_lease: Duration::from_secs(3),
        prepare_timeout: Duration::from_secs(1),
        pause_timeout: Duration::from_millis(800),
        pause_expiry: EXPIRY,
        resume_timeout: Duration::from_secs(1),
        pacemaker_timeout: Duration::from_millis(1500),
        verify_timeout: Duration::from_secs(3),
        watch_interval: Duration::from_millis(20),
        constraint_lifetime: Duration::from_secs(60),
    }
}

/// A failover to its end.
pub async fn run(etcd: &Arc<Etcd>, options: FailoverOptions) -> Report {
    let (_switch, stop) = Stop::new();
    run_until(etcd, options, stop).await
}

/// A failover that ends when `stop` is set.
pub async fn run_until(etcd: &Arc<Etcd>, options: FailoverOptions, stop: Stop) -> Report {
    failover::run(options, etcd.clone(), None, Arc::new(Silent), stop, discard()).await
}

/// A cluster of agents in memory, beside a real etcd.
pub async fn start() -> (EtcdServer, Arc<Etcd>, Arc<FakeCluster>) {
    let process = start_etcd().await;
    let etcd = process.client();
    let cluster = FakeCluster::start(etcd.clone()).await;
    (process, etcd, cluster)
}

pub async fn is_locked(etcd: &Etcd) -> bool {
    etcd.get(LOCK).await.expect("etcd answers").is_some()
}

/// The words of the finding that `check` made.
pub fn told(report: &Report, check: &str, severity: Severity) -> String {
    let of = |found: &&Found| {
        (found.finding.check.as_str(), found.finding.severity) == (check, severity)
    };
    let found = report.findings.iter().find(of);
    found.unwrap_or_else(|| panic!("{check} in {report}")).finding.message.clone()
}
