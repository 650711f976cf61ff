//! Room on file systems.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::statvfs::statvfs;

/// Less than this is called full: two WAL segments.
const FULL_BYTES: u64 = 32 << 20;

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
