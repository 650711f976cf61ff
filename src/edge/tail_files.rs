//! Takes WAL beyond the end of a timeline out of the server's sight, without deleting it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, chown, fchown},
    path::{Path, PathBuf},
};

use super::identity::Identity;
use crate::model::agent::{history::History, lsn::Lsn, tail::Beyond};

#[derive(Debug, thiserror::Error)]
#[error("cannot move WAL beyond the end of its timeline aside, {path}", path = .path.display())]
pub struct TailError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The directory `pg_wal` with `pgcm-divergent` inside: on the same file system, unseen by the server
/// and by base backups.
pub struct TailFiles<'a> {
    wal: PathBuf,
    aside: PathBuf,
    user: &'a Identity,
}

impl<'a> TailFiles<'a> {
    pub fn of(pgdata: &Path, user: &'a Identity) -> Self {
        let wal = pgdata.join("pg_wal");
        Self { aside: wal.join("pgcm-divergent"), wal, user }
    }

    /// Where the segments go.
    pub fn aside(&self) -> &Path {
        &self.aside
    }

    /// The names and lengths of the files in `pg_wal`.
    pub fn list(&self) -> Result<Vec<(String, u64)>, TailError> {
        let entries = fs::read_dir(&self.wal).map_err(|source| failed(&self.wal, source))?;
        let files = entries.filter_map(|entry| {
            let entry = entry.ok()?;
            let size = entry.metadata().ok().filter(fs::Metadata::is_file)?.len();
            Some((entry.file_name().into_string().ok()?, size))
        });
        Ok(files.collect())
    }

    /// Where the timelines begin whose history is here, by their numbers.
    pub fn begins(&self) -> Result<BTreeMap<u32, Lsn>, TailError> {
        let mut begins = BTreeMap::new();
        for (name, _) in self.list()? {
            let Some(id) = name.strip_suffix(".history") else { continue };
            let text = fs::read_to_string(self.wal.join(&name)).ok();
            let history = text.and_then(|text| History::parse(&text));
            let begin = history.and_then(|history| history.begins());
            if let (Ok(timeline), Some(begin)) = (u32::from_str_radix(id, 16), begin) {
                begins.insert(timeline, begin);
            }
        }
        Ok(begins)
    }

    /// Moves a whole segment aside.
    pub fn set_whole_aside(&self, segment: &Beyond) -> Result<(), TailError> {
        self.set_aside(&Beyond { keep: 0, ..segment.clone() })
    }

    /// Whether anything is written in the file after the bytes that belong to the primary's history.
    pub fn is_written(&self, beyond: &Beyond) -> Result<bool, TailError> {
        let path = self.wal.join(&beyond.name);
        written(&path, beyond.keep).map_err(|source| failed(&path, source))
    }

    /// Moves the segment aside. One that begins before the end of its timeline leaves a copy of that
    /// part, so that recovery still finds it.
    pub fn set_aside(&self, beyond: &Beyond) -> Result<(), TailError> {
        let path = self.wal.join(&beyond.name);
        self.set_aside_from(&path, beyond).map_err(|source| failed(&path, source))
    }

    fn set_aside_from(&self, path: &Path, beyond: &Beyond) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.aside)?;
        chown(&self.aside, Some(self.user.uid), Some(self.user.gid))?;
        let kept = self.aside.join(&beyond.name);
        if beyond.keep == 0 {
            fs::rename(path, &kept)?;
        } else {
            let part = self.aside.join("part");
            self.copy_part(path, &part, beyond.keep)?;
            // The old file has two names for a moment, so that a crash here loses nothing.
            match fs::remove_file(&kept) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => fs::hard_link(path, &kept)?,
            }
            File::open(&self.aside)?.sync_all()?;
            fs::rename(&part, path)?;
        }
        File::open(&self.aside)?.sync_all()?;
        File::open(&self.wal)?.sync_all()
    }

    /// Writes the first `keep` bytes of `path` to `part`, and zeros up to the same length.
    fn copy_part(&self, path: &Path, part: &Path, keep: u64) -> io::Result<()> {
        let from = File::open(path)?;
        let size = from.metadata()?.len();
        let mut to =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(part)?;
        io::copy(&mut from.take(keep), &mut to)?;
        // Written zeros, not a hole: the server expects segments whose space it has.
        io::copy(&mut io::repeat(0).take(size.saturating_sub(keep)), &mut to)?;
        fchown(&to, Some(self.user.uid), Some(self.user.gid))?;
        to.sync_all()
    }
}

fn written(path: &Path, from: u64) -> io::Result<bool> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(from))?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer)?;
        if read == 0 {
            return Ok(false);
        }
        if buffer[..read].iter().any(|&byte| byte != 0) {
            return Ok(true);
        }
    }
}

fn failed(path: &Path, source: io::Error) -> TailError {
    TailError { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_set_aside_stays_whole_and_its_beginning_stays_in_place() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let wal = dir.path().join("pg_wal");
        fs::create_dir(&wal).expect("created");
        let user = Identity::own();
        let files = TailFiles::of(dir.path(), &user);
        let beyond =
            |name: &str, keep| Beyond { name: name.to_owned(), timeline: 1, end: Lsn(0), keep };
        let (first, second) = (beyond("first", 4), beyond("second", 0));
        // Also over what an earlier time left.
        for text in ["headtail", "headmore"] {
            fs::write(wal.join("first"), text).expect("written");
            fs::write(wal.join("second"), text).expect("written");
            assert!(files.is_written(&first).expect("readable"));
            files.set_aside(&first).expect("moved");
            files.set_aside(&second).expect("moved");
            assert_eq!(fs::read(wal.join("first")).expect("there"), b"head\0\0\0\0");
            assert!(!files.is_written(&first).expect("readable"), "nothing to do a second time");
            assert!(!wal.join("second").exists());
            for name in ["first", "second"] {
                assert_eq!(fs::read_to_string(files.aside().join(name)).expect("kept"), text);
            }
        }
        assert_eq!(files.list().expect("listed"), [("first".to_owned(), 8)]);
    }
}
