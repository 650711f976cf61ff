//! The resource agent's last failure on this node, in a file that supervise reads.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::files;
use crate::model::failed_action::FailedAction;

/// Where resource agents keep what need not survive a boot.
pub const STATE_DIR: &str = "/run/resource-agents";

fn path(dir: &Path, resource: &str) -> PathBuf {
    dir.join(format!("pgcm-{resource}.failure"))
}

/// Keeps `failure` until the next one, or until [`forget`]. Only root and `reader`, user and group, can read it: its
/// commands may hold a password.
pub fn keep(
    dir: &Path,
    resource: &str,
    failure: &FailedAction,
    reader: Option<(u32, u32)>,
) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    let text = serde_json::to_string(failure)?;
    let path = path(dir, resource);
    if fs::read_to_string(&path).is_ok_and(|old| old == text) {
        return Ok(());
    }
    // One that is replaced would keep its owner.
    forget(dir, resource);
    files::replace(&path, &text, reader).map_err(io::Error::other)
}

/// Forgets the last failure.
pub fn forget(dir: &Path, resource: &str) {
    // A note that stays is shown only together with a failure that Pacemaker still holds.
    let _ = fs::remove_file(path(dir, resource));
}

/// The last failure, if the file is there and can be read.
pub fn read(dir: &Path, resource: &str) -> Option<FailedAction> {
    serde_json::from_str(&fs::read_to_string(path(dir, resource)).ok()?).ok()
}
