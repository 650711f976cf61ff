//! What `pgcm proxy` finds in the way of a planned failover, and how it is.

use std::path::PathBuf;

use tokio::sync::watch;

use super::{Terms, pgbouncer};
use crate::{
    edge::pgbouncer::Console,
    model::{
        finding::Finding,
        health::{Component, Verdict},
    },
    work::{pauser::PauseStatus, proxy::ProxyState},
};

/// Looks at the PgBouncers of this machine and at the render loop. Cheap to clone.
#[derive(Clone)]
pub struct ProxyChecks {
    consoles: Vec<Console>,
    /// What PgBouncer is configured with, as rendered.
    file: PathBuf,
    proxy: watch::Receiver<ProxyState>,
    pauser: watch::Receiver<PauseStatus>,
}

impl ProxyChecks {
    pub fn new(
        consoles: Vec<Console>,
        file: PathBuf,
        proxy: watch::Receiver<ProxyState>,
        pauser: watch::Receiver<PauseStatus>,
    ) -> Self {
        Self { consoles, file, proxy, pauser }
    }

    /// What stands in the way; empty when nothing does. Bounded by the consoles' own limits.
    pub async fn findings(&self, terms: &Terms) -> Vec<Finding> {
        let ours = self.pauser.borrow().paused;
        let mut findings = pgbouncer::findings(&self.consoles, terms, ours).await;
        findings.extend(pgbouncer::user_limits(&self.file, terms).await);
        findings.extend(following(&self.proxy.borrow()));
        findings
    }

    /// One verdict for PgBouncer, one for etcd.
    pub async fn health(&self) -> Vec<Component> {
        let mut pgbouncer = pgbouncer::health(&self.consoles).await;
        let state = self.proxy.borrow().clone();
        let trouble = [state.pgbouncer, state.render].into_iter().flatten().next();
        if let (Verdict::Healthy, Some(trouble)) = (pgbouncer.verdict, trouble) {
            let verdict = if state.proven { Verdict::Degraded } else { Verdict::Failed };
            pgbouncer = Component::new("pgbouncer", verdict, trouble);
        }
        let etcd = match (state.etcd, state.value) {
            (Some(trouble), _) => Component::new(
                "etcd",
                Verdict::Failed,
                format!("{trouble}; the last configuration stays in use"),
            ),
            (None, Some(trouble)) => Component::new("etcd", Verdict::Degraded, trouble),
            (None, None) => Component::new("etcd", Verdict::Healthy, "answers"),
        };
        vec![pgbouncer, etcd]
    }
}

/// Whether PgBouncer was seen to follow the primary that etcd names.
fn following(state: &ProxyState) -> Option<Finding> {
    let trouble = state.trouble();
    if state.proven && trouble.is_none() {
        return None;
    }
    let reason = trouble.unwrap_or_else(|| "nothing has been proven yet".to_owned());
    Some(Finding::refuse(
        "pgbouncer-follows",
        format!(
            "PgBouncer is not known to follow the primary: {reason}; until that is mended its clients \
             could be left behind, see the log of `pgcm proxy` there"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_proven_proxy_without_trouble_may_be_paused() {
        let good = ProxyState { proven: true, ready: true, ..ProxyState::default() };
        assert_eq!(following(&good), None);
        assert!(following(&ProxyState::default()).is_some());
        let bad = ProxyState { etcd: Some("no etcd member answered".into()), ..good };
        let finding = following(&bad).expect("a finding");
        assert!(finding.message.contains("no etcd member answered"));
    }
}
