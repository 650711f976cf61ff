//! Which processes there are.

use std::fs;

/// Their IDs, as `/proc` lists them now; none where it is not mounted.
pub fn pids() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}
