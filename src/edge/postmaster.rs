//! The postmaster and its data directory: processes, signals and files.

mod programs;

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
    command::{CommandError, Run},
    files::{self, FileError},
    identity::Identity,
    proc,
};
use crate::model::agent::{
    condition::Process,
    control_data::Unreadable,
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
        self.as_user(|| proc::pids().filter(|&pid| self.is_ours(pid)).collect())
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
        self.replace(&self.pgdata.join("standby.signal"), b"")
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
            self.replace(&path, settings.render().as_bytes())?;
        }
        let config_path =
            fs::canonicalize(&self.config_file).map_err(unusable(&self.config_file))?;
        let config = fs::read(&config_path).map_err(unusable(&config_path))?;
        if let Some(text) = settings::with_include(&config, &path.display().to_string()) {
            self.replace(&config_path, &text)?;
        }
        let (auto_path, auto) = self.auto_conf()?;
        match settings::without_owned(&auto, settings) {
            Some(text) => self.replace(&auto_path, &text),
            None => Ok(()),
        }
    }

    /// Where `postgresql.auto.conf` tells a recovery to end.
    pub fn recovery_target(&self) -> Result<Option<String>, PostmasterError> {
        Ok(settings::recovery_target(&self.auto_conf()?.1))
    }

    fn auto_conf(&self) -> Result<(PathBuf, Vec<u8>), PostmasterError> {
        let path = self.pgdata.join("postgresql.auto.conf");
        match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok((path, Vec::new())),
            Err(error) => Err(unusable(&path)(error)),
            Ok(text) => Ok((path, text)),
        }
    }

    fn replace(&self, path: &Path, text: &[u8]) -> Result<(), PostmasterError> {
        let owner = Some((self.user.uid, self.user.gid));
        files::replace(path, text, owner).map_err(PostmasterError::File)
    }

    fn data(&self) -> String {
        self.pgdata.display().to_string()
    }
}

fn unusable(path: &Path) -> impl FnOnce(io::Error) -> PostmasterError + use<> {
    let path = path.to_owned();
    |source| PostmasterError::Io { path, source }
}

fn remove(path: &Path) -> Result<(), PostmasterError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(PostmasterError::Io { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
