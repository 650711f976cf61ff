//! The postmaster and its data directory: signals, files, and the server's own programs.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::time::Instant;

use super::{
    command::{CommandError, Output, Run},
    files::{self, FileError},
    identity::Identity,
};
use crate::model::agent::{
    condition::Process,
    control_data::{ControlData, Unreadable},
    history::History,
    lsn::Lsn,
    pid_file::PidFile,
    settings::{self, Settings},
};

#[derive(Debug, thiserror::Error)]
pub enum PostmasterError {
    #[error("cannot run the server's programs")]
    Command(#[source] CommandError),
    #[error("`{program}` ended with {status}: {reason}")]
    Exit { program: &'static str, status: i32, reason: String },
    #[error("cannot read the control file")]
    ControlData(#[source] Unreadable),
    #[error("the control file is damaged: its checksum does not match")]
    ControlDamaged,
    #[error("cannot change {path}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot prepare the configuration")]
    File(#[source] FileError),
    #[error("cannot signal process {pid}")]
    Signal {
        pid: u32,
        #[source]
        source: nix::Error,
    },
    #[error("Postgres did not start; see its log, or {log}", log = .log.display())]
    NotStarted { log: PathBuf },
    #[error("cannot look at the processes of {user}")]
    Identity {
        user: String,
        #[source]
        source: io::Error,
    },
}

/// How long it may take the postmaster to show its first sign of life.
const SHOWS_UP: Duration = Duration::from_secs(5);

/// One data directory and the programs that serve it.
#[derive(Debug, Clone)]
pub struct Postmaster<R> {
    pub run: R,
    pub pgdata: PathBuf,
    /// Empty: programs are found through PATH.
    pub bindir: PathBuf,
    pub config_file: PathBuf,
    pub user: Identity,
    pub port: u16,
    pub socketdir: PathBuf,
    pub logfile: PathBuf,
    pub start_options: String,
}

/// The directory of the server programs: as configured, or Debian's for the version of `pgdata`, or
/// empty for PATH.
pub fn find_bindir(configured: Option<&Path>, pgdata: &Path) -> PathBuf {
    if let Some(bindir) = configured {
        return bindir.to_owned();
    }
    let version = fs::read_to_string(pgdata.join("PG_VERSION")).unwrap_or_default();
    let debian = Path::new("/usr/lib/postgresql").join(version.trim()).join("bin");
    if debian.join("postgres").exists() { debian } else { PathBuf::new() }
}

impl<R: Run> Postmaster<R> {
    /// Which processes of the data directory live, and the postmaster's id when it does.
    pub fn process(&self) -> Result<(Process, Option<u32>), PostmasterError> {
        if let Some(file) = self.pid_file()
            && self.as_user(|| self.is_ours(file.pid))?
        {
            return Ok((Process::Running(file.phase), Some(file.pid)));
        }
        let orphans = !self.orphans()?.is_empty();
        Ok((if orphans { Process::Orphans } else { Process::Gone }, None))
    }

    /// What `postmaster.pid` says, whether or not it is true.
    pub fn pid_file(&self) -> Option<PidFile> {
        PidFile::parse(&fs::read_to_string(self.pgdata.join("postmaster.pid")).ok()?)
    }

    /// Processes of the data directory, its postmaster's and those that it left.
    pub fn orphans(&self) -> Result<Vec<u32>, PostmasterError> {
        let numbered =
            |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u32>().ok();
        self.as_user(|| {
            let entries = fs::read_dir("/proc").into_iter().flatten();
            entries.filter_map(numbered).filter(|&pid| self.is_ours(pid)).collect()
        })
    }

    /// The process that receives WAL, when there is one.
    pub fn walreceiver(&self) -> Result<Option<u32>, PostmasterError> {
        let receives = |pid: &u32| {
            let title = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&title).contains("walreceiver")
        };
        Ok(self.orphans()?.into_iter().find(receives))
    }

    /// Whether `pid` is a living Postgres with this data directory: the id in a file that survived
    /// a restart of the machine can belong to anybody.
    fn is_ours(&self, pid: u32) -> bool {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
        // A program that was upgraded while it runs shows as deleted; a zombie shows as nothing.
        let is_postgres = |exe: PathBuf| {
            let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            matches!(name.trim_end_matches(" (deleted)"), "postgres" | "postmaster")
        };
        link("exe").is_ok_and(is_postgres) && link("cwd").is_ok_and(|cwd| self.is_pgdata(&cwd))
    }

    /// Whether `cwd`, as `/proc` shows it, is the data directory, also after that was removed.
    fn is_pgdata(&self, cwd: &Path) -> bool {
        let deleted = format!("{} (deleted)", self.pgdata.display());
        cwd == Path::new(&deleted) || fs::canonicalize(&self.pgdata).is_ok_and(|own| own == cwd)
    }

    fn as_user<T>(&self, look: impl FnOnce() -> T) -> Result<T, PostmasterError> {
        self.user
            .assume(look)
            .map_err(|source| PostmasterError::Identity { user: self.user.name.clone(), source })
    }

    /// Sends `signal`; a process that is gone is fine.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<(), PostmasterError> {
        let raw = i32::try_from(pid).unwrap_or(i32::MAX);
        match kill(Pid::from_raw(raw), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(source) => Err(PostmasterError::Signal { pid, source }),
        }
    }

    /// Waits until the process `pid` of this data directory is gone; false when `limit` passed.
    pub async fn gone(&self, pid: u32, limit: Duration) -> Result<bool, PostmasterError> {
        let deadline = Instant::now() + limit;
        while self.as_user(|| self.is_ours(pid))? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(true)
    }

    /// The major version that the data directory belongs to, or 0 when it does not say.
    pub fn major_version(&self) -> u32 {
        let text = fs::read_to_string(self.pgdata.join("PG_VERSION")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// Reads the control file.
    pub async fn control_data(&self, limit: Duration) -> Result<ControlData, PostmasterError> {
        let output = self.tool("pg_controldata", &["-D", &self.data()], limit).await?;
        // A warning only: the program prints what it read, and ends well.
        let damaged = |text: &str| text.contains("CRC checksum does not match");
        if damaged(&output.stderr) || damaged(&output.stdout) {
            return Err(PostmasterError::ControlDamaged);
        }
        ControlData::parse(&output.stdout).map_err(PostmasterError::ControlData)
    }

    /// Begins to start the server and returns as soon as its postmaster lives.
    ///
    /// # Errors
    /// [`PostmasterError::NotStarted`] when no postmaster shows up, or it ends at once.
    pub async fn start(&self, limit: Duration) -> Result<(), PostmasterError> {
        let mut options = format!("-p {} -k '{}'", self.port, self.socketdir.display());
        if self.config_file != self.pgdata.join("postgresql.conf") {
            options.push_str(&format!(" -c config_file='{}'", self.config_file.display()));
        }
        options.push(' ');
        options.push_str(&self.start_options);
        // As pg_ctl starts it, but for the `postgres -V` that it asks first: clients wait for a primary that
        // comes back as a standby. What the shell says of a missing program would go into the log.
        let script = format!(
            r#"for program in setsid "$0"; do
                 command -v "$program" > /dev/null || {{ echo "$program is missing" >&2; exit 127; }}
               done
               umask 077; export PGDATA="$1"
               exec setsid --fork "$0" -D "$1" {options} < /dev/null >> "$2" 2>&1"#
        );
        let (postgres, log) = (self.program("postgres"), self.logfile.display().to_string());
        let args = ["-c", &script, &postgres, &self.data(), &log];
        Self::succeeded("sh", self.run_as_user("sh", &args, limit).await?)?;
        let deadline = Instant::now() + limit.min(SHOWS_UP);
        while !matches!(self.process()?.0, Process::Running(_)) {
            if Instant::now() >= deadline {
                let log = self.logfile.clone();
                return Err(PostmasterError::NotStarted { log });
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }

    /// Lets the server recover from a crash, and stop, without serving anybody.
    pub async fn recover_alone(&self, limit: Duration) -> Result<(), PostmasterError> {
        self.remove("standby.signal")?;
        let config = format!("config_file={}", self.config_file.display());
        let args = ["--single", "-F", "-D", &self.data(), "-c", &config, "template1"];
        self.tool("postgres", &args, limit).await.map(|_| ())
    }

    /// What `pg_rewind` would do, as it says itself. Changes nothing.
    pub async fn plan_rewind(
        &self,
        source: &str,
        limit: Duration,
    ) -> Result<String, PostmasterError> {
        let server = format!("{source} dbname=postgres");
        let data = self.data();
        let args = ["--dry-run", "--no-ensure-shutdown", "-D", &data, "--source-server", &server];
        let output = self.tool("pg_rewind", &args, limit).await?;
        Ok(format!("{}{}", output.stdout, output.stderr))
    }

    /// Syncs the whole data directory to disk.
    pub async fn sync_all(&self, limit: Duration) -> Result<(), PostmasterError> {
        self.tool("initdb", &["--sync-only", "-D", &self.data()], limit).await.map(|_| ())
    }

    /// Rewinds this stopped data directory to where it left the history of the server at `source`.
    pub async fn rewind(&self, source: &str, limit: Duration) -> Result<(), PostmasterError> {
        let server = format!("{source} dbname=postgres");
        let args = ["--no-ensure-shutdown", "-D", &self.data(), "--source-server", server.as_str()];
        self.tool("pg_rewind", &args, limit).await.map(|_| ())
    }

    /// Where the last record of the local WAL on `timeline` begins, reading from `start`.
    ///
    /// `None` when the end cannot be found.
    pub async fn last_record(
        &self,
        timeline: u32,
        start: Lsn,
        limit: Duration,
    ) -> Result<Option<Lsn>, PostmasterError> {
        let wal = self.pgdata.join("pg_wal").display().to_string();
        let (timeline, start) = (timeline.to_string(), start.to_string());
        // Statistics instead of records: the WAL since the last checkpoint can be long.
        let args = ["-z", "-p", wal.as_str(), "-t", timeline.as_str(), "-s", start.as_str()];
        let output = self.call("pg_waldump", &args, limit).await?;
        Ok(last_record(&output.stderr))
    }

    /// The value that the server would have for `setting` if it started now.
    ///
    /// # Errors
    /// [`PostmasterError::Exit`] with the server's words when its configuration cannot be read.
    pub async fn setting(&self, setting: &str, limit: Duration) -> Result<String, PostmasterError> {
        // The options are text for a shell, as in `start`.
        let script = format!(r#"exec "$0" "$@" {}"#, self.start_options);
        let config = format!("config_file={}", self.config_file.display());
        let (postgres, data) = (self.program("postgres"), self.data());
        let args = ["-c", &script, &postgres, "-D", &data, "-C", setting, "-c", &config];
        let output = self.run_as_user("sh", &args, limit).await?;
        Ok(Self::succeeded("postgres", output)?.stdout.trim().to_owned())
    }

    /// What `postgres --version` prints.
    pub async fn version(&self, limit: Duration) -> Result<String, PostmasterError> {
        Ok(self.tool("postgres", &["--version"], limit).await?.stdout)
    }

    /// The newest timeline that the local WAL files name, or 0.
    pub fn wal_timeline(&self) -> u32 {
        let timeline = |entry: io::Result<fs::DirEntry>| {
            let name = entry.ok()?.file_name().into_string().ok()?;
            let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
            is_segment.then(|| u32::from_str_radix(&name[..8], 16).ok())?
        };
        let entries = fs::read_dir(self.pgdata.join("pg_wal")).into_iter().flatten();
        entries.filter_map(timeline).max().unwrap_or(0)
    }

    /// Where `timeline` branched off the one before it; `None` when its history cannot be read.
    pub fn timeline_began(&self, timeline: u32) -> Option<Lsn> {
        let path = self.pgdata.join("pg_wal").join(format!("{timeline:08X}.history"));
        History::parse(&fs::read_to_string(path).ok()?)?.begins()
    }

    pub fn has(&self, name: &str) -> bool {
        self.pgdata.join(name).exists()
    }

    /// Makes the next start, and every later one, that of a standby.
    pub fn write_standby_signal(&self) -> Result<(), PostmasterError> {
        if self.has("standby.signal") {
            return Ok(());
        }
        self.replace(&self.pgdata.join("standby.signal"), "")
    }

    /// Removes a file of the data directory; one that is not there is removed already.
    pub fn remove(&self, name: &str) -> Result<(), PostmasterError> {
        remove(&self.pgdata.join(name))
    }

    /// Removes lock files whose process is no Postgres: they would stop the server from starting.
    ///
    /// To be called only once no process of the data directory lives.
    pub fn remove_stale_locks(&self) -> Result<(), PostmasterError> {
        self.remove("postmaster.pid")?;
        let lock = self.socketdir.join(format!(".s.PGSQL.{}.lock", self.port));
        let Some(file) = fs::read_to_string(&lock).ok().and_then(|text| PidFile::parse(&text))
        else {
            return Ok(());
        };
        let alive = self.as_user(|| {
            let exe = fs::read_link(format!("/proc/{}/exe", file.pid)).unwrap_or_default();
            exe.to_string_lossy().contains("postgres")
        })?;
        if alive { Ok(()) } else { remove(&lock) }
    }

    /// The settings in `pgcm.conf`; empty ones when there is no such file.
    pub fn settings(&self) -> Settings {
        let text = fs::read_to_string(self.pgdata.join("pgcm.conf")).unwrap_or_default();
        Settings::parse(&text)
    }

    /// Writes `pgcm.conf` and sees to it that nothing outweighs it; effective after a reload.
    pub fn write_settings(&self, settings: &Settings) -> Result<(), PostmasterError> {
        let path = self.pgdata.join("pgcm.conf");
        if fs::read_to_string(&path).ok().as_deref() != Some(&settings.render()) {
            self.replace(&path, &settings.render())?;
        }
        let config_path = fs::canonicalize(&self.config_file)
            .map_err(|source| PostmasterError::Io { path: self.config_file.clone(), source })?;
        let config = files::read(&config_path).map_err(PostmasterError::File)?;
        if let Some(text) = settings::with_include(&config, &path.display().to_string()) {
            self.replace(&config_path, &text)?;
        }
        let auto_path = self.pgdata.join("postgresql.auto.conf");
        let auto = fs::read_to_string(&auto_path).unwrap_or_default();
        match settings::without_owned(&auto, settings) {
            Some(text) => self.replace(&auto_path, &text),
            None => Ok(()),
        }
    }

    fn replace(&self, path: &Path, text: &str) -> Result<(), PostmasterError> {
        let owner = Some((self.user.uid, self.user.gid));
        files::replace(path, text, owner).map_err(PostmasterError::File)
    }

    fn data(&self) -> String {
        self.pgdata.display().to_string()
    }

    /// Runs a program of the server as its user; a status other than 0 is an error.
    async fn tool(
        &self,
        program: &'static str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, PostmasterError> {
        let output = self.call(program, args, limit).await?;
        Self::succeeded(program, output)
    }

    fn succeeded(program: &'static str, output: Output) -> Result<Output, PostmasterError> {
        if !output.success() {
            let reason = output.last_words().to_owned();
            return Err(PostmasterError::Exit { program, status: output.status, reason });
        }
        Ok(output)
    }

    async fn call(
        &self,
        program: &'static str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, PostmasterError> {
        self.run_as_user(&self.program(program), args, limit).await
    }

    async fn run_as_user(
        &self,
        program: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Output, PostmasterError> {
        self.user.run(&self.run, program, args, limit).await.map_err(PostmasterError::Command)
    }

    /// A program of the server, with its path.
    pub fn program(&self, name: &str) -> String {
        self.bindir.join(name).display().to_string()
    }
}

fn remove(path: &Path) -> Result<(), PostmasterError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PostmasterError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Reads where pg_waldump stopped: `error in WAL record at X: invalid ...`, X being the last good
/// record. Nothing else that ends a dump tells where the WAL ends.
fn last_record(stderr: &str) -> Option<Lsn> {
    let (_, after) = stderr.rsplit_once("error in WAL record at ")?;
    after.split(':').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_wal_is_where_the_dump_stopped() {
        let old = "pg_waldump: fatal: error in WAL record at 0/3000110: invalid record length at \
                   0/3000148: wanted 24, got 0\n";
        assert_eq!(last_record(old), Some(Lsn(0x300_0110)));
        let missing = "pg_waldump: error: could not find file \"000000010000000000000004\"";
        assert_eq!(last_record(missing), None);
    }
}
