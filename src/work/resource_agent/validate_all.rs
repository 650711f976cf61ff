//! `validate-all`: light by default, deep at check level 10.

use std::{collections::BTreeMap, fs, os::unix::fs::MetadataExt};

use super::context::Failure;
use crate::{
    edge::{identity::Identity, postmaster::find_bindir},
    error::chain,
    model::agent::{code::OcfCode, parameters::Parameters},
};

/// The parameters were read already; at `OCF_CHECK_LEVEL` 10 this node is looked at as well.
pub(super) fn run(
    env: &BTreeMap<String, String>,
    parameters: &Parameters,
) -> Result<OcfCode, Failure> {
    let level = env.get("OCF_CHECK_LEVEL").and_then(|level| level.parse::<u32>().ok());
    if level.unwrap_or(0) < 10 {
        return Ok(OcfCode::Success);
    }
    let user = Identity::of(&parameters.pgdba)
        .map_err(|error| Failure::new(OcfCode::Installed, chain(&error).to_string()))?;
    owned(parameters, &user)?;
    let bindir = find_bindir(parameters.bindir.as_deref(), &parameters.pgdata);
    for program in ["postgres", "pg_ctl", "pg_controldata", "pg_rewind", "pg_waldump", "psql"] {
        let in_path = || {
            let path = env.get("PATH").map_or("/usr/bin:/bin", String::as_str).to_owned();
            std::env::split_paths(&path).any(|dir| dir.join(program).exists())
        };
        let found = match bindir.as_os_str().is_empty() {
            true => in_path(),
            false => bindir.join(program).exists(),
        };
        if !found {
            let place = if bindir.as_os_str().is_empty() {
                "PATH".to_owned()
            } else {
                bindir.display().to_string()
            };
            let reason = format!("{program} is not in {place} (parameter `bindir`)");
            return Err(Failure::new(OcfCode::Installed, reason));
        }
    }
    if !parameters.config_file().exists() {
        let reason =
            format!("there is no {} (parameter `config`)", parameters.config_file().display());
        return Err(Failure::new(OcfCode::Installed, reason));
    }
    Ok(OcfCode::Success)
}

/// Whether the data directory is there and belongs to the user of Postgres.
pub(super) fn owned(parameters: &Parameters, user: &Identity) -> Result<(), Failure> {
    let data = parameters.pgdata.display();
    let Ok(found) = fs::metadata(parameters.pgdata.join("PG_VERSION")) else {
        return Err(Failure::new(
            OcfCode::Installed,
            format!("{data} is no data directory; make it with pg_basebackup from the primary"),
        ));
    };
    let directory = fs::metadata(&parameters.pgdata).map(|dir| dir.uid());
    if found.uid() != user.uid || directory.ok() != Some(user.uid) {
        return Err(Failure::new(
            OcfCode::Permission,
            format!("{data} does not belong to {0}; run: chown -R {0} {data}", user.name),
        ));
    }
    Ok(())
}
