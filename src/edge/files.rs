//! Files written whole or not at all: beside, fsync, rename.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Write},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot read {path}", path = .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot write {path}; the old content is untouched", path = .path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(
        "{path} may be read by others (mode {mode:o}); run: chmod 600 {path}",
        path = .path.display()
    )]
    Exposed { path: PathBuf, mode: u32 },
    #[error("{path} is empty; expected one line with the secret", path = .path.display())]
    Empty { path: PathBuf },
}

/// Reads a text file.
pub fn read(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(|source| FileError::Read { path: path.to_owned(), source })
}

/// Reads a secret: one line from a file that only its owner can read.
///
/// # Errors
/// [`FileError::Exposed`] when group or others have any right to the file.
pub fn read_secret(path: &Path) -> Result<String, FileError> {
    let unreadable = |source| FileError::Read { path: path.to_owned(), source };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(FileError::Exposed { path: path.to_owned(), mode });
    }
    let secret = read(path)?.trim().to_owned();
    if secret.is_empty() {
        return Err(FileError::Empty { path: path.to_owned() });
    }
    Ok(secret)
}

/// Replaces the content of `path` so that a reader, or a crash, sees the old or the new text.
///
/// Mode and owner of an existing file are kept; a new one gets mode 0640 and, when `owner` is given,
/// that user and group. No link is followed: others may write into the directory.
pub fn replace(
    path: &Path,
    text: impl AsRef<[u8]>,
    owner: Option<(u32, u32)>,
) -> Result<(), FileError> {
    let beside = beside(path);
    let written = write_beside(path, &beside, text.as_ref(), owner);
    if written.is_err() {
        // The error matters more than a leftover that the next write overwrites.
        let _ = fs::remove_file(&beside);
    }
    written.map_err(|source| FileError::Write { path: path.to_owned(), source })
}

fn write_beside(
    path: &Path,
    beside: &Path,
    text: &[u8],
    owner: Option<(u32, u32)>,
) -> io::Result<()> {
    let old = fs::metadata(path).ok();
    // What an earlier write left there when it was cut off.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o640).open(beside)?;
    file.write_all(text)?;
    if let Some(old) = &old {
        file.set_permissions(Permissions::from_mode(old.permissions().mode() & 0o777))?;
    }
    let wanted = old.map(|old| (old.uid(), old.gid())).or(owner);
    let now = file.metadata()?;
    if let Some((uid, gid)) = wanted.filter(|&wanted| wanted != (now.uid(), now.gid())) {
        std::os::unix::fs::fchown(&file, Some(uid), Some(gid))?;
    }
    file.sync_all()?;
    fs::rename(beside, path)?;
    // The rename itself must survive a power loss.
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".pgcm-new");
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_mode() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("pgbouncer.ini");
        fs::write(&path, "old").expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).expect("chmod");
        replace(&path, "new", None).expect("replaced");
        assert_eq!(read(&path).expect("readable"), "new");
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o604);
    }

    #[test]
    fn a_link_where_the_new_text_is_written_is_not_followed() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let (path, other) = (dir.path().join("auto.conf"), dir.path().join("other"));
        fs::write(&other, "of somebody else").expect("writable");
        std::os::unix::fs::symlink(&other, beside(&path)).expect("linked");
        replace(&path, "new", None).expect("replaced");
        assert_eq!(read(&path).expect("readable"), "new");
        assert!(!path.is_symlink());
        assert_eq!(read(&other).expect("readable"), "of somebody else");
    }

    #[test]
    fn a_write_that_fails_leaves_nothing_behind() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("directory");
        fs::create_dir(&path).expect("created");
        let error = replace(&path, "new", None).expect_err("a directory cannot be replaced");
        assert!(error.to_string().contains("the old content is untouched"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).expect("listed").count(), 1);
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("token");
        fs::write(&path, "secret\n").expect("writable");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("chmod");
        assert!(matches!(read_secret(&path), Err(FileError::Exposed { mode: 0o644, .. })));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("chmod");
        assert_eq!(read_secret(&path).expect("a secret"), "secret");
    }
}
