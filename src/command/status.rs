//! `pgcm status`

use std::{net::IpAddr, time::Duration};

use slog::Logger;
use tokio::task::JoinSet;

use super::{complain, parts};
use crate::{
    cli::{self, Output},
    config::Config,
    edge::{
        etcd::{EtcdError, Snapshot},
        peer::{Peer, PeerOptions, pb},
    },
    error::chain,
    exit::Exit,
    model::{
        attempt::LOCK,
        failed_action::{FailedAction, merged},
        health::{Component, Verdict},
        registration::{AGENTS, Registration},
        status::{AgentStatus, Status, problems},
    },
    work::publish::{CLUSTER, MASTER},
};

/// Bounds the question to each agent; all are asked at once.
const LIMIT: Duration = Duration::from_secs(4);

pub(super) async fn run(config: Config, args: cli::Status, _log: Logger) -> Exit {
    let snapshot = match read(&config).await {
        Ok(snapshot) => snapshot,
        Err(exit) => return exit,
    };
    let status = gather(&snapshot).await;
    match args.output {
        Output::Text => print!("{}", status.text()),
        Output::Json => match serde_json::to_string_pretty(&status) {
            Ok(json) => println!("{json}"),
            Err(error) => return complain(&error, Exit::NeedsHands),
        },
    }
    Exit::Done
}

async fn read(config: &Config) -> Result<Snapshot, Exit> {
    let etcd = parts::etcd(config).map_err(|error| complain(&error, Exit::Usage))?;
    etcd.get_prefix("/").await.map_err(|error| {
        let exit = match error {
            EtcdError::Unreachable { .. } => Exit::Unreachable,
            _ => Exit::NeedsHands,
        };
        complain(&error, exit)
    })
}

async fn gather(snapshot: &Snapshot) -> Status {
    let mut unreadable = Vec::new();
    let master = snapshot.get(MASTER).map(|entry| entry.value.clone());
    if let Some(value) = master.as_ref().filter(|value| value.parse::<IpAddr>().is_err()) {
        unreadable.push(format!(
            "{MASTER} in etcd is `{value}`, which is no address; the primary's supervise mends it"
        ));
    }
    let cluster = parse(snapshot, CLUSTER, &mut unreadable);
    let failover = parse(snapshot, LOCK, &mut unreadable);
    let mut agents = JoinSet::new();
    for entry in snapshot.entries.iter().filter(|entry| entry.key.starts_with(AGENTS)) {
        match serde_json::from_str::<Registration>(&entry.value) {
            Ok(registration) => {
                agents.spawn(ask(registration));
            }
            Err(error) => {
                unreadable.push(format!("{} in etcd is no registration: {error}", entry.key));
            }
        }
    }
    let mut agents = agents.join_all().await;
    agents.sort_by_key(|agent| (agent.registration.host.clone(), agent.registration.kind));
    let mut found = problems(master.as_deref(), cluster.as_ref(), &agents);
    found.append(&mut unreadable);
    let failed_actions = merged(agents.iter().flat_map(|agent| agent.failed_actions.clone()));
    Status { primary_address: master, cluster, agents, failover, failed_actions, problems: found }
}

fn parse<T: serde::de::DeserializeOwned>(
    snapshot: &Snapshot,
    key: &str,
    unreadable: &mut Vec<String>,
) -> Option<T> {
    let value = &snapshot.get(key)?.value;
    serde_json::from_str(value)
        .map_err(|error| unreadable.push(format!("{key} in etcd cannot be read: {error}")))
        .ok()
}

async fn ask(registration: Registration) -> AgentStatus {
    let name = format!("{} on {}", registration.kind, registration.host);
    let options = PeerOptions { connect_limit: LIMIT, token: None };
    let answer = match Peer::new(&name, &registration.api.to_string(), &options) {
        Ok(peer) => peer.health(LIMIT).await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(health) => {
            let components = health.components.into_iter().map(component).collect();
            let failed_actions = health.failed_actions.into_iter().map(failed_action).collect();
            AgentStatus { registration, components, error: None, failed_actions }
        }
        Err(error) => {
            let error = Some(chain(&error).to_string());
            let (components, failed_actions) = (Vec::new(), Vec::new());
            AgentStatus { registration, components, error, failed_actions }
        }
    }
}

fn component(told: pb::Component) -> Component {
    use pb::component::Verdict as Told;
    let verdict = match told.verdict() {
        Told::Healthy => Verdict::Healthy,
        Told::Degraded => Verdict::Degraded,
        Told::Failed | Told::Unknown => Verdict::Failed,
    };
    Component { name: told.name, verdict, message: told.message }
}

fn failed_action(told: pb::FailedAction) -> FailedAction {
    let pb::FailedAction { node, action, reason, commands } = told;
    FailedAction { node, action, reason, commands }
}
