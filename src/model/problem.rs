//! What does not fit together between the parts of a status, each with what to do.

use std::time::Duration;

use super::{
    cluster::ClusterView,
    failed_action::FailedAction,
    health::Verdict,
    registration::{AgentKind, Registration},
    status::AgentStatus,
};

/// What was seen, to find [`problems`] in.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    /// Value of `/master`.
    pub primary_address: Option<&'a str>,
    pub cluster: Option<&'a ClusterView>,
    /// How long ago the view was made, by the clock of this machine; `None` when it does not say.
    pub view_age: Option<Duration>,
    /// A view that is older was given up by who has to write it anew.
    pub oldest_view: Duration,
    pub registered: &'a [Registration],
    pub agents: &'a [AgentStatus],
    pub failed_actions: &'a [FailedAction],
}

/// Finds what does not fit together between the parts of a status.
pub fn problems(seen: &Seen) -> Vec<String> {
    let mut found = Vec::new();
    match (seen.primary_address, seen.cluster) {
        (None, _) => found.push(
            "no primary is published; look at `crm_mon -Afr -1` and at the logs of pgcm-supervise"
                .to_owned(),
        ),
        (Some(address), Some(view)) if view.primary.address.to_string() != address => {
            found.push(format!(
                "/master says {address} but /cluster says {}; the primary's supervise mends this \
                 within one poll",
                view.primary.address
            ));
        }
        _ => {}
    }
    if let Some(view) = seen.cluster {
        found.extend(outdated(view, seen));
        if view.synchronous_standby().is_none() {
            found.push(
                "no standby is synchronous; losing the primary now means waiting for it to come back"
                    .to_owned(),
            );
        }
        found.extend(unattended(view, seen.registered));
        found.extend(view.offline.iter().map(|node| {
            format!(
                "{node} is offline; start it, or Corosync and Pacemaker there (gone for good: crm_node \
                 --force --remove {node})"
            )
        }));
    }
    for agent in seen.agents.iter().filter(|agent| agent.verdict() != Verdict::Healthy) {
        let Registration { host, kind, .. } = &agent.registration;
        found.push(format!("{kind} on {host} is {}: {}", agent.verdict(), agent.trouble()));
    }
    found.extend(seen.failed_actions.iter().map(failed));
    found
}

/// A member of `etcd.endpoints` that does not serve; `why` names it.
pub fn silent_member(why: &str) -> String {
    format!(
        "a member of etcd does not serve ({why}); look at: etcdctl endpoint status --cluster. Start it, or take \
         it out of etcd.endpoints if it is gone for good: once most members are lost, nothing is published or moved"
    )
}

/// The primary's supervise makes the view anew all the time, also when nothing changed. What a dead
/// primary left behind names it, and its standbys, for ever.
fn outdated(view: &ClusterView, seen: &Seen) -> Option<String> {
    seen.view_age.filter(|age| *age > seen.oldest_view)?;
    Some(format!(
        "what is published was last seen at {}, and {} may not be the primary any more; look at \
         `crm_mon -Afr -1`, at the log of pgcm-supervise there, and whether the clocks agree",
        view.observed_at, view.primary.name
    ))
}

/// Nodes of the cluster without an agent that a failover insists on.
fn unattended(view: &ClusterView, registered: &[Registration]) -> Vec<String> {
    let standbys = view.standbys.iter().map(|standby| &standby.name);
    let nodes = std::iter::once(&view.primary.name).chain(standbys);
    let told = nodes.filter_map(|node| {
        let is_there = |kind| registered.iter().any(|one| one.host == *node && one.kind == kind);
        if !is_there(AgentKind::Supervise) {
            Some(format!("no `pgcm supervise` of {node} is registered; start it there"))
        } else if !is_there(AgentKind::Proxy) {
            Some(format!(
                "no `pgcm proxy` of {node} is registered, so its PgBouncer does not follow the \
                 primary; start it there"
            ))
        } else {
            None
        }
    });
    told.collect()
}

