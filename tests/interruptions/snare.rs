//! A place at which something is held, to be struck there.

use tokio::sync::watch;

/// Holds whoever comes first, until it is released.
pub(crate) struct Snare {
    caught: watch::Sender<bool>,
    released: watch::Sender<bool>,
}

impl Snare {
    pub(crate) fn set() -> std::sync::Arc<Self> {
        std::sync::Arc::new(Self {
            caught: watch::Sender::new(false),
            released: watch::Sender::new(false),
        })
    }

    /// For whoever comes by: the first stays until [`Self::release`].
    pub(crate) async fn pass(&self) {
        if !self.caught.send_replace(true) {
            let _ = self.released.subscribe().wait_for(|&released| released).await;
        }
    }

    /// Returns once somebody is held.
    pub(crate) async fn catches(&self) {
        let _ = self.caught.subscribe().wait_for(|&caught| caught).await;
    }

    pub(crate) fn release(&self) {
        self.released.send_replace(true);
    }
}
