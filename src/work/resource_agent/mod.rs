//! The resource agent `ocf:pgcm:pgsql`: one file per OCF action.
//!
//! Every action is idempotent, ends within the operation's own timeout, and leaves the data
//! directory where it is. What each proves before it returns is in `resource-agents/README.md`.

mod context;
mod data;
mod demote;
mod election;
mod meta_data;
mod monitor;
mod notify;
mod primary;
mod promote;
mod rejoin;
mod rewind;
mod shutdown;
mod slot_settings;
mod slots;
mod standby;
mod start;
mod stop;
mod tail;
mod told;
mod validate_all;

use std::{collections::BTreeMap, time::Duration};

use slog::{Logger, error, info};
use tokio::time::Instant;

use self::context::{Agent, Failure};
use crate::{
    edge::{
        command::{Processes, Run},
        streams,
    },
    model::{
        agent::{
            code::OcfCode,
            condition::Process,
            parameters::{Parameters, budget, is_notified, is_probe},
        },
        span::millis,
    },
};

/// Runs one OCF action with the environment that Pacemaker gave.
///
/// Why an action failed goes to stderr as `ocf-exit-reason:`, for Pacemaker to show.
pub async fn run(action: &str, env: &BTreeMap<String, String>, log: &Logger) -> OcfCode {
    let begun = Instant::now();
    let result = match action {
        "meta-data" => {
            let printed = streams::out(format_args!("{}\n", meta_data::document()));
            return if printed.is_ok() { OcfCode::Success } else { OcfCode::Generic };
        }
        "start" | "stop" | "monitor" | "status" | "promote" | "demote" | "notify"
        | "validate-all" => dispatch(action, env, log, begun).await,
        _ => Err(Failure::new(OcfCode::Unimplemented, format!("there is no action {action}"))),
    };
    let elapsed_ms = millis(begun.elapsed());
    match result {
        Ok(code) => {
            if action == "start" {
                told::forget(env);
            }
            if !matches!(action, "monitor" | "status" | "validate-all") {
                info!(log, "action done"; "event" => "agent.action.end", "action" => action,
                    "code" => code.exit_code(), "elapsed_ms" => elapsed_ms);
            }
            code
        }
        Err(failure) => {
            let failure = told::complete(env, failure);
            error!(log, "action failed"; "event" => "agent.action.fail", "action" => action,
                "code" => failure.code.exit_code(), "reason" => &failure.reason,
                "commands" => failure.commands.join(" && "), "elapsed_ms" => elapsed_ms);
            told::keep(action, env, &failure, log);
            streams::aside(format_args!("ocf-exit-reason:{}", failure.reason));
            failure.code
        }
    }
}

async fn dispatch(
    action: &str,
    env: &BTreeMap<String, String>,
    log: &Logger,
    begun: Instant,
) -> Result<OcfCode, Failure> {
    let parameters = Parameters::from_environment(env)
        .map_err(|error| Failure::new(OcfCode::Configured, error.to_string()))?;
    let validates = action == "validate-all";
    if validates && !validate_all::is_deep(env) {
        return Ok(OcfCode::Success);
    }
    // A signal to the postmaster and a last look must fit in after the budget's inner limits.
    let deadline = begun + budget(env).max(Duration::from_millis(500));
    let has_data = parameters.pgdata.join("PG_VERSION").exists();
    let agent = Agent::new(env, parameters.clone(), Processes, deadline, log).await;
    if !validates && !has_data && !agent.as_ref().is_ok_and(runs) {
        return without_data(action, &parameters, agent.ok().as_ref()).await;
    }
    let agent = agent?;
    match action {
        "start" => start::run(&agent).await,
        "stop" => stop::run(&agent).await,
        "promote" => promote::run(&agent, is_notified(env)).await,
        "demote" => demote::run(&agent).await,
        "notify" => notify::run(&agent, env).await,
        "validate-all" => validate_all::run(&agent, env).await,
        _ => monitor::run(&agent, is_probe(env), is_notified(env)).await,
    }
}

/// Whether a server, or a part of one, runs in a data directory that may be gone.
fn runs<R: Run + Clone>(agent: &Agent<R>) -> bool {
    !matches!(agent.postmaster.process(), Ok((Process::Gone, _)))
}

/// Without a data directory, and with nothing running in it, only starting is an error.
async fn without_data<R: Run + Clone>(
    action: &str,
    parameters: &Parameters,
    agent: Option<&Agent<R>>,
) -> Result<OcfCode, Failure> {
    let missing = async |code| {
        let commands = match agent {
            Some(agent) => copy_commands(agent).await,
            None => Vec::new(),
        };
        Err(Failure::new(code, validate_all::no_data(parameters)).with(commands))
    };
    match action {
        "stop" | "demote" | "notify" => Ok(OcfCode::Success),
        "monitor" | "status" => Ok(OcfCode::NotRunning),
        "promote" => missing(OcfCode::NotRunning).await,
        _ => missing(OcfCode::Installed).await,
    }
}

async fn copy_commands<R: Run + Clone>(agent: &Agent<R>) -> Vec<String> {
    let cib = agent.attributes.query().await.unwrap_or_default();
    let primary = cib.primary_other_than(&agent.node, agent.names());
    agent.replace_commands(primary.and_then(|node| node.address(agent.names())))
}
