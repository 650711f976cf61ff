//! Answers once PgBouncer provably points at an address.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::sync::{Notify, watch};

use super::{consoles, proxy::ProxyState};
use crate::{
    edge::pgbouncer::Console,
    error::chain,
    model::pgbouncer_ini::{Agreement, compare},
};

/// How often etcd and PgBouncer are looked at again while somebody waits.
const LOOK: Duration = Duration::from_millis(25);

#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("PgBouncer does not follow {address} after {limit:?}: {seen}")]
    Late { address: IpAddr, limit: Duration, seen: String },
    #[error("pgcm proxy is stopping")]
    Stopping,
}

/// Asks the render loop to hurry, and PgBouncer itself whether it follows. Cheap to clone.
#[derive(Clone)]
pub struct Follower {
    consoles: Vec<Console>,
    state: watch::Receiver<ProxyState>,
    wake: Arc<Notify>,
}

impl Follower {
    pub fn new(
        consoles: Vec<Console>,
        state: watch::Receiver<ProxyState>,
        wake: Arc<Notify>,
    ) -> Self {
        Self { consoles, state, wake }
    }

    /// Returns once the files were rendered for `address` and every PgBouncer process itself shows
    /// the hosts that stand in them.
    ///
    /// # Errors
    /// [`FollowError::Late`] with what was seen instead, when `limit` is over.
    pub async fn follow(&self, address: IpAddr, limit: Duration) -> Result<(), FollowError> {
        let mut seen = "nothing was rendered yet".to_owned();
        let watching = async {
            let mut state = self.state.clone();
            loop {
                let now = state.borrow_and_update().clone();
                match self.look(&now, address).await {
                    Ok(()) => return Ok(()),
                    Err(other) => seen = other,
                }
                // Makes the render loop read etcd and PgBouncer at once.
                self.wake.notify_one();
                tokio::select! {
                    changed = state.changed() => changed.map_err(|_| FollowError::Stopping)?,
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        };
        let result = tokio::time::timeout(limit, watching).await;
        result.unwrap_or(Err(FollowError::Late { address, limit, seen }))
    }

    async fn look(&self, state: &ProxyState, address: IpAddr) -> Result<(), String> {
        let lacks = |what: &str| {
            let trouble = state.trouble().map(|trouble| format!(" ({trouble})"));
            Err(format!("{what}{}", trouble.unwrap_or_default()))
        };
        match state.address {
            Some(rendered) if rendered == address => {}
            Some(other) => return lacks(&format!("its file is for {other}")),
            None => return lacks("its file was not rendered yet"),
        }
        if !state.proven {
            return lacks("its file is written, the proof is missing");
        }
        let shown = consoles::each(&self.consoles, |console| async move {
            console.connect().await?.databases().await
        });
        for answer in shown.await {
            let shown = answer.map_err(|failure| {
                format!("{}: {}", failure.socket.display(), chain(&failure.error))
            })?;
            if let Agreement::Differs(differences) = compare(&state.databases, &shown) {
                return Err(differences.join("; "));
            }
        }
        Ok(())
    }
}
