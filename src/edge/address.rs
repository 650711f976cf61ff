//! The address at which other nodes reach this one.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr},
};

#[derive(Debug, thiserror::Error)]
pub enum AddressError {
    #[error("cannot find out the host name")]
    HostName(#[source] nix::Error),
    #[error("cannot resolve the host name {host}")]
    Resolve {
        host: String,
        #[source]
        source: io::Error,
    },
    #[error("the host name {host} resolves to {found}")]
    NotOne { host: String, found: String },
}

/// The name of this host.
pub fn host_name() -> Result<String, AddressError> {
    let name = nix::unistd::gethostname().map_err(AddressError::HostName)?;
    Ok(name.to_string_lossy().into_owned())
}

/// The one IPv4 address, other than loopback, that `host` resolves to. Bounded by what `resolv.conf` allows
/// its name servers.
///
/// # Errors
/// [`AddressError::NotOne`] when there are several, or none: a guess could publish a wrong one.
pub async fn own_ipv4(host: &str) -> Result<Ipv4Addr, AddressError> {
    let found = tokio::net::lookup_host((host, 0))
        .await
        .map_err(|source| AddressError::Resolve { host: host.to_owned(), source })?;
    let usable: BTreeSet<Ipv4Addr> = found
        .filter_map(|socket| match socket.ip() {
            IpAddr::V4(ip) if !ip.is_loopback() => Some(ip),
            _ => None,
        })
        .collect();
    let mut each = usable.iter();
    match (each.next(), each.next()) {
        (Some(&only), None) => Ok(only),
        (None, _) => Err(AddressError::NotOne {
            host: host.to_owned(),
            found: "no IPv4 address other than loopback".to_owned(),
        }),
        _ => {
            let all: Vec<String> = usable.iter().map(Ipv4Addr::to_string).collect();
            Err(AddressError::NotOne { host: host.to_owned(), found: all.join(", ") })
        }
    }
}
