//! What only all answers together show: pure verdicts, each with what to do.

use std::{collections::BTreeSet, sync::Arc};

use super::{FailoverOptions, agents::Agent};
use crate::model::{cluster::ClusterView, finding::Finding, registration::AgentKind};

/// What agents that answer each for themselves cannot find.
pub(super) fn judge(
    options: &FailoverOptions,
    view: Result<&ClusterView, &Finding>,
    agents: &[Arc<Agent>],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !agents.iter().any(|agent| agent.kind == AgentKind::Proxy && agent.pauses) {
        let words = "no `pgcm proxy` with a PgBouncer was found, so no client can be held; start \
                     it on every machine with a PgBouncer";
        findings.push(Finding::refuse("no-proxy", words));
    }
    expected_agents(&options.expected_agents, agents, &mut findings);
    let mut versions: BTreeSet<&str> = agents.iter().map(|agent| agent.version.as_str()).collect();
    versions.insert(env!("CARGO_PKG_VERSION"));
    if versions.len() > 1 {
        let list = Vec::from_iter(versions).join(", ");
        let words = format!(
            "agents and this pgcm run different versions ({list}); finish the upgrade soon"
        );
        findings.push(Finding::warn("versions", words));
    }
    match view {
        Ok(view) => {
            members(view, agents, &mut findings);
            findings.extend(target(options, view));
            findings.extend(rest(options, view));
            findings.extend(slots(options, view, agents));
        }
        Err(finding) => findings.push(finding.clone()),
    }
    findings
}

/// Whether each agent that the configuration names is there.
fn expected_agents(expected: &[String], agents: &[Arc<Agent>], findings: &mut Vec<Finding>) {
    for name in expected {
        let there = |agent: &Arc<Agent>| format!("{}/{}", agent.host, agent.kind) == *name;
        if !agents.iter().any(there) {
            let words = format!(
                "{name} is expected (failover.expected-agents) but not registered; start it, or its \
                 clients get errors; if it is gone for good take it from the configuration"
            );
            findings.push(Finding::refuse("agent-expected", words));
        }
    }
}

/// Who is left to hold every commit when the target is the primary and the old one not back yet.
fn rest(options: &FailoverOptions, view: &ClusterView) -> Option<Finding> {
    let target = expected(options, view)?;
    let old = &view.primary.name;
    let rest = view.standbys.iter().any(|s| s.name != target && s.state == "streaming");
    let words = format!(
        "no standby but {target} streams, so until {old} is back each commit is on {target} alone, or \
         waits where the resource has strict=true; bring another standby up first if that matters"
    );
    (!rest).then(|| Finding::warn("sync-after-move", words))
}

/// Whether subscribers of the primary go on at the target with the slots that shall survive a move.
fn slots(options: &FailoverOptions, view: &ClusterView, agents: &[Arc<Agent>]) -> Option<Finding> {
    let target = expected(options, view)?;
    let of = |host: &str| {
        let found = |agent: &&Arc<Agent>| agent.kind == AgentKind::Supervise && agent.host == host;
        agents.iter().find(found).map(|agent| &agent.failover_slots)
    };
    // Who has no supervise is told of already.
    let (wanted, there) = (of(&view.primary.name)?, of(&target)?);
    let missing: Vec<&str> =
        wanted.iter().filter(|name| !there.contains(name)).map(String::as_str).collect();
    let words = format!(
        "{target} has no usable copy of the failover slots {} (synced and not temporary in \
         pg_replication_slots), so their subscribers would have to be set up anew; wait until their \
         consumers have moved them, or see that standbys copy slots (sync_logical_slots=true)",
        missing.join(", ")
    );
    (!missing.is_empty()).then(|| Finding::refuse("logical-slots", words))
}

/// Whether each node of the cluster has its supervise, and its PgBouncer somebody who has it follow.
fn members(view: &ClusterView, agents: &[Arc<Agent>], findings: &mut Vec<Finding>) {
    let standbys = view.standbys.iter().map(|standby| &standby.name);
    for node in std::iter::once(&view.primary.name).chain(standbys) {
        let here = || agents.iter().filter(|agent| agent.host == *node);
        if !here().any(|agent| agent.kind == AgentKind::Supervise) {
            let words = format!("no `pgcm supervise` of {node} was found; start it there");
            findings.push(Finding::refuse("agent-missing", words));
        } else if !here().any(|agent| agent.follows) {
            let words = format!(
                "no `pgcm proxy` of {node} was found: its PgBouncer would be paused and resumed, but \
                 not follow the primary; start it there"
            );
            findings.push(Finding::refuse("proxy-missing", words));
        }
    }
}

fn target(options: &FailoverOptions, view: &ClusterView) -> Option<Finding> {
    let Some(target) = &options.target else {
        let words = "no standby is synchronous, so none surely holds every commit; look at \
                     `pgcm status` and at pg_stat_replication on the primary";
        return view
            .synchronous_standby()
            .is_none()
            .then(|| Finding::refuse("no-synchronous-standby", words));
    };
    if *target == view.primary.name {
        let words = format!("{target} is the primary already");
        return Some(Finding::refuse("target", words));
    }
    match view.standbys.iter().find(|standby| standby.name == *target) {
        Some(standby) if standby.is_synchronous() => None,
        Some(standby) => Some(Finding::refuse(
            "target",
            format!(
                "{target} is {} and {}; only a synchronous standby surely holds every commit",
                standby.state, standby.sync_state
            ),
        )),
        None => {
            let known: Vec<&str> = view.standbys.iter().map(|s| s.name.as_str()).collect();
            let words = format!("{target} is no connected standby ({})", known.join(", "));
            Some(Finding::refuse("target", words))
        }
    }
}

/// The node that is going to be primary.
pub(super) fn expected(options: &FailoverOptions, view: &ClusterView) -> Option<String> {
    options.target.clone().or_else(|| view.synchronous_standby().map(|s| s.name.clone()))
}
