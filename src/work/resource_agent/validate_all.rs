//! `validate-all`: light by default, deep at check level 10.
//!
//! A wrong parameter is wrong on every node and was found while reading it. What is found here is
//! wrong on this node: a program that is missing, rights, or a setting that does not fit.

use std::{
    collections::BTreeMap,
    fs, io,
    net::UdpSocket,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use slog::warn;

use super::context::{Agent, Failure};
use crate::{
    edge::{
        agent_sql::SqlError,
        command::{CommandError, Run},
        identity::Identity,
        postmaster::PostmasterError,
    },
    error::chain,
    model::agent::{
        cib::Cib,
        code::OcfCode,
        condition::Process,
        control_data::ControlData,
        parameters::Parameters,
        requirements::{SETTINGS, Server, faults, major_version, version_fault},
    },
};

/// The server's programs that the agent calls.
const SERVER_PROGRAMS: [&str; 5] =
    ["postgres", "pg_controldata", "pg_rewind", "pg_waldump", "psql"];

/// How the agent runs the server's programs.
const SYSTEM_PROGRAMS: [&str; 2] = ["setpriv", "setsid"];

/// Pacemaker's programs that the agent calls.
const CLUSTER_PROGRAMS: [&str; 4] = ["cibadmin", "crm_attribute", "attrd_updater", "crm_node"];

/// Whether this node is to be looked at, and not only the parameters.
pub(super) fn is_deep(env: &BTreeMap<String, String>) -> bool {
    let level = env.get("OCF_CHECK_LEVEL").and_then(|level| level.parse::<u32>().ok());
    level.unwrap_or(0) >= 10
}

/// Looks at everything on this node that an action would stumble over, and at the primary's readiness
/// to let this node follow. Neither a cluster nor a running server is needed; what is there is asked.
///
/// # Errors
/// All that was found, in one sentence each, under the code of the first.
pub(super) async fn run<R: Run + Clone>(
    agent: &Agent<R>,
    env: &BTreeMap<String, String>,
) -> Result<OcfCode, Failure> {
    // Each of these is needed to find out the next.
    owned(&agent.parameters, &agent.postmaster.user)?;
    programs(agent, env)?;
    versions(agent).await?;
    let control = agent.postmaster.control_data(agent.share(4, Duration::from_secs(3))).await?;
    let cib = agent.attributes.query().await.unwrap_or_else(|error| {
        warn!(agent.log, "no cluster answers, looking at this node alone";
            "event" => "agent.validate.alone", "error" => %chain(&error));
        Cib::default()
    });
    let mut found = places(agent).await;
    found.extend(address(agent).await.err());
    found.extend(settings(agent, &cib, &control).await);
    found.extend(own_server(agent).await.err());
    found.extend(primary(agent, &cib, &control).await.err());
    let Some(first) = found.first() else { return Ok(OcfCode::Success) };
    let reasons: Vec<&str> = found.iter().map(|failure| failure.reason.as_str()).collect();
    Err(Failure::new(first.code, reasons.join("; ")))
}

/// Whether the data directory is there and belongs to the user of Postgres.
pub(super) fn owned(parameters: &Parameters, user: &Identity) -> Result<(), Failure> {
    let data = parameters.pgdata.display();
    let Ok(found) = fs::metadata(parameters.pgdata.join("PG_VERSION")) else {
        return Err(Failure::new(OcfCode::Installed, no_data(parameters)));
    };
    let directory = fs::metadata(&parameters.pgdata).ok();
    let mode = directory.as_ref().map_or(0, |dir| dir.mode() & 0o7777);
    if found.uid() != user.uid || directory.map(|dir| dir.uid()) != Some(user.uid) {
        return Err(Failure::new(
            OcfCode::Permission,
            format!("{data} does not belong to {0}; run: chown -R {0} {data}", user.name),
        ));
    }
    // Postgres refuses such a directory, and says so in its own log only.
    if mode & 0o027 != 0 || mode & 0o700 != 0o700 {
        return Err(Failure::new(
            OcfCode::Permission,
            format!("{data} has mode {mode:04o}, Postgres wants 0700; run: chmod 0700 {data}"),
        ));
    }
    Ok(())
}

/// What is where the data directory should be.
pub(super) fn no_data(parameters: &Parameters) -> String {
    let data = parameters.pgdata.display();
    let what = match fs::read_dir(&parameters.pgdata).map(Iterator::count) {
        Ok(0) => "is empty".to_owned(),
        Ok(_) => "has no PG_VERSION: a half-finished base backup, or no data directory".to_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => "does not exist".to_owned(),
        Err(error) => format!("cannot be read ({error})"),
    };
    format!("{data} {what}; make it with pg_basebackup from the primary")
}

/// Whether the main configuration file is there, and the user of Postgres can read it.
pub(super) async fn configured<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    let path = agent.parameters.config_file();
    usable(agent, &Place { parameter: "config", path: &path, rights: &["-r"], how: "read" }).await
}

