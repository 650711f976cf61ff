//! Real Postgres instances on one machine, as the nodes of a cluster whose CIB is a file.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::OnceLock,
    time::{Duration, Instant},
};

use crate::port::free_port;

/// How an action ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) took: Duration,
}

impl Ended {
    /// Asserts the code, showing what the agent said.
    #[track_caller]
    pub(crate) fn with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "{}", self.stderr);
        self
    }

    /// The commands that the log gives a person.
    pub(crate) fn commands(&self) -> &str {
        let line = self.stderr.lines().find(|line| line.contains("agent.action.fail"));
        line.unwrap_or_default()
    }

    pub(crate) fn reason(&self) -> String {
        let mark = "ocf-exit-reason:";
        let line = self.stderr.lines().find_map(|line| line.strip_prefix(mark));
        line.unwrap_or_default().to_owned()
    }
}

pub(crate) struct Cluster {
    dir: tempfile::TempDir,
    port: u16,
    /// Parameters beyond the usual ones.
    pub(crate) parameters: BTreeMap<&'static str, String>,
}

#[expect(clippy::disallowed_methods, reason = "tests start real programs")]
pub(crate) fn command(program: &str) -> Command {
    Command::new(program)
}

#[track_caller]
pub(crate) fn run(mut command: Command) -> String {
    let shown = format!("{command:?}");
    let program = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } =
        command.output().unwrap_or_else(|error| panic!("this test needs {program}: {error}"));
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{shown}: {status}\n{stderr}");
    String::from_utf8_lossy(&stdout).trim().to_owned()
}

/// The directory of the newest Postgres that this machine has, or of `PGCM_TEST_POSTGRES`.
pub(crate) fn bindir() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").expect("this test needs Postgres");
    let wanted = std::env::var("PGCM_TEST_POSTGRES").ok();
    let number = |entry: std::io::Result<fs::DirEntry>| {
        entry.ok()?.file_name().to_str()?.parse::<u32>().ok()
    };
    let newest = versions.filter_map(number).max().map(|version| version.to_string());
    let version = wanted.or(newest).expect("this test needs Postgres");
    Path::new("/usr/lib/postgresql").join(version).join("bin")
}

pub(crate) fn version() -> u32 {
    let dir = bindir();
    let version = dir.parent().and_then(|dir| dir.file_name()).expect("a version");
    version.to_string_lossy().parse().expect("a number")
}

const REFUSE_REPLICATION: &str = "host replication all all reject\n";

/// A data directory to copy, made once for all tests.
fn template(cluster: &Cluster) -> &'static Path {
    static TEMPLATE: OnceLock<PathBuf> = OnceLock::new();
    TEMPLATE.get_or_init(|| {
        let dir = tempfile::Builder::new().prefix("pgcm-template").tempdir().expect("created");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        // Left behind on purpose: statics are never dropped.
        let dir = dir.keep();
        let path = dir.join("data");
        let data = text(&path);
        cluster.as_postgres("initdb", &["-k", "-N", "-A", "trust", "-U", "postgres", "-D", &data]);
        // Processes are killed here, never the machine: without fsync the tests are fast.
        let config = "max_connections = 12\nlogging_collector = off\nwal_keep_size = '64MB'\n\
                      wal_retrieve_retry_interval = '200ms'\nshared_buffers = '16MB'\nfsync = off\n";
        let main = path.join("postgresql.conf");
        let old = fs::read_to_string(&main).expect("made by initdb");
        fs::write(main, format!("{old}{config}")).expect("written");
        // A standby refuses fewer connections than its primary had, so the primary has to have had so
        // few: that takes one run as a primary.
        let log = text(&dir.join("log"));
        let options = format!("-c listen_addresses='' -k {}", text(&dir));
        let start = ["-D", &data, "-l", &log, "-o", &options, "-w", "start"];
        cluster.as_postgres("pg_ctl", &start);
        cluster.as_postgres("pg_ctl", &["-D", &data, "-m", "fast", "-w", "stop"]);
        path
    })
}

