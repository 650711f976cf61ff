//! Pieces that several subcommands make from the configuration.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use slog::Level;

use crate::{
    config::{self, Config},
    edge::{
        address::{self, AddressError},
        etcd::{
            Etcd, EtcdOptions,
            tls::{Tls, TlsError},
        },
        files::{self, FileError},
    },
    telemetry::log::Format,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum PartsError {
    #[error("cannot tell this machine's name; set node.name")]
    NoName(#[source] AddressError),
    #[error("cannot tell at which address others reach this machine; set node.address")]
    NoAddress(#[source] AddressError),
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Who this machine is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) address: IpAddr,
}

/// # Errors
/// When the configuration does not say it and the host name does not resolve to one address.
pub(super) async fn identity(config: &Config) -> Result<Identity, PartsError> {
    let name = node_name(config)?;
    let address = match config.node.address.parse() {
        Ok(address) => address,
        Err(_) => IpAddr::V4(address::own_ipv4(&name).await.map_err(PartsError::NoAddress)?),
    };
    Ok(Identity { name, address })
}

pub(super) fn node_name(config: &Config) -> Result<String, PartsError> {
    if !config.node.name.is_empty() {
        return Ok(config.node.name.clone());
    }
    address::host_name().map_err(PartsError::NoName)
}

/// # Errors
/// When a secret or a certificate cannot be read; etcd itself is not asked yet.
pub(super) fn etcd(config: &Config) -> Result<Arc<Etcd>, PartsError> {
    Ok(Arc::new(Etcd::new(EtcdOptions {
        endpoints: config.etcd.endpoints.clone(),
        namespace: config.etcd.namespace.clone(),
        call_timeout: config.etcd.call_timeout.get(),
        user: etcd_user(&config.etcd)?,
        tls: etcd_tls(&config.etcd)?,
    })))
}

fn etcd_user(section: &config::Etcd) -> Result<Option<(String, String)>, FileError> {
    if section.username.is_empty() {
        return Ok(None);
    }
    Ok(Some((section.username.clone(), files::read_secret(&section.password_file)?)))
}

fn etcd_tls(section: &config::Etcd) -> Result<Option<Tls>, TlsError> {
    let given = |path: &PathBuf| !path.as_os_str().is_empty();
    if !given(&section.ca_file) {
        return Ok(None);
    }
    let tls = Tls::trusting(&section.ca_file)?;
    if !given(&section.cert_file) {
        return Ok(Some(tls));
    }
    tls.showing(&section.cert_file, &section.key_file).map(Some)
}

/// The shared token that changing calls must carry, if one is configured.
pub(super) fn token(config: &Config) -> Result<Option<String>, FileError> {
    let path = &config.api.token_file;
    if path.as_os_str().is_empty() { Ok(None) } else { files::read_secret(path).map(Some) }
}

pub(super) fn log_format(config: &Config) -> Format {
    match config.log.format.as_str() {
        "text" => Format::Text,
        "json" => Format::Json,
        _ => Format::Auto,
    }
}

pub(super) fn log_level(config: &Config) -> Level {
    // `check` has refused any other word.
    config.log.level.parse().unwrap_or(Level::Info)
}