/// A file or directory that a parameter names, and what the server's user does with it.
struct Place<'a> {
    parameter: &'static str,
    path: &'a Path,
    /// As letters of test(1).
    rights: &'static [&'static str],
    how: &'static str,
}

async fn usable<R: Run + Clone>(agent: &Agent<R>, place: &Place<'_>) -> Result<(), Failure> {
    let Place { parameter, rights, how, .. } = place;
    let path = place.path.display();
    if !place.path.exists() {
        let reason = format!("there is no {path}: make it, or set the parameter `{parameter}`");
        return Err(Failure::new(OcfCode::Arguments, reason));
    }
    let limit = agent.share(6, Duration::from_secs(5));
    match agent.postmaster.user_may(rights, place.path, limit).await {
        Ok(true) => return Ok(()),
        Ok(false) => {}
        // Postgres will say so if it may not.
        Err(PostmasterError::Command(error @ CommandError::TimedOut { .. })) => {
            warn!(agent.log, "cannot find out in time what the user of Postgres may do";
                "event" => "agent.validate.slow", "path" => %path, "error" => %error);
            return Ok(());
        }
        Err(error) => return Err(error.into()),
    }
    let user = &agent.postmaster.user.name;
    let reason =
        format!("{user} may not {how} {path} (parameter `{parameter}`): change its rights");
    Err(Failure::new(OcfCode::Permission, reason))
}

fn programs<R>(agent: &Agent<R>, env: &BTreeMap<String, String>) -> Result<(), Failure> {
    let path = env.get("PATH").map_or("/usr/bin:/bin", String::as_str);
    let in_path = || std::env::split_paths(path).collect::<Vec<PathBuf>>();
    let bindir = &agent.postmaster.bindir;
    let (dirs, place) = if bindir.as_os_str().is_empty() {
        (in_path(), "PATH".to_owned())
    } else {
        (vec![bindir.clone()], bindir.display().to_string())
    };
    let missing = |dirs: &[PathBuf], names: &[&'static str]| {
        names.iter().copied().find(|name| !dirs.iter().any(|dir| dir.join(name).exists()))
    };
    if let Some(program) = missing(&dirs, &SERVER_PROGRAMS) {
        let reason = format!(
            "{program} is not in {place}: install the server's package, or set the parameter `bindir`"
        );
        return Err(Failure::new(OcfCode::Installed, reason));
    }
    if let Some(program) = missing(&in_path(), &CLUSTER_PROGRAMS) {
        let reason = format!("{program} is not in PATH: install Pacemaker's command line tools");
        return Err(Failure::new(OcfCode::Installed, reason));
    }
    if let Some(program) = missing(&in_path(), &SYSTEM_PROGRAMS) {
        let reason = format!("{program} is not in PATH: install the package util-linux");
        return Err(Failure::new(OcfCode::Installed, reason));
    }
    Ok(())
}

async fn versions<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    let limit = agent.share(4, Duration::from_secs(3));
    let programs = major_version(&agent.postmaster.version(limit).await?);
    let file = fs::read_to_string(agent.parameters.in_pgdata("PG_VERSION")).unwrap_or_default();
    let bindir = agent.postmaster.bindir.display().to_string();
    match version_fault(major_version(&file), programs, &bindir) {
        Some(fault) => Err(Failure::new(OcfCode::Installed, fault)),
        None => Ok(()),
    }
}

/// Files and directories outside the data directory that the server's user must be able to use.
async fn places<R: Run + Clone>(agent: &Agent<R>) -> Vec<Failure> {
    let parameters = &agent.parameters;
    // A log that is not there yet is made.
    let log = parameters.logfile.as_path();
    let log = if log.exists() { log } else { log.parent().unwrap_or(log) };
    let socketdir = parameters.socketdir.as_path();
    let mut found = Vec::new();
    found.extend(configured(agent).await.err());
    for (parameter, path, rights, how) in [
        ("socketdir", socketdir, &["-w", "-x"][..], "write into"),
        ("logfile", log, &["-w"], "write"),
    ] {
        found.extend(usable(agent, &Place { parameter, path, rights, how }).await.err());
    }
    found
}

/// Whether this node has the address under which the others look for it.
async fn address<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    let address = agent.own_address().await?;
    // Binding sends nothing, and only an own address can be bound.
    match UdpSocket::bind((address, 0)) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(
            OcfCode::Arguments,
            format!("{address} is no address of this node ({error}): set the parameter `address`"),
        )),
    }
}

