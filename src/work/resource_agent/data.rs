//! Before a start: are these the files of one server?

use std::time::Duration;

use slog::info;
use tokio::time::{Instant, sleep};

use super::context::{Agent, Failure};
use crate::{
    edge::{command::Run, postmaster::PostmasterError},
    model::agent::{backup::unusable, code::OcfCode, control_data::ControlData},
};

/// Reads the control file of a data directory that can be started.
///
/// A base backup that is half there, or that has lost its label, is refused: it would start, and
/// be torn. `primary` is named in the commands.
pub(super) async fn control<R: Run + Clone>(
    agent: &Agent<R>,
    primary: Option<&str>,
) -> Result<ControlData, Failure> {
    until_made(agent).await?;
    let data = agent.parameters.pgdata.display();
    if let Some(why) = unusable(agent.postmaster.backup_files()) {
        let reason = format!("{data} is {why}; make it anew, commands in `pgcm status`");
        return Err(Failure::new(OcfCode::Generic, reason).with(agent.replace_commands(primary)));
    }
    match agent.postmaster.control_data(agent.share(4, Duration::from_secs(10))).await {
        Ok(control) => Ok(control),
        Err(error @ (PostmasterError::ControlDamaged | PostmasterError::Exit { .. })) => {
            let why = crate::error::chain(&error);
            let reason =
                format!("{data} is damaged, make it anew, commands in `pgcm status`: {why}");
            Err(Failure::new(OcfCode::Generic, reason).with(agent.replace_commands(primary)))
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the files are those of one server that crashed, so that it can recover where it is.
pub(super) async fn crashed_whole<R: Run + Clone>(agent: &Agent<R>) -> bool {
    // With a mark the control file does not say "crashed", but nobody has to rely on it.
    let marked = !matches!(agent.rewind_files().mark(), Ok(None));
    !marked && control(agent, None).await.is_ok_and(|control| control.crashed())
}

/// Waits for a pg_rewind or pg_basebackup that still writes here, such as one whose action was killed.
///
/// A pg_basebackup that is killed leaves a process behind that goes on receiving WAL for ever.
async fn until_made<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    let deadline = Instant::now() + agent.left() / 3;
    let mut told = false;
    while let Some((program, pid)) = agent.postmaster.maker() {
        if Instant::now() >= deadline {
            return Err(Failure::new(
                OcfCode::Generic,
                format!(
                    "{program} (process {pid}) still writes to {}; let it end, or end it",
                    agent.parameters.pgdata.display()
                ),
            )
            .with(vec![format!("kill {pid}"), agent.cleanup_command()]));
        }
        if !told {
            info!(agent.log, "waiting for a program that makes the data directory";
                "event" => "agent.start.maker", "program" => &program, "pid" => pid);
            told = true;
        }
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

impl<R: Run + Clone> Agent<R> {
    /// How a person replaces the data directory by a copy of the primary's, keeping the old one.
    pub(super) fn replace_commands(&self, primary: Option<&str>) -> Vec<String> {
        let data = self.parameters.pgdata.display();
        let user = &self.parameters.pgdba;
        vec![
            format!("mv {data} {data}.old"),
            format!("install -d -o {user} -m 700 {data}"),
            format!(
                "runuser -u {user} -- {program} -D {data} -X stream -c fast -d \"{source}\"",
                program = self.postmaster.program("pg_basebackup"),
                source = self.backup_conninfo(primary.unwrap_or("PRIMARY")),
            ),
            self.cleanup_command(),
        ]
    }

    /// How a person lets Pacemaker try again.
    pub(super) fn cleanup_command(&self) -> String {
        let resource = &self.parameters.resource;
        format!("crm_resource --cleanup --resource {resource} --node {}", self.node)
    }
}
