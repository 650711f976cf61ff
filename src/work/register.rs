//! Keeps this agent's registration in etcd, under a lease.

use std::{sync::Arc, time::Duration};

use slog::{Logger, debug, info, warn};

use super::shutdown::Stop;
use crate::{
    edge::etcd::{Etcd, EtcdError, Put},
    error::chain,
    model::registration::Registration,
};

/// Registers `registration`, renews it every third of `ttl`, makes it again when it or its lease is
/// gone, and removes it at `stop`.
///
/// etcd being away is waited for: the registration is back one third of `ttl` after etcd is.
pub async fn run(
    etcd: Arc<Etcd>,
    registration: Registration,
    ttl: Duration,
    mut stop: Stop,
    log: Logger,
) {
    let mut keeper = Keeper { etcd, registration, ttl, lease: None, trouble: None, log };
    while !stop.is_set() {
        keeper.keep().await;
        tokio::select! {
            () = stop.wait() => {}
            () = tokio::time::sleep(ttl / 3) => {}
        }
    }
    keeper.leave().await;
}

struct Keeper {
    etcd: Arc<Etcd>,
    registration: Registration,
    ttl: Duration,
    lease: Option<i64>,
    /// Trouble that was logged last.
    trouble: Option<String>,
    log: Logger,
}

impl Keeper {
    async fn keep(&mut self) {
        let trouble = match self.refresh().await {
            Ok(()) => None,
            Err(error) => Some(chain(&error).to_string()),
        };
        match (&self.trouble, &trouble) {
            (None, Some(error)) => warn!(self.log, "cannot register in etcd, trying on";
                "event" => "register.write.fail", "error" => error),
            (Some(_), None) => info!(self.log, "registration works again";
                "event" => "register.write.mend"),
            _ => {}
        }
        self.trouble = trouble;
    }

    async fn refresh(&mut self) -> Result<(), EtcdError> {
        if let Some(lease) = self.lease {
            match self.etcd.renew(lease).await {
                Ok(_) => {}
                Err(EtcdError::LeaseGone { .. }) => self.lease = None,
                Err(error) => return Err(error),
            }
        }
        let lease = match self.lease {
            Some(lease) => lease,
            None => self.etcd.grant(self.ttl).await?,
        };
        self.lease = Some(lease);
        let key = self.registration.key();
        let value = serde_json::to_string(&self.registration).unwrap_or_default();
        let found = self.etcd.get(&key).await?;
        if let Some(found) = &found {
            if found.lease == lease && found.value == value {
                return Ok(());
            }
            if found.lease != lease && !self.is_mine(&found.value) {
                warn!(self.log, "another agent is registered under this name; give every machine \
                    its own [node] name"; "event" => "register.name.clash", "key" => &key,
                    "value" => &found.value);
            }
        }
        let put = Put { key: key.clone(), value, lease };
        self.etcd.put_if(&[], &[put]).await?;
        info!(self.log, "registered in etcd"; "event" => "register.write", "key" => key);
        Ok(())
    }

    /// Whether a value is an earlier life of this agent.
    fn is_mine(&self, value: &str) -> bool {
        serde_json::from_str::<Registration>(value)
            .is_ok_and(|other| other.api == self.registration.api)
    }

    async fn leave(self) {
        let Some(lease) = self.lease else { return };
        match self.etcd.revoke(lease).await {
            Ok(()) => info!(self.log, "registration removed"; "event" => "register.remove"),
            Err(error) => debug!(self.log, "the registration ends with its lease";
                "event" => "register.remove.fail", "error" => %chain(&error)),
        }
    }
}
