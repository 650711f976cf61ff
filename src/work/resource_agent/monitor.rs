//! `monitor`: what the server is, and the duties of that role.

use std::time::Duration;

use slog::{debug, warn};

use super::{
    context::{Agent, Failure},
    primary, standby,
};
use crate::{
    edge::{
        agent_sql::{Local, State},
        command::Run,
    },
    error::chain,
    model::agent::{
        code::OcfCode,
        condition::{Answer, Condition, Process, condition, monitor_code},
    },
};

/// Tells the server's role and, unless this is a probe, does what the role demands.
///
/// A server that does not answer in time keeps the role that its files show.
pub(super) async fn run<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    is_probe: bool,
    is_notified: bool,
) -> Result<OcfCode, Failure> {
    let (process, _) = agent.postmaster.process()?;
    if !matches!(process, Process::Running(_)) {
        return not_running(process);
    }
    let asked = look(agent).await;
    let answer = match &asked {
        Some((_, state)) if state.in_recovery => Answer::Standby,
        Some(_) => Answer::Primary,
        None => agent.answer_from_files(process).await,
    };
    let found = condition(process, answer, agent.postmaster.has("standby.signal"));
    debug!(agent.log, "looked at the server"; "event" => "agent.monitor.look",
        "condition" => ?found, "answer" => ?answer);
    if is_probe && found == Condition::Primary {
        primary::keep_role(agent).await;
    }
    if let (false, Some((local, state))) = (is_probe, asked) {
        let duties = match found {
            Condition::Primary => primary::duties(agent, &local, state).await,
            _ => standby::duties(agent, &local, state, is_notified).await,
        };
        if let Err(failure) = duties {
            if found == Condition::Standby {
                return Err(failure);
            }
            warn!(agent.log, "cannot keep replication in order, the next monitor tries again";
                "event" => "agent.monitor.duties", "error" => failure.reason);
        }
    }
    Ok(monitor_code(found))
}

fn not_running(process: Process) -> Result<OcfCode, Failure> {
    let code = monitor_code(condition(process, Answer::Busy, false));
    if code == OcfCode::NotRunning {
        return Ok(code);
    }
    Err(Failure::new(code, "the postmaster is gone, but some of its backends still run"))
}

/// Asks the server; `None` when it does not answer within a part of the budget.
async fn look<R: Run + Clone>(agent: &Agent<R>) -> Option<(Local, State)> {
    let limit = agent.share(4, Duration::from_secs(5));
    let asked = async {
        let local = agent.connect(limit).await?;
        let state = local.state().await?;
        Ok::<_, crate::edge::agent_sql::SqlError>((local, state))
    };
    match asked.await {
        Ok(answer) => Some(answer),
        Err(error) => {
            warn!(agent.log, "the server does not answer, judging by its files";
                "event" => "agent.monitor.busy", "error" => %chain(&error));
            None
        }
    }
}