impl Cluster {
    /// A data directory for pg01; nothing runs yet.
    pub(crate) fn new() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "this test must run as root, as the agent does");
        for program in ["/usr/sbin/cibadmin", "/usr/bin/flock"] {
            assert!(Path::new(program).exists(), "this test needs {program}");
        }
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).expect("chmod");
        // One port for all nodes, each on an address of its own.
        let cluster = Self { dir, port: free_port(), parameters: BTreeMap::new() };
        cluster.write_cib();
        cluster.copy(template(&cluster), &cluster.data("pg01"));
        cluster
    }

    /// Copies a directory with owners and modes.
    pub(crate) fn copy(&self, from: &Path, to: &Path) {
        let mut copy = command("cp");
        copy.args(["-a", &text(from), &text(to)]);
        run(copy);
    }

    /// pg01 as primary with pg02 as its synchronous standby.
    pub(crate) fn pair() -> Self {
        let cluster = Self::new();
        cluster.act("pg01", "start").with(0);
        cluster.act("pg01", "promote").with(0);
        cluster.act("pg01", "monitor").with(8);
        cluster.add("pg02");
        cluster.settle("pg01", "pg02");
        cluster
    }

    /// Copies the primary pg01 to `node` and starts it as a standby.
    pub(crate) fn add(&self, node: &str) {
        let source = format!("host={} port={} user=postgres", address("pg01"), self.port);
        let data = text(&self.data(node));
        self.as_postgres("pg_basebackup", &["-N", "-c", "fast", "-D", &data, "-d", &source]);
        // On machines of their own all nodes have the same path, or not each other's.
        let config = self.data(node).join("postgresql.conf");
        let copied = fs::read_to_string(&config).expect("copied");
        let others = copied.lines().filter(|line| !line.contains("pg01-data/pgcm.conf"));
        let own: String = others.flat_map(|line| [line, "\n"]).collect();
        fs::write(&config, own).expect("written");
        self.act(node, "start").with(0);
    }

    /// `pg_basebackup` of pg01 for `node`, as the user of Postgres, not yet started.
    pub(crate) fn basebackup(&self, node: &str, args: &[&str]) -> Command {
        self.basebackup_from("pg01", node, args)
    }

    pub(crate) fn basebackup_from(&self, source: &str, node: &str, args: &[&str]) -> Command {
        let source = format!("host={} port={} user=postgres", address(source), self.port);
        let postgres = nix::unistd::User::from_name("postgres").expect("users").expect("postgres");
        let mut backup = command(&text(&bindir().join("pg_basebackup")));
        backup.args(["-c", "fast", "-D", &text(&self.data(node)), "-d", &source]).args(args);
        backup.uid(postgres.uid.as_raw()).gid(postgres.gid.as_raw()).current_dir("/");
        backup
    }

    /// A directory with the server's programs, in which the script `text` stands for `program`; the
    /// script finds the real one as `$REAL`.
    pub(crate) fn programs_with(&self, program: &str, text: &str) -> String {
        let dir = self.path(&format!("programs-with-{program}"));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("created");
        for entry in fs::read_dir(bindir()).expect("listed") {
            let path = entry.expect("listed").path();
            let link = dir.join(path.file_name().expect("a name"));
            std::os::unix::fs::symlink(&path, link).expect("linked");
        }
        let path = dir.join(program);
        fs::remove_file(&path).expect("there is such a program");
        let real = bindir().join(program);
        fs::write(&path, format!("#!/bin/sh\nREAL={}\n{text}\n", real.display())).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("chmod");
        dir.display().to_string()
    }

    /// Lets the primary's monitor run until `standby` may be promoted.
    pub(crate) fn settle(&self, primary: &str, standby: &str) {
        eventually(Duration::from_secs(20), &format!("{standby} is in sync"), || {
            self.act(primary, "monitor").with(8);
            self.attribute(standby, "master-Postgresql").as_deref() == Some("100")
        });
    }

    /// Runs one action of the agent on `node`, as Pacemaker does.
    pub(crate) fn act(&self, node: &str, action: &str) -> Ended {
        self.act_with(node, action, &[("OCF_RESKEY_CRM_meta_interval", "3000")])
    }

    pub(crate) fn act_with(&self, node: &str, action: &str, env: &[(&str, &str)]) -> Ended {
        let mut command = command(env!("CARGO_BIN_EXE_pgcm"));
        command.args(["resource-agent", action]);
        self.as_pacemaker(&mut command, node);
        command.envs(env.iter().copied());
        let begun = Instant::now();
        let output = command.output().expect("pgcm runs");
        Ended {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            took: begun.elapsed(),
        }
    }

    /// Gives `command` the environment in which Pacemaker runs the agent on `node`.
    pub(crate) fn as_pacemaker(&self, command: &mut Command, node: &str) {
        let path = std::env::var("PATH").unwrap_or_default();
        command
            .env("PATH", format!("{}:{path}", text(&self.path("bin"))))
            .env("PGCM_TEST_DIR", self.dir.path())
            .env("PGCM_TEST_WITNESS", self.data("pg01").join("pgcm.conf"))
            .env("CIB_file", self.path("cib.xml"))
            .env("HA_RSCTMP", self.path(&format!("{node}-state")))
            .env("OCF_RESOURCE_INSTANCE", "Postgresql:1")
            .env("OCF_RESKEY_CRM_meta_on_node", node)
            .env("OCF_RESKEY_CRM_meta_timeout", "60000")
            .env("OCF_RESKEY_pgdata", self.data(node))
            .env("OCF_RESKEY_bindir", bindir())
            .env("OCF_RESKEY_pgport", self.port.to_string())
            .env("OCF_RESKEY_socketdir", self.socket_dir(node))
            .env("OCF_RESKEY_logfile", self.path(&format!("{node}.log")))
            .env("OCF_RESKEY_address", address(node))
            .env("OCF_RESKEY_start_opt", format!("-c listen_addresses={}", address(node)));
        for (name, value) in &self.parameters {
            command.env(format!("OCF_RESKEY_{name}"), value);
        }
    }

    /// The answer of `node` to a query, as one line of text.
    #[track_caller]
    pub(crate) fn sql(&self, node: &str, query: &str) -> String {
        run(self.psql(node, query))
    }

    /// psql with `query` for `node`, not yet started.
    pub(crate) fn psql(&self, node: &str, query: &str) -> Command {
        let mut psql = command("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "postgres", "-h"])
            .arg(self.socket_dir(node))
            .args(["-p", &self.port.to_string(), "-c", query]);
        psql
    }

    /// A consumer that writes what the logical `slot` of `node` tells to a file, not yet started.
    pub(crate) fn consumer(&self, node: &str, slot: &str, file: &Path) -> Command {
        let mut consumer = command(&text(&bindir().join("pg_recvlogical")));
        consumer.args(["-U", "postgres", "-d", "postgres", "-h"]).arg(self.socket_dir(node)).args(
            [
                "-p",
                &self.port.to_string(),
                "--start",
                "--no-loop",
                "-F",
                "0",
                "-S",
                slot,
                "-f",
                &text(file),
            ],
        );
        consumer
    }

    /// Appends to a node's main configuration file.
    pub(crate) fn configure(&self, node: &str, text: &str) {
        let path = self.data(node).join("postgresql.conf");
        let old = fs::read_to_string(&path).expect("made by initdb");
        fs::write(path, format!("{old}\n{text}\n")).expect("written");
    }

    /// The postmaster's process id.
    pub(crate) fn pid(&self, node: &str) -> Option<i32> {
        let text = fs::read_to_string(self.data(node).join("postmaster.pid")).ok()?;
        text.lines().next()?.trim().parse().ok()
    }

    pub(crate) fn signal(&self, node: &str, signal: nix::sys::signal::Signal) {
        let pid = self.pid(node).expect("a postmaster");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("signalled");
    }

    /// Starts the server of `node` as whatever knows nothing of Pacemaker does.
    pub(crate) fn start_as_primary(&self, node: &str) {
        let data = self.data(node);
        let _ = fs::remove_file(data.join("standby.signal"));
        let (data, log) = (text(&data), text(&self.path(&format!("{node}.log"))));
        let (host, port, sockets) = (address(node), self.port, text(&self.socket_dir(node)));
        let options = format!("-c listen_addresses={host} -p {port} -k {sockets}");
        let start = ["-D", &data, "-l", &log, "-o", &options, "-w", "start"];
        self.as_postgres("pg_ctl", &start);
    }

    /// SIGKILLs the postmaster and waits until none of its processes is left.
    pub(crate) fn crash(&self, node: &str) {
        self.signal(node, nix::sys::signal::Signal::SIGKILL);
        eventually(Duration::from_secs(30), "the backends end with their postmaster", || {
            self.act_with(node, "monitor", &[("OCF_RESKEY_CRM_meta_interval", "0")]).code == 7
        });
    }

    /// Lets no standby connect to `node` any more.
    pub(crate) fn refuse_replication(&self, node: &str) {
        self.edit_hba(node, |old| format!("{REFUSE_REPLICATION}{old}"));
    }

    /// Undoes [`Self::refuse_replication`].
    pub(crate) fn accept_replication(&self, node: &str) {
        self.edit_hba(node, |old| old.replace(REFUSE_REPLICATION, ""));
    }

    fn edit_hba(&self, node: &str, edit: impl FnOnce(&str) -> String) {
        let path = self.data(node).join("pg_hba.conf");
        let old = fs::read_to_string(&path).expect("made by initdb");
        fs::write(path, edit(&old)).expect("written");
        self.sql(node, "select pg_reload_conf()");
    }

    pub(crate) fn data(&self, node: &str) -> PathBuf {
        self.path(&format!("{node}-data"))
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket_dir(&self, node: &str) -> PathBuf {
        let dir = self.path(&format!("{node}-run"));
        fs::create_dir_all(&dir).expect("created");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("chmod");
        dir
    }

    /// Runs a program of the server as its user.
    pub(crate) fn as_postgres(&self, program: &str, args: &[&str]) -> String {
        let mut runuser = command("runuser");
        let path = text(&bindir().join(program));
        runuser.args(["-u", "postgres", "--", &path]).args(args).current_dir("/");
        run(runuser)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in ["pg01", "pg02", "pg03"] {
            if let Some(pid) = self.pid(node) {
                let pid = nix::unistd::Pid::from_raw(pid);
                for signal in [nix::sys::signal::SIGCONT, nix::sys::signal::SIGQUIT] {
                    let _ = nix::sys::signal::kill(pid, signal);
                }
            }
            if std::thread::panicking() {
                let log = fs::read_to_string(self.path(&format!("{node}.log"))).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let last = &lines[lines.len().saturating_sub(25)..];
                eprintln!("--- the last of {node}'s log\n{}", last.join("\n"));
            }
        }
    }
}

/// The address of a node: the whole of 127.0.0.0/8 is at hand.
pub(crate) fn address(node: &str) -> String {
    format!("127.0.0.{}", 1 + node.trim_start_matches("pg0").parse::<u8>().expect("pg0N"))
}

/// Polls until `holds`, at most `limit`.
#[track_caller]
pub(crate) fn eventually(limit: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !holds() {
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub(crate) fn text(path: &Path) -> String {
    path.display().to_string()
}
