//! Real PgBouncer processes.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use pgcm::edge::pgbouncer::Console;

use super::{
    eventually,
    process::{Process, directory},
};

pub struct Pgbouncer {
    process: Option<Process>,
    dir: tempfile::TempDir,
    /// File that it was started with.
    pub file: PathBuf,
    pub port: u16,
}

/// The section `[pgbouncer]` for a process whose sockets and logs are in `dir`.
pub fn settings(dir: &Path, port: u16, extra: &str) -> String {
    let dir = dir.display();
    format!(
        "[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir = {dir}\n\
         auth_type = trust\nauth_file = {dir}/users\nadmin_users = pgbouncer\n\
         pool_mode = transaction\nserver_login_retry = 0.2\nlogfile = {dir}/log\n{extra}\n"
    )
}

impl Pgbouncer {
    /// A PgBouncer that is not started yet, with `databases` as its section `[databases]`.
    pub fn new(port: u16, databases: &str, extra: &str) -> Self {
        let dir = directory();
        let users = "\"postgres\" \"\"\n\"pgbouncer\" \"\"\n";
        fs::write(dir.path().join("users"), users).expect("writable");
        let file = dir.path().join("pgbouncer.ini");
        let settings = settings(dir.path(), port, extra);
        fs::write(&file, format!("{databases}\n{settings}")).expect("writable");
        Self { process: None, dir, file, port }
    }

    /// Starts it and waits until its console answers.
    pub async fn start(&mut self) {
        let program = PathBuf::from("/usr/sbin/pgbouncer");
        let file = self.file.to_str().expect("UTF-8").to_owned();
        let log = self.dir.path().join("output");
        self.process = Some(Process::start(&program, &["-q", &file], &log, true));
        let (process, console) = (self.process.as_ref().expect("just started"), &self.console());
        eventually(Duration::from_secs(10), "PgBouncer's console answers", || async move {
            process.assert_runs();
            console.connect().await.is_ok()
        })
        .await;
    }

    pub fn stop(&mut self) {
        self.process = None;
        let _ = fs::remove_file(self.socket());
    }

    pub fn signal(&self, signal: Signal) {
        self.process.as_ref().expect("it runs").signal(signal);
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join(format!(".s.PGSQL.{}", self.port))
    }

    pub fn console(&self) -> Console {
        Console::new(self.socket(), "pgbouncer".to_owned(), Duration::from_secs(2))
    }

    /// What it logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

/// Starts one PgBouncer whose database `app` is at 127.0.0.1:`postgres`.
pub async fn start_pgbouncer(port: u16, postgres: u16, extra: &str) -> Pgbouncer {
    let databases = format!("[databases]\napp = host=127.0.0.1 port={postgres} dbname=postgres\n");
    let mut pgbouncer = Pgbouncer::new(port, &databases, extra);
    pgbouncer.start().await;
    pgbouncer
}
