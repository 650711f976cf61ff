//! STUB (failover branch): to be replaced whole by the supervise branch's file.

use std::time::Duration;

use crate::model::cluster::Primary;

#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct MoveError;

pub struct Mover;

impl Mover {
    pub async fn prepare(&self, _limit: Duration) -> Result<Duration, MoveError> {
        Err(MoveError)
    }

    pub async fn migrate(
        &self,
        _attempt: &str,
        _target: Option<&str>,
        _limit: Duration,
        _lifetime: Duration,
    ) -> Result<Primary, MoveError> {
        Err(MoveError)
    }

    pub async fn settle(&self, _limit: Duration) -> Result<Primary, MoveError> {
        Err(MoveError)
    }

    pub async fn unmigrate(&self) -> Result<bool, MoveError> {
        Err(MoveError)
    }
}
