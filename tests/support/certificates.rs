//! Certificates, made by openssl for one test.

use std::path::{Path, PathBuf};

use super::process::Process;

/// A CA and what it signed.
pub struct Authority(tempfile::TempDir);

impl Authority {
    /// Makes the CA.
    pub fn new() -> Self {
        let authority = Self(tempfile::tempdir().expect("a directory"));
        authority.make("ca", &[]);
        authority
    }

    /// Signs a certificate for `name`, for a server at `address` or for a client.
    pub fn sign(&self, name: &str, address: &str) {
        let (ca, key) = (self.certificate("ca"), self.key("ca"));
        let address = format!("subjectAltName=IP:{address}");
        let signed = ["-CA", text(&ca), "-CAkey", text(&key)];
        let extensions = ["-addext", &address, "-addext", "basicConstraints=critical,CA:FALSE"];
        self.make(name, &[signed, extensions].concat());
    }

    pub fn certificate(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.pem"))
    }

    pub fn key(&self, name: &str) -> PathBuf {
        self.0.path().join(format!("{name}.key"))
    }

    fn make(&self, name: &str, more: &[&str]) {
        let (certificate, key) = (self.certificate(name), self.key(name));
        let subject = format!("/CN={name}");
        let request = ["req", "-x509", "-days", "2", "-subj", &subject, "-nodes"];
        let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"];
        let files = ["-keyout", text(&key), "-out", text(&certificate)];
        let args = [&request[..], &new_key, &files, more].concat();
        let log = self.0.path().join("log");
        Process::start(Path::new("/usr/bin/openssl"), &args, &log, false).finish("openssl");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}