fn failed(action: &FailedAction) -> String {
    let FailedAction { node, action, reason, commands } = action;
    let remedy = if commands.is_empty() {
        "look at `crm_mon -Afr -1`; once it is mended: crm_resource --cleanup"
    } else {
        "run what `pgcm status` lists under Failed"
    };
    format!("{node}: {action} failed: {reason}; {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::wanted::tests::view;

    const OLDEST: Duration = Duration::from_secs(30);

    /// What [`Seen`] borrows.
    struct World {
        primary_address: &'static str,
        view: ClusterView,
        view_age: Option<Duration>,
        registered: Vec<Registration>,
        agents: Vec<AgentStatus>,
        failed_actions: Vec<FailedAction>,
    }

    /// A cluster in which all is well but for what `change` does to it.
    fn found(change: impl FnOnce(&mut World)) -> Vec<String> {
        let of = |host| [AgentKind::Supervise, AgentKind::Proxy].map(|k| registration(host, k));
        let mut world = World {
            primary_address: "10.0.0.1",
            view: view("10.0.0.1"),
            view_age: Some(Duration::from_secs(12)),
            registered: [of("pg01"), of("pg02")].concat(),
            agents: Vec::new(),
            failed_actions: Vec::new(),
        };
        change(&mut world);
        problems(&Seen {
            primary_address: Some(world.primary_address),
            cluster: Some(&world.view),
            view_age: world.view_age,
            oldest_view: OLDEST,
            registered: &world.registered,
            agents: &world.agents,
            failed_actions: &world.failed_actions,
        })
    }

    fn registration(host: &str, kind: AgentKind) -> Registration {
        let api = "10.0.0.5:8081".parse().expect("an address");
        Registration { host: host.to_owned(), kind, api, version: "0.1.0".to_owned() }
    }

    #[test]
    fn a_cluster_that_is_well_has_no_problem() {
        assert_eq!(found(|_| {}), [""; 0]);
        for age in [Some(OLDEST), Some(Duration::ZERO), None] {
            assert_eq!(found(|world| world.view_age = age), [""; 0]);
        }
    }

    #[test]
    fn a_silent_agent_is_a_problem() {
        let silent = AgentStatus {
            registration: registration("app01", AgentKind::Proxy),
            components: Vec::new(),
            error: Some("refused".to_owned()),
            failed_actions: Vec::new(),
        };
        let found = found(|world| world.agents.push(silent));
        assert_eq!(found, ["proxy on app01 is failed: refused"]);
    }

    #[test]
    fn keys_that_disagree_are_a_problem() {
        let found = found(|world| world.primary_address = "10.0.0.9");
        assert!(found[0].contains("/master says 10.0.0.9"), "{found:?}");
    }

    #[test]
    fn a_node_that_is_offline_is_a_problem_also_when_its_agents_are_not_registered() {
        let found = found(|world| world.view.offline.push("pg03".to_owned()));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("pg03 is offline; start it, or"), "{found:?}");
    }

    #[test]
    fn what_a_dead_primary_left_published_is_a_problem() {
        let found = found(|world| {
            world.view_age = Some(Duration::from_secs(31));
            world.registered.retain(|one| one.host != "pg01");
        });
        assert_eq!(found.len(), 2, "{found:?}");
        let words = "what is published was last seen at 2026-01-01T00:00:00Z, and pg01 may not";
        assert!(found[0].starts_with(words), "{found:?}");
        assert_eq!(found[1], "no `pgcm supervise` of pg01 is registered; start it there");
    }

    #[test]
    fn a_node_without_an_agent_that_a_failover_insists_on_is_a_problem() {
        for (missing, expected) in [
            (AgentKind::Supervise, "no `pgcm supervise` of pg02"),
            (AgentKind::Proxy, "no `pgcm proxy` of pg02"),
        ] {
            let gone = registration("pg02", missing);
            let found = found(|world| world.registered.retain(|one| *one != gone));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].starts_with(expected), "{found:?}");
        }
    }

    #[test]
    fn a_failed_action_is_a_problem() {
        for (commands, remedy) in [
            (vec!["pg_rewind".to_owned()], "run what `pgcm status` lists under Failed"),
            (Vec::new(), "look at `crm_mon -Afr -1`; once it is mended: crm_resource --cleanup"),
        ] {
            let action = FailedAction {
                node: "pg02".to_owned(),
                action: "start".to_owned(),
                reason: "diverged".to_owned(),
                commands,
            };
            let found = found(|world| world.failed_actions.push(action));
            assert_eq!(found, [format!("pg02: start failed: diverged; {remedy}")]);
        }
    }
}
