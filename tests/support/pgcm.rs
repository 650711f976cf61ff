//! The program itself, as a user runs it.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use super::etcd::EtcdServer;

/// A configuration for `server`, and nothing else set but what must be short in a test.
pub struct Pgcm {
    dir: tempfile::TempDir,
}

impl Pgcm {
    pub fn new(server: &EtcdServer) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let text = format!(
            "[node]\nname = \"pg01\"\n[etcd]\nendpoints = [\"{}\"]\n[failover]\nlock-lease = \"2s\"\n\
             expected-agents = [\"pg01/supervise\", \"app01/proxy\"]\n",
            server.url()
        );
        fs::write(dir.path().join("config.toml"), text).expect("writable");
        Self { dir }
    }

    /// From now on it shows etcd this name and password.
    pub fn log_in(&self, name: &str, password: &str) {
        let (config, file) = (self.path("config.toml"), self.path("password"));
        fs::write(&file, password).expect("writable");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("chmod");
        let text = fs::read_to_string(&config).expect("readable");
        if !text.contains("username") {
            let user = format!("[etcd]\nusername = {name:?}\npassword-file = {file:?}\n");
            fs::write(config, text.replace("[etcd]\n", &user)).expect("writable");
        }
    }

    /// From now on it knows another member of etcd, and asks that first.
    pub fn knows_member(&self, url: &str) {
        let config = self.path("config.toml");
        let text = fs::read_to_string(&config).expect("readable");
        let more = text.replace("endpoints = [", &format!("endpoints = [{url:?}, "));
        fs::write(config, more).expect("writable");
    }

    /// A file of the test's own.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    #[expect(clippy::disallowed_methods, reason = "the test runs the program as a user would")]
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(Path::new(env!("CARGO_BIN_EXE_pgcm")));
        command.arg("--config-file").arg(self.path("config.toml")).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn start(&self, args: &[&str]) -> Child {
        self.command(args).spawn().expect("pgcm starts")
    }

    /// Runs it to its end: status, stdout, stderr.
    pub fn run(&self, args: &[&str]) -> (i32, String, String) {
        end(self.start(args))
    }
}

/// Waits for the end: status, stdout, stderr.
pub fn end(child: Child) -> (i32, String, String) {
    let output = child.wait_with_output().expect("pgcm ends");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
}
