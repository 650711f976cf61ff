//! What is said of a failed action: whole sentences, and a note for `pgcm status`.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use slog::{Logger, warn};

use super::context::Failure;
use crate::{
    edge::{disk, failure_note, identity::Identity},
    model::{agent::parameters::Parameters, failed_action::FailedAction},
};

/// Says that a disk is full, where one is: that explains most of what failed with it.
pub(super) fn complete(env: &BTreeMap<String, String>, failure: Failure) -> Failure {
    let reason = failure.reason.replace('\n', " ");
    let reason = match Parameters::from_environment(env).ok().and_then(|of| shortage(&of)) {
        Some(full) => format!("{full}: {reason}"),
        None => reason,
    };
    Failure { reason, ..failure }
}

fn shortage(parameters: &Parameters) -> Option<String> {
    let config = parameters.config_file();
    let places = [
        parameters.in_pgdata("pg_wal"),
        parameters.pgdata.clone(),
        config.parent().unwrap_or(Path::new("/")).to_owned(),
    ];
    let (path, free) = disk::shortage(&places)?;
    Some(format!("no space left on {} ({} MiB free), free some", path.display(), free >> 20))
}

/// Keeps the failure for supervise, which runs as the user of Postgres, with its commands.
pub(super) fn keep(action: &str, env: &BTreeMap<String, String>, failure: &Failure, log: &Logger) {
    let note = FailedAction {
        node: env.get("OCF_RESKEY_CRM_meta_on_node").cloned().unwrap_or_default(),
        action: action.to_owned(),
        reason: failure.reason.clone(),
        commands: failure.commands.clone(),
    };
    let parameters = Parameters::from_environment(env).ok();
    let reader = parameters.and_then(|of| Identity::of(&of.pgdba).ok());
    let reader = reader.map(|user| (user.uid, user.gid));
    let kept = failure_note::keep(&state_dir(env), resource(env), &note, reader);
    if let Err(error) = kept {
        warn!(log, "cannot keep the reason for pgcm status"; "event" => "agent.action.note",
            "error" => %error);
    }
}

/// Forgets the last failure.
pub(super) fn forget(env: &BTreeMap<String, String>) {
    failure_note::forget(&state_dir(env), resource(env));
}

fn resource(env: &BTreeMap<String, String>) -> &str {
    let instance = env.get("OCF_RESOURCE_INSTANCE").map_or("Postgresql", String::as_str);
    instance.split(':').next().unwrap_or(instance)
}

/// Where this and other agents keep what need not survive a boot.
pub(super) fn state_dir(env: &BTreeMap<String, String>) -> PathBuf {
    env.get("HA_RSCTMP").map_or_else(|| PathBuf::from(failure_note::STATE_DIR), PathBuf::from)
}
