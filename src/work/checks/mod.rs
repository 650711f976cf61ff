//! STUB (failover branch): to be replaced whole by the proxy and supervise branches' files.

use std::time::Duration;

use crate::model::{finding::Finding, health::Component};

/// What a failover means to ask for.
#[derive(Debug, Clone)]
pub struct Terms {
    pub pause_timeout: Duration,
    pub pause_expiry: Duration,
    pub target: Option<String>,
}

pub struct SuperviseChecks;

impl SuperviseChecks {
    pub async fn findings(&self, _terms: &Terms) -> Vec<Finding> {
        Vec::new()
    }

    pub async fn health(&self) -> Vec<Component> {
        Vec::new()
    }
}

pub struct ProxyChecks;

impl ProxyChecks {
    pub async fn findings(&self, _terms: &Terms) -> Vec<Finding> {
        Vec::new()
    }

    pub async fn health(&self) -> Vec<Component> {
        Vec::new()
    }
}
