//! Whether the expiry of a pause let clients go before there was a new primary to go to: then they may see
//! errors, and only then.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgcm::{edge::etcd::Etcd, model::cluster::ClusterView};
use tokio::task::JoinHandle;

use crate::{
    cell::{EXPIRY, SLACK},
    coordinator::Coordinator,
};

const LOOK: Duration = Duration::from_millis(20);
/// What a proxy on a busy machine takes from the publication until its PgBouncer follows.
const FOLLOWS: Duration = Duration::from_millis(300);

/// Watches for another primary than the one before to be published.
pub(crate) struct Publication {
    at: Arc<Mutex<Option<Instant>>>,
    watch: JoinHandle<()>,
}

impl Publication {
    pub(crate) fn of_another_than(before: &'static str, etcd: Arc<Etcd>) -> Self {
        let at = Arc::<Mutex<Option<Instant>>>::default();
        let seen = at.clone();
        let watch = tokio::spawn(async move {
            while published(&etcd).await.is_none_or(|name| name == before) {
                tokio::time::sleep(LOOK).await;
            }
            *seen.lock().unwrap() = Some(Instant::now());
        });
        Self { at, watch }
    }

    /// When clients of that attempt may have seen errors: from the expiry of its pause until what was
    /// published too late for that has been followed.
    pub(crate) fn too_late_for(&self, coordinator: &Coordinator) -> Option<(Instant, Instant)> {
        let published = (*self.at.lock().unwrap())?;
        let expires = coordinator.began("pause")? + EXPIRY;
        let is_late = published + FOLLOWS > expires;
        is_late.then_some((expires, published + SLACK))
    }
}

impl Drop for Publication {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

/// Name of the published primary.
async fn published(etcd: &Etcd) -> Option<String> {
    let entry = etcd.get("/cluster").await.ok()??;
    Some(serde_json::from_str::<ClusterView>(&entry.value).ok()?.primary.name)
}
