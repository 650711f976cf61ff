//! STUB (failover branch): to be replaced whole by the proxy branch's file.

use std::{net::IpAddr, time::Duration};

#[derive(Debug, thiserror::Error)]
#[error("stub")]
pub struct FollowError;

pub struct Follower;

impl Follower {
    pub async fn follow(&self, _address: IpAddr, _limit: Duration) -> Result<(), FollowError> {
        Err(FollowError)
    }
}
