//! What is kept beside the data directory while `pg_rewind` works: the mark that it has begun, and
//! the WAL that it empties first. Inside, `pg_rewind` would remove both.

use std::{
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, chown},
    path::{Path, PathBuf},
};

use tokio::time::Instant;

use super::{
    disk::free_bytes,
    files::{self, FileError},
    identity::Identity,
};
use crate::model::agent::{
    lsn::Lsn,
    rewind::{Mark, needed},
};

/// Room that has to be left after the WAL was copied.
const SPARE_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum RewindFileError {
    #[error("cannot keep what pg_rewind needs in {path}", path = .path.display())]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot mark the begin of pg_rewind")]
    Mark(#[source] FileError),
    #[error("{path} is no mark of the agent", path = .path.display())]
    Strange { path: PathBuf },
    #[error("a copy of {needed} bytes of WAL does not fit beside the data directory ({free} free)")]
    NoRoom { needed: u64, free: u64 },
    #[error("no time to copy {needed} bytes of WAL")]
    NoTime { needed: u64 },
}

/// The directory `DATA.pgcm-rewind` beside the data directory `DATA`.
pub struct RewindFiles<'a> {
    pgdata: &'a Path,
    user: &'a Identity,
    dir: PathBuf,
}

impl<'a> RewindFiles<'a> {
    pub fn beside(pgdata: &'a Path, user: &'a Identity) -> Self {
        let mut name = OsString::from(pgdata.file_name().unwrap_or_default());
        name.push(".pgcm-rewind");
        Self { pgdata, user, dir: pgdata.with_file_name(name) }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The mark of a rewind that has begun and not ended.
    ///
    /// # Errors
    /// [`RewindFileError::Strange`] when there is one that cannot be understood.
    pub fn mark(&self) -> Result<Option<Mark>, RewindFileError> {
        let path = self.dir.join("mark");
        match fs::read_to_string(&path) {
            Ok(text) => Mark::parse(&text).map(Some).ok_or(RewindFileError::Strange { path }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RewindFileError::Io { path, source }),
        }
    }

    /// Writes the mark, so that it survives a power loss that begins now.
    pub fn write(&self, mark: &Mark) -> Result<(), RewindFileError> {
        self.make(&self.dir)?;
        files::replace(&self.dir.join("mark"), mark.render(), None)
            .map_err(RewindFileError::Mark)?;
        let parent = self.dir.parent().unwrap_or(Path::new("/"));
        sync(parent).map_err(|source| RewindFileError::Io { path: parent.to_owned(), source })
    }

    /// Copies the WAL that is read when `pg_rewind` begins at `from`, so that it can begin again.
    ///
    /// # Errors
    /// When there is no room for it, or no time before `deadline`; then nothing is kept.
    pub fn keep_wal(&self, from: Lsn, deadline: Instant) -> Result<(), RewindFileError> {
        let kept = self.dir.join("pg_wal");
        remove_all(&kept)?;
        let wal = self.pgdata.join("pg_wal");
        let entries = fs::read_dir(&wal).map_err(|source| io_error(&wal, source))?;
        let files: Vec<(OsString, u64)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                let size = entry.metadata().ok().filter(fs::Metadata::is_file)?.len();
                needed(entry.file_name().to_str()?, size, from).then(|| (entry.file_name(), size))
            })
            .collect();
        let total = files.iter().map(|(_, size)| size).sum();
        self.make(&self.dir)?;
        let free = free_bytes(&self.dir).map_err(|source| io_error(&self.dir, source))?;
        if free < total + SPARE_BYTES {
            return Err(RewindFileError::NoRoom { needed: total, free });
        }
        self.make(&kept)?;
        for (name, _) in &files {
            if Instant::now() >= deadline {
                remove_all(&kept)?;
                return Err(RewindFileError::NoTime { needed: total });
            }
            let copied = fs::copy(wal.join(name), kept.join(name));
            copied.map_err(|source| io_error(&kept.join(name), source))?;
        }
        Ok(())
    }

    /// Puts the kept WAL back to where the interrupted `pg_rewind` emptied it.
    pub fn put_wal_back(&self) -> Result<(), RewindFileError> {
        let kept = self.dir.join("pg_wal");
        let entries = match fs::read_dir(&kept) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(io_error(&kept, source)),
        };
        for name in entries.filter_map(|entry| Some(entry.ok()?.file_name())) {
            let target = self.pgdata.join("pg_wal").join(&name);
            let back = fs::copy(kept.join(&name), &target)
                .and_then(|_| chown(&target, Some(self.user.uid), Some(self.user.gid)));
            back.map_err(|source| io_error(&target, source))?;
        }
        Ok(())
    }

    /// Forgets the rewind: the mark first, then what was kept for another try.
    pub fn clear(&self) -> Result<(), RewindFileError> {
        let mark = self.dir.join("mark");
        match fs::remove_file(&mark).and_then(|()| sync(&self.dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(&mark, error)),
            _ => remove_all(&self.dir),
        }
    }

    fn make(&self, dir: &Path) -> Result<(), RewindFileError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|source| io_error(dir, source))
    }
}

/// This boot of the machine, or nothing that equals another.
pub fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn remove_all(dir: &Path) -> Result<(), RewindFileError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error(dir, error)),
        _ => Ok(()),
    }
}

fn io_error(path: &Path, source: io::Error) -> RewindFileError {
    RewindFileError::Io { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn emptied_wal_comes_back_and_clearing_can_be_repeated() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let pgdata = dir.path().join("main");
        let segment = pgdata.join("pg_wal/000000010000000000000003");
        fs::create_dir_all(pgdata.join("pg_wal")).expect("created");
        fs::write(&segment, "records").expect("written");
        let user = Identity::own();
        let files = RewindFiles::beside(&pgdata, &user);
        assert!(files.mark().expect("readable").is_none());
        let mark = Mark {
            boot: boot_id(),
            system: "7".to_owned(),
            checkpoint: Lsn(1),
            timeline: 1,
            source_timeline: 2,
        };
        files.keep_wal(Lsn(0), Instant::now() + Duration::from_secs(5)).expect("kept");
        files.write(&mark).expect("written");
        assert_eq!(files.mark().expect("readable"), Some(mark));
        fs::write(&segment, "").expect("emptied");
        files.put_wal_back().expect("put back");
        assert_eq!(fs::read_to_string(&segment).expect("readable"), "records");
        files.clear().expect("cleared");
        files.clear().expect("cleared again");
        assert!(!files.dir().exists() && pgdata.exists());
    }

    #[test]
    fn a_mark_that_says_nothing_is_an_error() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        fs::create_dir(dir.path().join("main.pgcm-rewind")).expect("created");
        fs::write(dir.path().join("main.pgcm-rewind/mark"), "boo").expect("written");
        let user = Identity::own();
        let found = RewindFiles::beside(&dir.path().join("main"), &user).mark();
        assert!(matches!(found, Err(RewindFileError::Strange { .. })), "{found:?}");
    }
}
