//! A real etcd of one member.

use std::{path::Path, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use pgcm::edge::etcd::{Etcd, EtcdOptions};

use super::{eventually, free_port, process::Process};

pub struct EtcdServer {
    process: Option<Process>,
    dir: tempfile::TempDir,
    port: u16,
    peer_port: u16,
    /// More arguments, such as `--auth-token-ttl`.
    extra: Vec<String>,
    /// User and password, once [`EtcdServer::enable_auth`] made them.
    user: Option<(String, String)>,
}

/// Starts etcd and waits until it answers.
pub async fn start_etcd() -> EtcdServer {
    start_etcd_with(&[]).await
}

/// The same, with more arguments.
pub async fn start_etcd_with(extra: &[&str]) -> EtcdServer {
    let mut server = EtcdServer {
        process: None,
        dir: tempfile::tempdir().expect("a directory"),
        port: free_port(),
        peer_port: free_port(),
        extra: extra.iter().map(|&arg| arg.to_owned()).collect(),
        user: None,
    };
    server.start().await;
    server
}

impl EtcdServer {
    /// Starts it again after [`Self::stop`], with its data.
    pub async fn start(&mut self) {
        let client = format!("http://127.0.0.1:{}", self.port);
        let peer = format!("http://127.0.0.1:{}", self.peer_port);
        let members = format!("one={peer}");
        let data = self.dir.path().join("data");
        let mut args = vec![
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
            &members,
            // Of a test that logs in: as little work as there can be.
            "--bcrypt-cost",
            "4",
        ];
        args.extend(self.extra.iter().map(String::as_str));
        let log = self.dir.path().join("log");
        self.process = Some(Process::start(Path::new("/usr/bin/etcd"), &args, &log, false));
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

    /// Lets in only user root, and user pgcm for what is below `/postgres/`, as README says.
    pub fn enable_auth(&mut self) {
        for command in [
            "user add root --new-user-password=root",
            "user grant-role root root",
            "role add pgcm",
            "role grant-permission pgcm --prefix=true readwrite /postgres/",
            "user add pgcm --new-user-password=secret",
            "user grant-role pgcm pgcm",
            "auth enable",
        ] {
            self.etcdctl(command);
        }
        self.user = Some(("pgcm".to_owned(), "secret".to_owned()));
    }

    /// Runs etcdctl as root, with what a shell would take as words of `command`.
    pub fn etcdctl(&self, command: &str) {
        let url = self.url();
        let mut args = vec!["--endpoints", &url];
        if self.user.is_some() {
            args.extend(["--user", "root:root"]);
        }
        args.extend(command.split(' '));
        let log = self.dir.path().join("etcdctl.log");
        Process::start(Path::new("/usr/bin/etcdctl"), &args, &log, false).finish(command);
    }

    /// A client below the namespace `/postgres`.
    pub fn client(&self) -> Arc<Etcd> {
        client_of(self.url(), "/postgres", self.user.clone())
    }

    /// The same, as `user`.
    pub fn client_as(&self, user: &str, password: &str) -> Arc<Etcd> {
        client_of(self.url(), "/postgres", Some((user.to_owned(), password.to_owned())))
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A client of whatever is at `url`.
pub fn client(url: &str, namespace: &str) -> Arc<Etcd> {
    client_of(url.to_owned(), namespace, None)
}

fn client_of(url: String, namespace: &str, user: Option<(String, String)>) -> Arc<Etcd> {
    Arc::new(Etcd::new(EtcdOptions {
        endpoints: vec![url],
        namespace: namespace.to_owned(),
        call_timeout: Duration::from_secs(1),
        user,
    }))
}
