//! Keeps this agent's registration in etcd, under a lease.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use slog::{Logger, debug, info, warn};
use tokio::{sync::watch, time::Instant};

use super::shutdown::Stop;
use crate::{
    edge::etcd::{Entry, Etcd, EtcdError, Put},
    error::chain,
    model::registration::Registration,
};

/// Another living agent that was seen to be registered under this one's name: where its API is, and when that was.
pub type Namesake = Option<(SocketAddr, Instant)>;

/// Registers `registration`, renews it every third of `ttl`, makes it again when it or its lease is
/// gone, and removes it at `stop`.
///
/// etcd being away is waited for: the registration is back one third of `ttl` after etcd is. Two agents of one name
/// replace each other's all the time, and so each tells `namesake` of the other.
pub async fn run(
    etcd: Arc<Etcd>,
    registration: Registration,
    ttl: Duration,
    namesake: watch::Sender<Namesake>,
    mut stop: Stop,
    log: Logger,
) {
    let mut keeper = Keeper { etcd, registration, ttl, lease: None, trouble: None, namesake, log };
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
    namesake: watch::Sender<Namesake>,
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
            if let Some(api) = self.other(found).filter(|_| found.lease != lease) {
                self.namesake.send_replace(Some((api, Instant::now())));
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

    /// Where the agent of that entry is, unless it is an earlier life of this one.
    fn other(&self, found: &Entry) -> Option<SocketAddr> {
        let other: Registration = serde_json::from_str(&found.value).ok()?;
        Some(other.api).filter(|api| *api != self.registration.api)
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
