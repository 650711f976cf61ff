//! A real etcd of one member.

use std::{path::PathBuf, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use pgcm::edge::etcd::{Etcd, EtcdOptions};

use super::{eventually, free_port, process::Process};

pub struct EtcdServer {
    process: Option<Process>,
    dir: tempfile::TempDir,
    port: u16,
    peer_port: u16,
}

/// Starts etcd and waits until it answers.
pub async fn start_etcd() -> EtcdServer {
    let mut server = EtcdServer {
        process: None,
        dir: tempfile::tempdir().expect("a directory"),
        port: free_port(),
        peer_port: free_port(),
    };
    server.start().await;
    server
}

impl EtcdServer {
    /// Starts it again after [`Self::stop`], with its data.
    pub async fn start(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let data = self.dir.path().join("data");
        let args = [
            "--name",
            "one",
            "--data-dir",
            data.to_str().expect("UTF-8"),
            "--listen-client-urls",
            &client,
            "--advertise-client-urls",
            &client,
            "--listen-peer-urls",
            &peer,
            "--initial-advertise-peer-urls",
            &peer,
            "--initial-cluster",
            &format!("one={peer}"),
            // Of a test that logs in: as little work as there can be.
            "--bcrypt-cost",
            "4",
        ];
        let program = PathBuf::from("/usr/bin/etcd");
        let log = self.dir.path().join("log");
        self.process = Some(Process::start(&program, &args, &log, false));
        let etcd = self.client();
        let (etcd, process) = (&etcd, self.process.as_ref().expect("just started"));
        eventually(Duration::from_secs(20), "etcd answers", || async move {
            process.assert_runs();
            etcd.get("/none").await.is_ok()
        })
        .await;
    }

    pub fn stop(&mut self) {
        self.process = None;
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    /// A client below the namespace `/postgres`.
    pub fn client(&self) -> Arc<Etcd> {
        client(&self.url(), "/postgres")
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A client of whatever is at `url`.
pub fn client(url: &str, namespace: &str) -> Arc<Etcd> {
    Arc::new(Etcd::new(EtcdOptions {
        endpoints: vec![url.to_owned()],
        namespace: namespace.to_owned(),
        call_timeout: Duration::from_secs(1),
        user: None,
    }))
}
