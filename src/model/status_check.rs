//! `pgcm status --check`: one question, yes or no, and why.

use super::{
    health::Verdict,
    registration::{AgentKind, Registration},
    status::{AgentStatus, Status},
};

/// What a script or a monitor wants to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Question {
    /// Whether a node is the primary, and takes writes.
    Primary,
    /// Whether a node is a standby that streams from the primary.
    Standby,
    /// Whether there is nothing that somebody should look at.
    Cluster,
}

/// # Errors
/// The sentence that says why not.
pub fn answer(status: &Status, question: Question, node: &str) -> Result<String, String> {
    match question {
        Question::Cluster if status.problems.is_empty() => Ok("no problem is known".to_owned()),
        Question::Cluster => Err(status.problems.join("; ")),
        Question::Primary => is_primary(status, node),
        Question::Standby => is_standby(status, node),
    }
}

/// Agents of `expected` (`host/kind`) that are not registered, each with what to do.
pub fn missing(expected: &[String], registered: &[Registration]) -> Vec<String> {
    let there = |name: &&String| {
        registered.iter().any(|one| format!("{}/{}", one.host, one.kind) == **name)
    };
    let missing = expected.iter().filter(|name| !there(name));
    missing
        .map(|name| {
            format!("{name} is expected (failover.expected-agents) but not registered; start it")
        })
        .collect()
}

fn is_primary(status: &Status, node: &str) -> Result<String, String> {
    let view = status.cluster.as_ref().ok_or("no primary is published")?;
    let primary = &view.primary;
    if primary.name != node {
        return Err(format!("{} is the primary, not {node}", primary.name));
    }
    if status.primary_address.as_deref() != Some(primary.address.to_string().as_str()) {
        return Err(format!("{node} is published as primary, but under another address"));
    }
    serves(status, node)?;
    Ok(format!("{node} is the primary on timeline {}", primary.timeline))
}

fn is_standby(status: &Status, node: &str) -> Result<String, String> {
    let view = status.cluster.as_ref().ok_or("no primary is published")?;
    let primary = &view.primary.name;
    if primary == node {
        return Err(format!("{node} is the primary"));
    }
    let standby = view.standbys.iter().find(|standby| standby.name == node);
    let standby = standby.ok_or_else(|| format!("{node} is not connected to {primary}"))?;
    if standby.state != "streaming" {
        return Err(format!("{node} is in state {}, not streaming", standby.state));
    }
    serves(status, node)?;
    Ok(format!("{node} streams from {primary} ({})", standby.sync_state))
}

/// Whether the supervise of `node` answers and says that its Postgres is well, on the side with
/// quorum: what is published may be older than the last crash.
fn serves(status: &Status, node: &str) -> Result<(), String> {
    let of_node = |agent: &&AgentStatus| {
        agent.registration.host == node && agent.registration.kind == AgentKind::Supervise
    };
    let agent = status.agents.iter().find(of_node);
    let agent = agent.ok_or_else(|| format!("no `pgcm supervise` of {node} is registered"))?;
    if let Some(error) = &agent.error {
        return Err(format!("the supervise of {node} does not answer: {error}"));
    }
    let decisive = ["postgres", "quorum"];
    let failed = agent.components.iter().find(|component| {
        component.verdict == Verdict::Failed && decisive.contains(&component.name.as_str())
    });
    match failed {
        Some(component) => Err(format!("{} of {node}: {}", component.name, component.message)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{
        health::Component,
        problem::{Seen, problems},
        wanted::tests::view,
    };

    fn registration(host: &str, kind: AgentKind) -> Registration {
        let api = "10.0.0.1:8080".parse().expect("an address");
        Registration { host: host.to_owned(), kind, api, version: "1".to_owned() }
    }

    fn supervise(host: &str, verdict: Verdict, error: Option<&str>) -> AgentStatus {
        AgentStatus {
            registration: registration(host, AgentKind::Supervise),
            components: vec![Component::new("postgres", verdict, "told so")],
            error: error.map(str::to_owned),
            failed_actions: Vec::new(),
        }
    }

    /// pg01 is the primary, pg02 streams from it; both have a proxy.
    fn status(agents: Vec<AgentStatus>) -> Status {
        let view = view("10.0.0.1");
        let mut registered: Vec<Registration> =
            agents.iter().map(|agent| agent.registration.clone()).collect();
        registered.extend(["pg01", "pg02"].map(|host| registration(host, AgentKind::Proxy)));
        let problems = problems(&Seen {
            primary_address: Some("10.0.0.1"),
            cluster: Some(&view),
            view_age: Some(Duration::ZERO),
            oldest_view: Duration::from_secs(30),
            registered: &registered,
            agents: &agents,
            failed_actions: &[],
        });
        Status {
            primary_address: Some("10.0.0.1".to_owned()),
            cluster: Some(view),
            agents,
            failover: None,
            last_failover: None,
            failed_actions: Vec::new(),
            problems,
        }
    }

    #[test]
    fn a_node_is_what_is_published_and_what_its_own_supervise_confirms() {
        use Question::{Cluster, Primary, Standby};
        let well = |host| supervise(host, Verdict::Healthy, None);
        let all_well = status(vec![well("pg01"), well("pg02")]);
        let failed = status(vec![supervise("pg01", Verdict::Failed, None), well("pg02")]);
        let silent = status(vec![supervise("pg01", Verdict::Healthy, Some("refused"))]);
        for (status, question, node, expected) in [
            (&all_well, Primary, "pg01", Ok("pg01 is the primary on timeline 7")),
            (&all_well, Primary, "pg02", Err("pg01 is the primary, not pg02")),
            (&all_well, Standby, "pg02", Ok("pg02 streams from pg01 (sync)")),
            (&all_well, Standby, "pg01", Err("pg01 is the primary")),
            (&all_well, Standby, "pg03", Err("pg03 is not connected to pg01")),
            (&all_well, Cluster, "", Ok("no problem is known")),
            (&failed, Primary, "pg01", Err("postgres of pg01: told so")),
            (&failed, Cluster, "", Err("supervise on pg01 is failed: postgres: told so")),
            (&silent, Primary, "pg01", Err("the supervise of pg01 does not answer: refused")),
            (&silent, Standby, "pg02", Err("no `pgcm supervise` of pg02 is registered")),
        ] {
            let expected = expected.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(answer(status, question, node), expected, "{question:?} {node}");
        }
    }

    #[test]
    fn an_agent_that_died_is_missed_where_it_is_expected() {
        let registered = [registration("pg01", AgentKind::Supervise)];
        let expected = ["pg01/supervise", "pg01/proxy"].map(str::to_owned);
        let found = missing(&expected, &registered);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("pg01/proxy is expected"), "{found:?}");
    }

    #[test]
    fn what_is_not_published_is_no() {
        let status = Status { cluster: None, ..status(Vec::new()) };
        for question in [Question::Primary, Question::Standby] {
            assert!(answer(&status, question, "pg01").is_err(), "{question:?}");
        }
    }

    #[test]
    fn a_standby_that_catches_up_is_none_yet() {
        let mut status = status(vec![supervise("pg02", Verdict::Healthy, None)]);
        let view = status.cluster.as_mut().expect("published");
        "catchup".clone_into(&mut view.standbys[0].state);
        assert!(answer(&status, Question::Standby, "pg02").is_err());
    }
}
