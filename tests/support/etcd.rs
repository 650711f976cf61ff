//! A real etcd of one member.

use std::{path::Path, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use pgcm::edge::etcd::{Etcd, EtcdOptions, tls::Tls};

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
    /// What its clients use, if it speaks only https.
    tls: Option<Tls>,
}

/// Starts etcd and waits until it answers.
pub async fn start_etcd() -> EtcdServer {
    start_etcd_with(&[]).await
}

/// The same, with more arguments.
pub async fn start_etcd_with(extra: &[&str]) -> EtcdServer {
    start(extra, None).await
}

/// The same, where only https is spoken and `tls` is let in.
pub async fn start_etcd_over_tls(extra: &[&str], tls: Tls) -> EtcdServer {
    start(extra, Some(tls)).await
}

async fn start(extra: &[&str], tls: Option<Tls>) -> EtcdServer {
    let mut server = EtcdServer {
        process: None,
        dir: tempfile::tempdir().expect("a directory"),
        port: free_port(),
        peer_port: free_port(),
        extra: extra.iter().map(|&arg| arg.to_owned()).collect(),
        user: None,
        tls,
    };
    server.start().await;
    server
}

impl EtcdServer {
    /// Starts it again after [`Self::stop`], with its data.
    pub async fn start(&mut self) {
        let client = self.url();
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
            // A lone member that starts again elects itself after one to two such timeouts; a second, as it is
            // unless told otherwise, is most of what a test's limits leave.
            "--heartbeat-interval",
            "20",
            "--election-timeout",
            "200",
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

    /// Starts it after [`Self::stop`] without anything that it knew, as one that was made anew.
    pub async fn start_anew(&mut self) {
        std::fs::remove_dir_all(self.dir.path().join("data")).expect("its data");
        self.start().await;
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
        Arc::new(Etcd::new(self.options()))
    }

    /// What that client is made of.
    pub fn options(&self) -> EtcdOptions {
        EtcdOptions {
            user: self.user.clone(),
            tls: self.tls.clone(),
            ..options(&self.url(), "/postgres")
        }
    }

    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }
}

/// A client of whatever is at `url`.
pub fn client(url: &str, namespace: &str) -> Arc<Etcd> {
    Arc::new(Etcd::new(options(url, namespace)))
}

fn options(url: &str, namespace: &str) -> EtcdOptions {
    EtcdOptions {
        endpoints: vec![url.to_owned()],
        namespace: namespace.to_owned(),
        call_timeout: Duration::from_secs(1),
        user: None,
        tls: None,
    }
}
