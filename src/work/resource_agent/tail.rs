//! A standby that holds WAL beyond the end of an older timeline waits for ever for the rest of it.

use slog::info;

use super::context::{Agent, Failure};
use crate::{
    edge::{
        agent_sql::State,
        command::Run,
        tail_files::{TailError, TailFiles},
    },
    model::agent::{
        control_data::ControlData,
        rejoin::Primary,
        tail::{Beyond, beyond, first_segments, may_do_without},
    },
};

impl<R: Run + Clone> Agent<R> {
    /// What this running standby holds, and has not replayed, beyond the end of a timeline of the
    /// primary's past.
    pub(super) fn received_beyond(
        &self,
        state: &State,
        primary: &Primary,
    ) -> Result<Option<Beyond>, Failure> {
        let found = self.written_beyond(primary)?;
        Ok(found
            .into_iter()
            .find(|beyond| state.replayed <= beyond.end && beyond.end < state.position))
    }

    /// Moves aside what keeps this stopped node from going on along the primary's history.
    pub(super) fn set_tail_aside(
        &self,
        control: &ControlData,
        primary: &Primary,
    ) -> Result<(), Failure> {
        let files = self.tail_files();
        for beyond in self.written_beyond(primary)? {
            if !may_do_without(control, beyond.end) {
                continue;
            }
            files.set_aside(&beyond).map_err(|error| Failure::caused_by(&error))?;
            info!(self.log, "moved aside WAL beyond where the primary left its timeline";
                "event" => "agent.rejoin.aside", "segment" => &beyond.name,
                "end" => %beyond.end, "to" => %files.aside().display());
        }
        Ok(())
    }

    /// Moves aside the segments that a standby has made for a newer timeline and that hold nothing of it:
    /// with them this stopped server would end at every start.
    pub(super) fn set_hollow_aside(&self) -> Result<(), Failure> {
        let files = self.tail_files();
        let look = || Ok::<_, TailError>(first_segments(&files.list()?, &files.begins()?));
        for segment in look().map_err(|error| Failure::caused_by(&error))? {
            if files.is_written(&segment).map_err(|error| Failure::caused_by(&error))? {
                continue;
            }
            files.set_whole_aside(&segment).map_err(|error| Failure::caused_by(&error))?;
            info!(self.log, "moved aside a segment that holds nothing of its timeline";
                "event" => "agent.start.hollow", "segment" => &segment.name,
                "begin" => %segment.end, "to" => %files.aside().display());
        }
        Ok(())
    }

    fn written_beyond(&self, primary: &Primary) -> Result<Vec<Beyond>, Failure> {
        let files = self.tail_files();
        let listed = files.list().map_err(|error| Failure::caused_by(&error))?;
        let mut written = Vec::new();
        for beyond in beyond(&listed, primary) {
            if files.is_written(&beyond).map_err(|error| Failure::caused_by(&error))? {
                written.push(beyond);
            }
        }
        Ok(written)
    }

    fn tail_files(&self) -> TailFiles<'_> {
        TailFiles::of(&self.parameters.pgdata, &self.postmaster.user)
    }
}
