//! How much space a file system has left.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::statvfs::statvfs;
use tokio::{task::spawn_blocking, time::timeout};

/// Less than this is called full: two WAL segments of the usual size.
const FULL_BYTES: u64 = 32 << 20;

/// What users other than root can still fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    pub free_bytes: u64,
    pub total_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    #[error("cannot tell how much space is left at {}", .path.display())]
    Refused {
        path: PathBuf,
        #[source]
        source: nix::Error,
    },
    #[error("the file system of {} did not answer within {limit:?}", .path.display())]
    TimedOut { path: PathBuf, limit: Duration },
}

/// The space of the file system that `path` is on.
///
/// # Errors
/// [`DiskError`]; a file system that hangs is not waited for longer than `limit`.
pub async fn space(path: &Path, limit: Duration) -> Result<Space, DiskError> {
    let (path, asked) = (path.to_owned(), path.to_owned());
    match timeout(limit, spawn_blocking(move || statvfs(&asked))).await {
        Ok(Ok(Ok(found))) => Ok(Space {
            free_bytes: found.blocks_available() * found.fragment_size(),
            total_bytes: found.blocks() * found.fragment_size(),
        }),
        Ok(Ok(Err(source))) => Err(DiskError::Refused { path, source }),
        Ok(Err(_)) | Err(_) => Err(DiskError::TimedOut { path, limit }),
    }
}

/// Bytes that a user other than root can still write to the file system of `path`.
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let found = statvfs(path)?;
    Ok(found.blocks_available().saturating_mul(found.fragment_size()))
}

/// The first of the directories `of` whose file system is full, resolved, with the bytes that are
/// left there. Directories that cannot be looked at are passed over.
pub fn shortage(of: &[PathBuf]) -> Option<(PathBuf, u64)> {
    of.iter().find_map(|path| {
        let path = fs::canonicalize(path).ok()?;
        let free = free_bytes(&path).ok()?;
        (free < FULL_BYTES).then_some((path, free))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn space_is_told_and_a_place_that_is_not_there_is_named() {
        let found = space(Path::new("/"), LIMIT).await.expect("there is a root");
        assert!(found.total_bytes > 0 && found.free_bytes <= found.total_bytes, "{found:?}");
        let error = space(Path::new("/no/such/place"), LIMIT).await.expect_err("not there");
        assert!(error.to_string().ends_with("/no/such/place"), "{error}");
    }
}
