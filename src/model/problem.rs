//! What does not fit together between the parts of a status, each with what to do.

use super::{
    cluster::ClusterView, health::Verdict, registration::Registration, status::AgentStatus,
};

/// Finds what does not fit together between the parts of a status.
pub fn problems(
    primary_address: Option<&str>,
    cluster: Option<&ClusterView>,
    agents: &[AgentStatus],
) -> Vec<String> {
    let mut found = Vec::new();
    match (primary_address, cluster) {
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
    if cluster.is_some_and(|view| view.synchronous_standby().is_none()) {
        found.push(
            "no standby is synchronous; losing the primary now means waiting for it to come back"
                .to_owned(),
        );
    }
    for agent in agents.iter().filter(|agent| agent.verdict() != Verdict::Healthy) {
        let Registration { host, kind, .. } = &agent.registration;
        found.push(format!("{kind} on {host} is {}: {}", agent.verdict(), agent.trouble()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{registration::AgentKind, wanted::tests::view};

    fn silent() -> AgentStatus {
        AgentStatus {
            registration: Registration {
                host: "app01".to_owned(),
                kind: AgentKind::Proxy,
                api: "10.0.0.5:8081".parse().expect("an address"),
                version: "0.1.0".to_owned(),
            },
            components: Vec::new(),
            error: Some("refused".to_owned()),
            failed_actions: Vec::new(),
        }
    }

    #[test]
    fn a_silent_agent_is_a_problem() {
        let found = problems(Some("10.0.0.1"), Some(&view("10.0.0.1")), &[silent()]);
        assert_eq!(found, ["proxy on app01 is failed: refused"]);
    }

    #[test]
    fn keys_that_disagree_are_a_problem() {
        let found = problems(Some("10.0.0.9"), Some(&view("10.0.0.1")), &[]);
        assert!(found[0].contains("/master says 10.0.0.9"), "{found:?}");
    }
}
