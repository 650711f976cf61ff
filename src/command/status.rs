//! `pgcm status`

use std::{net::IpAddr, sync::Arc, time::Duration};

use serde_json::json;
use slog::Logger;
use tokio::task::JoinSet;

use super::{complain, parts, say, say_json, watch};
use crate::{
    cli::{self, Output},
    config::Config,
    edge::{
        clock,
        etcd::{Etcd, EtcdError, Snapshot},
        peer::{Peer, PeerOptions, pb},
    },
    error::chain,
    exit::Exit,
    model::{
        attempt::LOCK,
        cluster::ClusterView,
        failed_action::{FailedAction, merged},
        health::{Component, Verdict},
        history::{Change, HISTORY},
        last_failover::LastFailover,
        problem::{Seen, problems, silent_member},
        registration::{AGENTS, Registration},
        status::{AgentStatus, Status},
        status_check::{Question, answer, missing},
    },
    work::publish::{CLUSTER, MASTER},
};

/// Bounds the question to each agent; all are asked at once.
const LIMIT: Duration = Duration::from_secs(4);
/// A view that is older than this, or than some polls, is not made anew any more; supervise does that
/// every ten seconds.
const OLDEST_VIEW: Duration = Duration::from_secs(30);
/// Changes of the primary among which the last planned one is looked for.
const RECENT: u32 = 5;

pub(super) async fn run(config: Config, args: cli::Status, log: Logger) -> Exit {
    let etcd = match parts::etcd(&config) {
        Ok(etcd) => etcd,
        Err(error) => return complain(&error, Exit::Usage),
    };
    if args.watch {
        return watch::run(etcd, &config, args.output, log).await;
    }
    let snapshot = match read(&etcd).await {
        Ok(snapshot) => snapshot,
        Err(error) => return complain(&error, Exit::Unreachable),
    };
    let answers = match args.check {
        // Neither depends on the other members.
        Some(cli::Check::Primary | cli::Check::Standby) => {
            Answers { agents: ask_agents(&snapshot).await, silent_members: Vec::new() }
        }
        _ => ask_all(&etcd, &snapshot).await,
    };
    let status = assemble(&snapshot, answers, &config);
    if let Some(asked) = args.check {
        return check(&config, &status, asked, args.node, args.output);
    }
    match args.output {
        Output::Text => say(status.text(), Exit::Done),
        Output::Json => say_json(&status, Exit::Done),
    }
}

fn check(
    config: &Config,
    status: &Status,
    asked: cli::Check,
    node: Option<String>,
    output: Output,
) -> Exit {
    let question = match asked {
        cli::Check::Primary => Question::Primary,
        cli::Check::Standby => Question::Standby,
        cli::Check::Cluster => Question::Cluster,
    };
    let node = match node.map_or_else(|| parts::node_name(config), Ok) {
        Ok(node) => node,
        Err(error) => return complain(&error, Exit::Usage),
    };
    let answer = answer(status, question, &node);
    let (yes, reason) = (answer.is_ok(), answer.unwrap_or_else(|reason| reason));
    let exit = if yes { Exit::Done } else { Exit::Refused };
    match output {
        Output::Text => say(format_args!("{}: {reason}\n", if yes { "yes" } else { "no" }), exit),
        Output::Json => say(format_args!("{}\n", json!({ "yes": yes, "reason": reason })), exit),
    }
}

/// What `status` is about; of the history, which is long, only the end.
pub(super) async fn read(etcd: &Etcd) -> Result<Snapshot, EtcdError> {
    let (mut snapshot, agents, past) = tokio::try_join!(
        etcd.get_all(&[MASTER, CLUSTER, LOCK]),
        etcd.get_prefix(AGENTS),
        etcd.get_last(HISTORY, RECENT)
    )?;
    snapshot.entries.extend(agents.entries);
    snapshot.entries.extend(past);
    Ok(snapshot)
}

/// What those say who were asked one by one.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers {
    agents: Vec<AgentStatus>,
    /// Members of etcd that do not serve, each with its reason.
    silent_members: Vec<String>,
}

/// Asks every registered agent, and every member of etcd.
pub(super) async fn ask_all(etcd: &Arc<Etcd>, snapshot: &Snapshot) -> Answers {
    let (agents, silent_members) = tokio::join!(ask_agents(snapshot), etcd.silent_members());
    Answers { agents, silent_members }
}

async fn ask_agents(snapshot: &Snapshot) -> Vec<AgentStatus> {
    let mut agents = JoinSet::new();
    for registration in registered(snapshot, &mut Vec::new()) {
        agents.spawn(ask(registration));
    }
    let mut agents = agents.join_all().await;
    agents.sort_by_key(|agent| (agent.registration.host.clone(), agent.registration.kind));
    agents
}

/// `answers` may have been given before `snapshot` was taken.
pub(super) fn assemble(snapshot: &Snapshot, answers: Answers, config: &Config) -> Status {
    let Answers { agents, silent_members } = answers;
    let mut unreadable = Vec::new();
    let master = snapshot.get(MASTER).map(|entry| entry.value.clone());
    if let Some(value) = master.as_ref().filter(|value| value.parse::<IpAddr>().is_err()) {
        unreadable.push(format!(
            "{MASTER} in etcd is `{value}`, which is no address; the primary's supervise mends it"
        ));
    }
    let cluster: Option<ClusterView> = parse(snapshot, CLUSTER, &mut unreadable);
    let failover = parse(snapshot, LOCK, &mut unreadable);
    let past = snapshot.entries.iter().filter(|entry| entry.key.starts_with(HISTORY));
    let past: Vec<Change> =
        past.filter_map(|entry| serde_json::from_str(&entry.value).ok()).collect();
    let last_failover = LastFailover::of(&past, failover.as_ref());
    let registered = registered(snapshot, &mut unreadable);
    let failed_actions = merged(agents.iter().flat_map(|agent| agent.failed_actions.clone()));
    let mut found = problems(&Seen {
        primary_address: master.as_deref(),
        cluster: cluster.as_ref(),
        view_age: cluster.as_ref().and_then(|view| clock::age(&view.observed_at)),
        oldest_view: OLDEST_VIEW.max(3 * config.pacemaker.poll_interval.get()),
        registered: &registered,
        agents: &agents,
        failed_actions: &failed_actions,
    });
    found.extend(missing(&config.failover.expected_agents, &registered));
    found.extend(silent_members.iter().map(|why| silent_member(why)));
    found.append(&mut unreadable);
    Status {
        primary_address: master,
        cluster,
        agents,
        failover,
        last_failover,
        failed_actions,
        problems: found,
    }
}

/// Registrations in etcd; what is none is told in `unreadable`.
fn registered(snapshot: &Snapshot, unreadable: &mut Vec<String>) -> Vec<Registration> {
    let entries = snapshot.entries.iter().filter(|entry| entry.key.starts_with(AGENTS));
    let readable = entries.filter_map(|entry| {
        serde_json::from_str(&entry.value)
            .map_err(|error| {
                unreadable.push(format!("{} in etcd is no registration: {error}", entry.key));
            })
            .ok()
    });
    readable.collect()
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