/// What the server would run with if it started now.
async fn settings<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    control: &ControlData,
) -> Vec<Failure> {
    let config = agent.parameters.config_file().display().to_string();
    let mut values = Vec::new();
    for setting in SETTINGS {
        let limit = agent.share(4, Duration::from_secs(3));
        match agent.postmaster.setting(setting, limit).await {
            Ok(value) => values.push(value),
            Err(error) => {
                let reason = format!(
                    "Postgres cannot read {config}, or its options in `start_opt`: {}: correct them",
                    chain(&error)
                );
                return vec![Failure::new(OcfCode::Arguments, reason)];
            }
        }
    }
    let [a, b, c, d, e] = values.as_slice() else { return Vec::new() };
    let has_run = cib.nodes.values().filter(|node| node.data_status(agent.names()).is_some());
    let server = Server {
        config: &config,
        settings: [a, b, c, d, e],
        checksums: control.checksums,
        nodes: has_run.count(),
        rewind: agent.parameters.rewind,
    };
    let found = faults(&server).into_iter();
    found.map(|fault| Failure::new(OcfCode::Arguments, fault)).collect()
}

/// Whether a running server lets the agent in.
async fn own_server<R: Run + Clone>(agent: &Agent<R>) -> Result<(), Failure> {
    if !matches!(agent.postmaster.process()?.0, Process::Running(_)) {
        return Ok(());
    }
    let asked = async {
        let limit = agent.share(4, Duration::from_secs(3));
        agent.connect(limit).await?.is_superuser().await
    };
    let user = &agent.postmaster.user.name;
    match asked.await {
        Ok(true) => Ok(()),
        Ok(false) => Err(Failure::new(
            OcfCode::Arguments,
            format!(
                "the role {user} (parameter `pgdba`) is no superuser: alter role {user} superuser"
            ),
        )),
        Err(error) => match told(&error, user, &agent.parameters.socket().display().to_string()) {
            Some(reason) => Err(Failure::new(OcfCode::Arguments, reason)),
            // Out of slots, starting, or slow: the monitor lives with that, too.
            None => Ok(()),
        },
    }
}

/// What to do about a server that does not let `user` in; `None` when it may do so later by itself.
fn told(error: &SqlError, user: &str, socket: &str) -> Option<String> {
    match error {
        SqlError::NotListening { .. } => Some(format!(
            "Postgres runs, but nothing listens at {socket}: it was started with another port or socket \
             directory than the parameters `pgport` and `socketdir` say; stop it, Pacemaker starts it"
        )),
        SqlError::Refused(refused) if refused.code()?.code().starts_with("28") => Some(format!(
            "{user} (parameter `pgdba`) is refused at {socket}: {}: pg_hba.conf needs a line such as: \
             local postgres {user} peer",
            chain(error)
        )),
        _ => None,
    }
}

/// Whether the primary, if there is one elsewhere, lets this node follow.
async fn primary<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    control: &ControlData,
) -> Result<(), Failure> {
    let primary = cib.primary_other_than(&agent.node, agent.names());
    let Some(address) = primary.and_then(|node| node.address(agent.names())) else {
        return Ok(());
    };
    let parameters = &agent.parameters;
    let (user, data) = (&parameters.repuser, parameters.pgdata.display());
    let remote = agent.remote(address, agent.share(4, Duration::from_secs(3)));
    let refused = |error: &SqlError, database: &str| {
        let reason = format!(
            "the role {user} (parameter `repuser`) cannot reach the primary: {}: look at its password \
             (parameter `primary_conninfo_opt`) and, in pg_hba.conf on {address}, for a line that \
             lets it in from this node: host {database} {user} ADDRESS scram-sha-256",
            chain(error)
        );
        Failure::new(OcfCode::Arguments, reason)
    };
    let (system, _) = remote.identify().await.map_err(|error| refused(&error, "replication"))?;
    if system != control.system {
        let reason = format!(
            "{data} has the system identifier {}, the primary {address} has {system}: they never were \
             one database; replace the directory by a pg_basebackup from {address}",
            control.system
        );
        return Err(Failure::new(OcfCode::Arguments, reason));
    }
    if parameters.rewind
        && !remote.may_rewind().await.map_err(|error| refused(&error, "postgres"))?
    {
        let reason = format!(
            "rewind=true, but the role {user} (parameter `repuser`) may not execute pg_ls_dir, \
             pg_stat_file and pg_read_binary_file on {address}: grant execute on them to {user}"
        );
        return Err(Failure::new(OcfCode::Arguments, reason));
    }
    Ok(())
}
