//! Starting a program so that it ends with its test.

use std::{
    fs::{self, File},
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid},
    },
    unistd::{Pid, User, geteuid},
};

/// A running program. Dropping it ends it.
pub struct Process {
    child: Child,
    last: Signal,
    log: PathBuf,
}

impl Process {
    /// Starts `program`; when the test runs as root and `as_postgres` says so, as user postgres.
    ///
    /// # Panics
    /// When the program is not installed, naming it.
    pub fn start(program: &Path, args: &[&str], log: &Path, as_postgres: bool) -> Self {
        Self::start_in(program, args, log, as_postgres, &[])
    }

    /// The same, with `variables` added to its environment.
    #[expect(clippy::disallowed_methods, reason = "tests start the real programs themselves")]
    pub fn start_in(
        program: &Path,
        args: &[&str],
        log: &Path,
        as_postgres: bool,
        variables: &[(&str, &str)],
    ) -> Self {
        let output = File::create(log).expect("a log file");
        let mut command = Command::new(program);
        command.args(args).envs(variables.iter().copied()).stdin(Stdio::null());
        command.stdout(output.try_clone().expect("a log file")).stderr(output);
        if let (true, Some((uid, gid))) = (as_postgres, postgres_user()) {
            command.uid(uid).gid(gid);
        }
        let child = command.spawn();
        let child = child.unwrap_or_else(|error| panic!("cannot start {program:?}: {error}"));
        Self { child, last: Signal::SIGKILL, log: log.to_owned() }
    }

    /// Ends with `signal` instead of SIGKILL.
    pub fn ending_with(mut self, signal: Signal) -> Self {
        self.last = signal;
        self
    }

    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a PID"));
        kill(pid, signal).expect("the process is there");
    }

    /// # Panics
    /// When it has ended, with what it printed: nobody need wait for it any longer.
    pub fn assert_runs(&self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a PID"));
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        let status = waitid(Id::Pid(pid), flags).expect("the process is there");
        let runs = status == WaitStatus::StillAlive;
        assert!(runs, "{status:?}: {}", fs::read_to_string(&self.log).unwrap_or_default());
    }

    /// Waits until it has ended by itself.
    ///
    /// # Panics
    /// When it has not within `limit`.
    pub fn ends_within(mut self, limit: Duration) {
        let end = Instant::now() + limit;
        while matches!(self.child.try_wait(), Ok(None)) {
            assert!(Instant::now() < end, "it runs on: {}", fs::read_to_string(&self.log).unwrap());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for an end with success.
    pub fn finish(mut self, what: &str) {
        let status = self.child.wait().expect("waited");
        assert!(status.success(), "{what} ended with {status}");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return;
        }
        self.signal(self.last);
        let end = Instant::now() + Duration::from_secs(5);
        while Instant::now() < end && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and group postgres, when the test runs as root: Postgres and PgBouncer refuse to.
pub fn postgres_user() -> Option<(u32, u32)> {
    if !geteuid().is_root() {
        return None;
    }
    let user = User::from_name("postgres").expect("the user database");
    let user = user.expect("user postgres is missing: install PostgreSQL");
    Some((user.uid.as_raw(), user.gid.as_raw()))
}

/// A temporary directory that user postgres owns.
pub fn directory() -> tempfile::TempDir {
    directory_in(&std::env::temp_dir())
}

/// The same below `parent`.
pub fn directory_in(parent: &Path) -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("pgcm-").tempdir_in(parent).expect("a directory");
    if let Some((uid, gid)) = postgres_user() {
        chown(dir.path(), Some(uid), Some(gid)).expect("chown");
    }
    dir
}

/// The newest `name` of the installed Postgres releases.
pub fn postgres_binary(name: &str) -> PathBuf {
    let mut releases: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .unwrap_or_else(|_| panic!("{name} is missing: install PostgreSQL"))
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let release = entry.file_name().to_str()?.parse().ok()?;
            Some((release, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.exists())
        .collect();
    releases.sort();
    releases.pop().unwrap_or_else(|| panic!("{name} is missing: install PostgreSQL")).1
}
