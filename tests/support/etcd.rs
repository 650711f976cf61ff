//! A real etcd with a data directory and ports of its own.

use std::{
    net::TcpListener,
    process::{Child, Stdio},
    sync::Arc,
    time::Duration,
};

use pgcm::edge::etcd::{Etcd, EtcdOptions};
use tempfile::TempDir;

/// Ends with this value.
pub struct EtcdProcess {
    child: Child,
    pub url: String,
    _data: TempDir,
}

impl EtcdProcess {
    /// A client whose keys stand below `namespace`.
    pub fn client(&self, namespace: &str) -> Arc<Etcd> {
        client(&self.url, namespace)
    }
}

/// A client of whatever is at `url`.
pub fn client(url: &str, namespace: &str) -> Arc<Etcd> {
    Arc::new(Etcd::new(EtcdOptions {
        endpoints: vec![url.to_owned()],
        namespace: namespace.to_owned(),
        call_timeout: Duration::from_secs(2),
        user: None,
    }))
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts etcd and returns once it answers.
#[allow(clippy::disallowed_methods, reason = "a test starts its own programs")]
pub async fn start_etcd() -> EtcdProcess {
    let data = tempfile::tempdir().expect("a temporary directory");
    let (client_url, peer_url) = (free_url(), free_url());
    let child = std::process::Command::new("etcd")
        .args(["--name", "test", "--data-dir"])
        .arg(data.path())
        .args(["--listen-client-urls", &client_url, "--advertise-client-urls", &client_url])
        .args(["--listen-peer-urls", &peer_url, "--initial-advertise-peer-urls", &peer_url])
        .args(["--initial-cluster", &format!("test={peer_url}")])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap_or_else(|error| panic!("cannot start `etcd`; is it installed? {error}"));
    let started = EtcdProcess { child, url: client_url, _data: data };
    let probe = started.client("/probe");
    super::eventually(Duration::from_secs(20), "etcd answers", || async {
        probe.get("/probe").await.is_ok()
    })
    .await;
    started
}

fn free_url() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("bound"))
}
