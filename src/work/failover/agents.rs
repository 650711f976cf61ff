//! Who can be asked, and who must be paused when.

use std::{collections::BTreeSet, sync::Arc};

use crate::{
    edge::{
        etcd::{Etcd, EtcdError},
        peer::{Peer, PeerOptions},
    },
    model::registration::{AGENTS, AgentKind, Registration},
};

/// An agent that answered.
#[derive(Debug, Clone)]
pub struct Agent {
    pub host: String,
    pub kind: AgentKind,
    pub version: String,
    /// Whether it can pause and resume PgBouncers.
    pub pauses: bool,
    /// Whether it can show that its PgBouncers follow an address.
    pub follows: bool,
    /// Logical failover slots that subscribers find there after a move.
    pub failover_slots: Vec<String>,
    pub peer: Peer,
}

/// Which PgBouncers are held first: those of applications. One that is chained to a PgBouncer on a
/// Postgres node would otherwise wait for it for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    App,
    Postgres,
}

impl Tier {
    /// In the order of the pause.
    pub const ALL: [Self; 2] = [Self::App, Self::Postgres];
}

/// Somebody who might be an agent: registered, or named by the operator.
#[derive(Debug, Clone)]
pub struct Candidate {
    pub peer: Peer,
    /// What is known of those that are registered.
    pub registration: Option<Registration>,
}

/// The agents that the operator named, or else those registered in etcd. Values that are not a
/// registration come back as sentences.
///
/// # Errors
/// [`EtcdError`] when the registrations cannot be read.
pub async fn discover(
    etcd: &Etcd,
    endpoints: &[String],
    options: &PeerOptions,
) -> Result<(Vec<Candidate>, Vec<String>), EtcdError> {
    let mut found: Vec<(String, String, Option<Registration>)> =
        endpoints.iter().map(|endpoint| (endpoint.clone(), endpoint.clone(), None)).collect();
    let mut odd = Vec::new();
    if endpoints.is_empty() {
        for entry in etcd.get_prefix(AGENTS).await?.entries {
            match serde_json::from_str::<Registration>(&entry.value) {
                Ok(agent) => {
                    let name = format!("{}/{}", agent.host, agent.kind);
                    found.push((name, agent.api.to_string(), Some(agent)));
                }
                Err(_) => odd.push(format!(
                    "{} in etcd is not a registration; delete it, a live agent writes it again",
                    entry.key
                )),
            }
        }
    }
    let mut candidates = Vec::new();
    for (name, authority, registration) in found {
        match Peer::new(&name, &authority, options) {
            Ok(peer) => candidates.push(Candidate { peer, registration }),
            Err(error) => odd.push(error.to_string()),
        }
    }
    Ok((candidates, odd))
}

/// All supervises, those of `first` before the others.
pub fn supervises(agents: &[Arc<Agent>], first: &[&str]) -> Vec<Arc<Agent>> {
    let mut found: Vec<Arc<Agent>> =
        agents.iter().filter(|agent| agent.kind == AgentKind::Supervise).cloned().collect();
    let rank = |host: &str| first.iter().position(|&name| name == host).unwrap_or(first.len());
    found.sort_by_key(|agent| (rank(&agent.host), agent.host.clone()));
    found
}

/// Who pauses: on each host the proxy if one is there, else supervise; by tier.
pub fn pausers(agents: &[Arc<Agent>]) -> Vec<(Tier, Arc<Agent>)> {
    let hosts = |kind| -> BTreeSet<&str> {
        agents.iter().filter(|agent| agent.kind == kind).map(|agent| agent.host.as_str()).collect()
    };
    let (proxied, postgres) = (hosts(AgentKind::Proxy), hosts(AgentKind::Supervise));
    let mut found: Vec<(Tier, Arc<Agent>)> = agents
        .iter()
        .filter(|agent| agent.pauses)
        .filter(|agent| agent.kind == AgentKind::Proxy || !proxied.contains(agent.host.as_str()))
        .map(|agent| {
            let tier =
                if postgres.contains(agent.host.as_str()) { Tier::Postgres } else { Tier::App };
            (tier, agent.clone())
        })
        .collect();
    found.sort_by_key(|(tier, agent)| (*tier, agent.host.clone()));
    found
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn agent(host: &str, kind: AgentKind, pauses: bool) -> Arc<Agent> {
        let options = PeerOptions { connect_limit: Duration::from_secs(1), token: None };
        Arc::new(Agent {
            host: host.to_owned(),
            kind,
            version: String::new(),
            pauses,
            follows: pauses,
            failover_slots: Vec::new(),
            peer: Peer::new(host, "127.0.0.1:1", &options).expect("an address"),
        })
    }

    #[tokio::test]
    async fn app_tier_comes_first_and_a_proxy_pauses_rather_than_its_supervise() {
        use AgentKind::{Proxy, Supervise};
        let agents = [
            agent("pg01", Proxy, true),
            agent("pg01", Supervise, true),
            agent("pg02", Supervise, true),
            agent("pg03", Supervise, false),
            agent("app01", Proxy, true),
        ];
        let order: Vec<(Tier, String, AgentKind)> = pausers(&agents)
            .into_iter()
            .map(|(tier, agent)| (tier, agent.host.clone(), agent.kind))
            .collect();
        let expected = [
            (Tier::App, "app01".to_owned(), Proxy),
            (Tier::Postgres, "pg01".to_owned(), Proxy),
            (Tier::Postgres, "pg02".to_owned(), Supervise),
        ];
        assert_eq!(order, expected);
        let first: Vec<String> =
            supervises(&agents, &["pg03", "pg01"]).iter().map(|a| a.host.clone()).collect();
        assert_eq!(first, ["pg03", "pg01", "pg02"]);
    }
}
