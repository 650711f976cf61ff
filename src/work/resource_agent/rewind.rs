//! `pg_rewind`, so that it can be cut short anywhere.
//!
//! A mark beside the data directory holds from before the first changed byte until all of them are
//! on disk. With a mark the server is never started.

use std::time::Duration;

use slog::{info, warn};
use tokio::time::Instant;

use super::context::{Agent, Failure};
use crate::{
    edge::{
        command::Run,
        rewind_files::{RewindFileError, RewindFiles, boot_id},
    },
    error::chain,
    model::agent::{
        code::OcfCode,
        control_data::ControlData,
        rejoin::Primary,
        rewind::{Leftover, Mark, leftover, reads_from},
    },
};

/// Ends what an earlier, interrupted `pg_rewind` left, or refuses; true when there was one.
///
/// `primary` is the address of the current one.
pub(super) async fn resume<R: Run + Clone>(
    agent: &Agent<R>,
    control: &ControlData,
    primary: Option<&str>,
) -> Result<bool, Failure> {
    let files = agent.rewind_files();
    let mark = match files.mark() {
        Ok(None) => return Ok(false),
        Ok(Some(mark)) => mark,
        Err(error) => return Err(agent.unfinished(primary, &chain(&error).to_string())),
    };
    match leftover(&mark, &boot_id(), control, agent.postmaster.label()) {
        Leftover::Replaced => {
            info!(agent.log, "the data directory was replaced after an interrupted pg_rewind";
                "event" => "agent.rewind.replaced", "mark" => %files.dir().display());
            files.clear().map_err(|error| Failure::caused_by(&error))?;
            Ok(false)
        }
        Leftover::Finish => {
            info!(agent.log, "finishing a pg_rewind that was interrupted at its end";
                "event" => "agent.rewind.finish");
            agent.postmaster.sync_all(agent.left() * 3 / 4).await?;
            files.clear().map_err(|error| Failure::caused_by(&error))?;
            Ok(true)
        }
        Leftover::Repeat => agent.repeat(&mark, primary).await.map(|()| true),
        Leftover::Lost(why) => Err(agent.unfinished(primary, why)),
    }
}

impl<R: Run + Clone> Agent<R> {
    /// Rewinds this stopped node to the history of `primary`.
    pub(super) async fn rewind(
        &self,
        control: &ControlData,
        primary: &Primary,
        address: &str,
    ) -> Result<(), Failure> {
        if control.crashed() || control.was_standby() {
            // pg_rewind works on a cleanly stopped server only.
            self.postmaster.recover_alone(self.left() / 2).await?;
        }
        let source = self.conninfo(address);
        let plan =
            self.postmaster.plan_rewind(&source, self.left() / 3).await.map_err(|error| {
                let why = chain(&error);
                let reason =
                    format!("pg_rewind from {address} is not possible, nothing changed: {why}");
                Failure::new(OcfCode::Generic, reason).with(self.replace_commands(Some(address)))
            })?;
        let Some(from) = reads_from(&plan) else { return Ok(()) };
        let control = self.postmaster.control_data(self.share(4, Duration::from_secs(10))).await?;
        let files = self.rewind_files();
        match files.keep_wal(from, Instant::now() + self.left() / 4) {
            Ok(()) => {}
            Err(error @ (RewindFileError::NoRoom { .. } | RewindFileError::NoTime { .. })) => {
                warn!(self.log, "an interrupted pg_rewind could not be repeated";
                    "event" => "agent.rewind.unkept", "error" => %chain(&error));
            }
            Err(error) => return Err(Failure::caused_by(&error)),
        }
        let mark = Mark::new(&boot_id(), &control, primary.position.timeline);
        files.write(&mark).map_err(|error| Failure::caused_by(&error))?;
        self.run_rewind(address).await
    }

    /// Runs `pg_rewind` under the mark, and takes the mark away when all is on disk.
    async fn run_rewind(&self, address: &str) -> Result<(), Failure> {
        let source = self.conninfo(address);
        if let Err(error) = self.postmaster.rewind(&source, self.left() * 3 / 4).await {
            return Err(self.unfinished(Some(address), &chain(&error).to_string()));
        }
        self.rewind_files().clear().map_err(|error| Failure::caused_by(&error))
    }

    /// Runs an interrupted `pg_rewind` once more, from the same timeline: what the first run copied
    /// must be a part of what the second one copies.
    async fn repeat(&self, mark: &Mark, primary: Option<&str>) -> Result<(), Failure> {
        let Some(address) = primary else {
            return Err(self.unfinished(None, "there is no primary to repeat it from"));
        };
        if !self.parameters.rewind {
            return Err(self.unfinished(primary, "the parameter rewind is false"));
        }
        let remote = self.remote(address, self.share(6, Duration::from_secs(5)));
        let found = remote.describe().await;
        let found = found.map_err(|error| self.unfinished(primary, &chain(&error).to_string()))?;
        if found.system != mark.system || found.position.timeline != mark.source_timeline {
            let why = format!(
                "the primary has gone from timeline {} to {} since",
                mark.source_timeline, found.position.timeline
            );
            return Err(self.unfinished(primary, &why));
        }
        info!(self.log, "repeating an interrupted pg_rewind"; "event" => "agent.rewind.repeat",
            "primary" => address, "timeline" => found.position.timeline);
        self.rewind_files().put_wal_back().map_err(|error| Failure::caused_by(&error))?;
        self.run_rewind(address).await
    }

    pub(super) fn rewind_files(&self) -> RewindFiles<'_> {
        RewindFiles::beside(&self.parameters.pgdata, &self.postmaster.user)
    }

    /// The refusal to start what an interrupted `pg_rewind` left.
    fn unfinished(&self, primary: Option<&str>, why: &str) -> Failure {
        Failure::new(
            OcfCode::Generic,
            format!("an unfinished pg_rewind left this node unusable, see `pgcm status`: {why}"),
        )
        .with(self.replace_commands(primary))
    }
}
