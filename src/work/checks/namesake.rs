//! Whether another agent calls itself as this one: only one of the two would be asked to pause.

use std::{sync::Arc, time::Duration};

use tokio::sync::watch;

use super::Terms;
use crate::{
    model::{
        finding::Finding,
        health::{Component, Health, Verdict},
        registration::Registration,
    },
    work::{api::Checks, register::Namesake},
};

/// The checks of an agent, and this one.
pub struct WithNamesake {
    checks: Arc<dyn Checks>,
    own: Registration,
    namesake: watch::Receiver<Namesake>,
    /// A namesake that was not seen for so long is gone.
    ttl: Duration,
}

impl WithNamesake {
    /// `ttl`: of the registrations.
    pub fn new(
        checks: Arc<dyn Checks>,
        own: Registration,
        namesake: watch::Receiver<Namesake>,
        ttl: Duration,
    ) -> Self {
        Self { checks, own, namesake, ttl }
    }

    fn words(&self) -> Option<String> {
        let (other, _) =
            self.namesake.borrow().filter(|(_, seen_at)| seen_at.elapsed() < self.ttl)?;
        let Registration { host, kind, api, .. } = &self.own;
        Some(format!(
            "two machines are called {host}: `pgcm {kind}` runs at {api} and at {other}, and only one of them would be \
             asked; give each a `name` of its own in [node] and restart it"
        ))
    }
}

#[tonic::async_trait]
impl Checks for WithNamesake {
    async fn findings(&self, terms: &Terms) -> Vec<Finding> {
        let mut findings = self.checks.findings(terms).await;
        findings.extend(self.words().map(|words| Finding::refuse("agent-name", words)));
        findings
    }

    async fn failover_slots(&self) -> Vec<String> {
        self.checks.failover_slots().await
    }

    async fn health(&self) -> Health {
        let mut health = self.checks.health().await;
        let component = |words| Component::new("name", Verdict::Degraded, words);
        health.components.extend(self.words().map(component));
        health
    }
}
