//! What replication slots need in the configuration, and in connection strings.

use nix::sys::signal::Signal;
use slog::info;

use super::context::{Agent, Failure};
use crate::{
    edge::command::Run,
    model::agent::{
        conninfo,
        settings::{Settings, SlotSettings},
        slots::slot_name,
    },
};

/// The first version whose standbys copy logical slots.
const COPIES_LOGICAL: u32 = 17;

impl<R: Run + Clone> Agent<R> {
    /// The settings of slots, as far as they are known before the server runs.
    ///
    /// Copying logical slots comes later: some servers of version 17 end when they are told so
    /// while `wal_level` does not allow it.
    pub(super) fn slot_settings(&self) -> Option<SlotSettings> {
        self.parameters.replication_slots.then(|| SlotSettings {
            own: slot_name(&self.node).unwrap_or_default(),
            wal_limit: self.parameters.slot_wal_limit.clone(),
            feedback: self.copies_logical(),
            ..SlotSettings::default()
        })
    }

    /// The settings of slots, once the running server has shown what it allows.
    pub(super) fn slot_settings_seen(
        &self,
        copies_logical: bool,
        ahead_of_logical: Vec<String>,
    ) -> Option<SlotSettings> {
        let known = self.slot_settings()?;
        Some(SlotSettings { copies_logical, ahead_of_logical, ..known })
    }

    /// The operator's connection options, with the database that copying logical slots needs.
    pub(super) fn conninfo_options(&self) -> String {
        let options = &self.parameters.conninfo_options;
        if self.copies_logical() && conninfo::get(options, "dbname").is_none() {
            return format!("{options} dbname=postgres");
        }
        options.clone()
    }

    pub(super) fn copies_logical(&self) -> bool {
        self.parameters.sync_logical_slots && self.postmaster.major_version() >= COPIES_LOGICAL
    }

    /// Writes the settings and lets the server read them, where they differ from the file's.
    pub(super) fn settle_slots(&self, wanted: Option<SlotSettings>) -> Result<(), Failure> {
        let settings = self.postmaster.settings();
        if settings.slots == wanted {
            return Ok(());
        }
        info!(self.log, "changing the settings of slots"; "event" => "agent.slots.settings",
            "settings" => ?wanted);
        self.postmaster.write_settings(&Settings { slots: wanted, ..settings })?;
        if let (_, Some(pid)) = self.postmaster.process()? {
            self.postmaster.signal(pid, Signal::SIGHUP)?;
        }
        Ok(())
    }

    /// How to make a standby anew from the Postgres at `address`; the slot keeps the WAL meanwhile.
    pub(super) fn rebuild(&self, node: &str, address: &str) -> String {
        format!(
            "on {node}, with the resource stopped there, move {data} away and run as {user}: \
             {program} -D {data} -S {slot} -d \"{upstream}\"",
            data = self.parameters.pgdata.display(),
            user = self.parameters.pgdba,
            program = self.postmaster.program("pg_basebackup"),
            slot = slot_name(node).unwrap_or_default(),
            upstream = self.backup_conninfo(address),
        )
    }
}
