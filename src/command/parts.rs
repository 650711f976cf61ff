//! Pieces that several subcommands make from the configuration.

use std::{
    net::{IpAddr, ToSocketAddrs},
    path::Path,
    sync::Arc,
};

use slog::Level;

use crate::{
    config::Config,
    edge::{
        etcd::{Etcd, EtcdOptions},
        files::{self, FileError},
    },
    telemetry::log::Format,
};

#[derive(Debug, thiserror::Error)]
pub(super) enum PartsError {
    #[error("cannot tell this machine's name; set node.name")]
    NoName(#[source] nix::Error),
    #[error("cannot resolve this machine's name `{name}`; set node.address")]
    NoAddress {
        name: String,
        #[source]
        source: std::io::Error,
    },
    #[error(
        "this machine's name `{name}` resolves to {} addresses that others could use ({}); \
         set node.address to the one that clients reach", .found.len(), join(.found)
    )]
    Ambiguous { name: String, found: Vec<IpAddr> },
}

fn join(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Who this machine is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) name: String,
    pub(super) address: IpAddr,
}

pub(super) fn identity(config: &Config) -> Result<Identity, PartsError> {
    let name = node_name(config)?;
    if let Ok(address) = config.node.address.parse() {
        return Ok(Identity { name, address });
    }
    let resolved = (name.as_str(), 0)
        .to_socket_addrs()
        .map_err(|source| PartsError::NoAddress { name: name.clone(), source })?;
    let mut found: Vec<IpAddr> = resolved
        .map(|resolved| resolved.ip())
        .filter(|address| address.is_ipv4() && !address.is_loopback())
        .collect();
    found.sort_unstable();
    found.dedup();
    match found[..] {
        [address] => Ok(Identity { name, address }),
        _ => Err(PartsError::Ambiguous { name, found }),
    }
}

pub(super) fn node_name(config: &Config) -> Result<String, PartsError> {
    if !config.node.name.is_empty() {
        return Ok(config.node.name.clone());
    }
    let host = nix::unistd::gethostname().map_err(PartsError::NoName)?;
    Ok(host.to_string_lossy().into_owned())
}

pub(super) fn etcd(config: &Config) -> Result<Arc<Etcd>, FileError> {
    Ok(Arc::new(Etcd::new(EtcdOptions {
        endpoints: config.etcd.endpoints.clone(),
        namespace: config.etcd.namespace.clone(),
        call_timeout: config.etcd.call_timeout.get(),
        user: etcd_user(config)?,
    })))
}

pub(super) fn etcd_user(config: &Config) -> Result<Option<(String, String)>, FileError> {
    let section = &config.etcd;
    if section.username.is_empty() {
        return Ok(None);
    }
    Ok(Some((section.username.clone(), files::read_secret(&section.password_file)?)))
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

/// Path of the Unix socket of a Postgres in `dir` on `port`.
pub(super) fn postgres_socket(dir: &Path, port: u16) -> std::path::PathBuf {
    dir.join(format!(".s.PGSQL.{port}"))
}
