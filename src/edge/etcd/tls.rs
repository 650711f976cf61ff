//! What members are known by, and what they are shown, where their URLs begin with `https://`.

use std::{
    error::Error,
    path::{Path, PathBuf},
};

use etcd_client::{Certificate, Identity, TlsOptions};
use tonic::{Code, transport::Endpoint};

use crate::edge::files::{self, FileError};

const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("{path} holds no certificate; expected `{CERTIFICATE}` in it", path = .path.display())]
    NoCertificate { path: PathBuf },
    #[error("a certificate in {path} cannot be read; expected whole ones as PEM", path = .path.display())]
    BrokenCertificate {
        path: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
    #[error(
        "{} and {} are no certificate and its key, both as PEM, the key without a passphrase",
        .certificate.display(), .key.display()
    )]
    NoIdentity {
        certificate: PathBuf,
        key: PathBuf,
        #[source]
        source: tonic::transport::Error,
    },
}

/// The certificates of a client. Cheap enough to clone for each connection.
#[derive(Debug, Clone)]
pub struct Tls {
    options: TlsOptions,
    ca: PathBuf,
    shows: bool,
}

impl Tls {
    /// Trusts members whose certificates the CAs in the file `ca` signed.
    pub fn trusting(ca: &Path) -> Result<Self, TlsError> {
        let certificates = Certificate::from_pem(certificates(ca)?);
        let path = ca.to_owned();
        match usable(TlsOptions::new().ca_certificate(certificates)) {
            Ok(options) => Ok(Self { options, ca: path, shows: false }),
            Err(source) => Err(TlsError::BrokenCertificate { path, source }),
        }
    }

    /// Shows members the certificate in one file, proven by the key in another, which only its owner may read.
    pub fn showing(self, certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let identity = Identity::from_pem(certificates(certificate)?, files::read_secret(key)?);
        match usable(self.options.identity(identity)) {
            Ok(options) => Ok(Self { options, shows: true, ca: self.ca }),
            Err(source) => {
                let (certificate, key) = (certificate.to_owned(), key.to_owned());
                Err(TlsError::NoIdentity { certificate, key, source })
            }
        }
    }

    pub(super) fn options(&self) -> TlsOptions {
        self.options.clone()
    }

    /// What to look at when `error` came of a call, if certificates may have to do with it.
    pub(super) fn hint(&self, error: &etcd_client::Error) -> Option<String> {
        let etcd_client::Error::GRpcStatus(status) = error else { return None };
        if status.message().contains("invalid peer certificate") {
            return Some(format!("its certificate was checked with {}", self.ca.display()));
        }
        // A member that wants a certificate lets everybody connect, and then hangs up.
        let hung_up = status.source().is_some() && status.code() != Code::Unavailable;
        (hung_up && !self.shows).then(|| "it may want a certificate: see etcd.cert-file".to_owned())
    }
}

/// What is in `options` is looked at when an endpoint is made of them: better now than with each call.
fn usable(options: TlsOptions) -> Result<TlsOptions, tonic::transport::Error> {
    Endpoint::from_static("https://etcd").tls_config(options.clone()).map(|_| options)
}

fn certificates(path: &Path) -> Result<String, TlsError> {
    let text = files::read(path)?;
    if text.contains(CERTIFICATE) {
        Ok(text)
    } else {
        Err(TlsError::NoCertificate { path: path.to_owned() })
    }
}
