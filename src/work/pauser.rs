//! STUB (failover branch): to be replaced whole by the proxy branch's file.

use std::time::Duration;

use crate::model::pause::{Claim, StaleToken};

#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    #[error("stale")]
    Stale(#[source] StaleToken),
    #[error("open transactions did not end in time: {}", .blockers.join("; "))]
    Busy { blockers: Vec<String> },
    #[error("attempt {attempt} holds the pause")]
    Taken { attempt: String },
    #[error("the PgBouncer console did not do it: {0}")]
    Console(String),
}

pub struct Pauser;

impl Pauser {
    pub async fn pause(
        &self,
        _claim: &Claim,
        _timeout: Duration,
        _expiry: Duration,
    ) -> Result<u32, PauseError> {
        Err(PauseError::Console("stub".to_owned()))
    }

    pub async fn resume(&self, _claim: &Claim) -> Result<(), PauseError> {
        Err(PauseError::Console("stub".to_owned()))
    }
}
