//! Traces that others left in a data directory: base backups, and programs that still make one.

use std::{fs, path::Path};

use super::{command::Run, postmaster::Postmaster, proc};
use crate::model::agent::backup::{Files, Method};

impl<R: Run> Postmaster<R> {
    /// The program, and its process, that is still making this data directory.
    pub fn maker(&self) -> Option<(String, u32)> {
        let data = self.pgdata.display().to_string();
        let makes = |pid: u32| {
            let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
            let args: Vec<_> = line.split(|&byte| byte == 0).map(String::from_utf8_lossy).collect();
            let name = Path::new(args.first()?.as_ref()).file_name()?.to_str()?.to_owned();
            let is_here = args.iter().any(|arg| arg.trim_end_matches('/').ends_with(&data));
            (["pg_rewind", "pg_basebackup"].contains(&name.as_str()) && is_here)
                .then_some((name, pid))
        };
        proc::pids().find_map(makes)
    }

    /// What the data directory holds of base backups.
    pub fn backup_files(&self) -> Files {
        let changed = |name: &str| fs::metadata(self.pgdata.join(name)).and_then(|m| m.modified());
        let never_ran = match (changed("global/pg_control"), changed("backup_manifest")) {
            (Ok(control), Ok(manifest)) => control <= manifest,
            _ => false,
        };
        Files {
            label: self.label(),
            old_label: self.has("backup_label.old"),
            manifest: self.has("backup_manifest"),
            unfinished_manifest: self.has("backup_manifest.tmp"),
            control: self.has("global/pg_control"),
            never_ran,
        }
    }

    /// How the backup was made whose `backup_label` no start has used yet.
    pub fn label(&self) -> Option<Method> {
        let text = fs::read(self.pgdata.join("backup_label")).ok()?;
        Some(Method::of_label(&String::from_utf8_lossy(&text)))
    }
}
