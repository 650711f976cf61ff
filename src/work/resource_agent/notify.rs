//! `notify`: what the next monitor would do, at once. Nothing relies on it.

use std::{collections::BTreeMap, time::Duration};

use slog::warn;

use super::{
    context::{Agent, Failure},
    primary, standby,
};
use crate::{edge::command::Run, model::agent::code::OcfCode};

/// After a promotion elsewhere the standby is repointed; after any change the primary looks at its
/// standbys. Always succeeds: Pacemaker ignores the result, and the monitor is the truth.
pub(super) async fn run<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    env: &BTreeMap<String, String>,
) -> Result<OcfCode, Failure> {
    let get = |name: &str| {
        env.get(&format!("OCF_RESKEY_CRM_meta_notify_{name}")).map_or("", String::as_str)
    };
    if get("type") != "post" {
        return Ok(OcfCode::Success);
    }
    if let Err(failure) = look(agent).await {
        warn!(agent.log, "cannot act on the notification, the next monitor will";
            "event" => "agent.notify.fail", "operation" => get("operation"),
            "error" => failure.reason);
    }
    Ok(OcfCode::Success)
}

async fn look<R: Run + Clone + 'static>(agent: &Agent<R>) -> Result<(), Failure> {
    let local = agent.connect(agent.share(3, Duration::from_secs(3))).await?;
    let state = local.state().await?;
    if !state.in_recovery {
        return primary::duties(agent, &local, state).await;
    }
    let cib = agent.attributes.query().await?;
    if let Some(primary) = cib.primary_other_than(&agent.node, agent.names()) {
        standby::repoint(agent, primary, &state.primary_conninfo)?;
    }
    Ok(())
}
