//! `pgcm status`: what etcd and the agents say, as facts and as a table.

use std::fmt::Write as _;

use serde::Serialize;

use super::{
    attempt::{Attempt, FAILOVER},
    cluster::ClusterView,
    failed_action::FailedAction,
    health::{Component, Verdict},
    history::RUNNING,
    last_failover::LastFailover,
    registration::Registration,
    table::table,
};

/// Everything that `status` shows; its JSON is the same facts for programs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Value of `/master`.
    pub primary_address: Option<String>,
    pub cluster: Option<ClusterView>,
    pub agents: Vec<AgentStatus>,
    pub failover: Option<Attempt>,
    /// What became of the last one.
    pub last_failover: Option<LastFailover>,
    /// Where Postgres is stopped or failed: why, and what to run.
    pub failed_actions: Vec<FailedAction>,
    /// What does not fit together, each with what to do. Empty when all is well.
    pub problems: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AgentStatus {
    #[serde(flatten)]
    pub registration: Registration,
    /// Empty when the agent did not answer.
    pub components: Vec<Component>,
    /// Why the agent did not answer.
    pub error: Option<String>,
    /// What it knows of failed actions; told once for the whole cluster.
    #[serde(skip)]
    pub failed_actions: Vec<FailedAction>,
}

impl AgentStatus {
    /// The worst verdict of all components.
    pub fn verdict(&self) -> Verdict {
        if self.error.is_some() {
            return Verdict::Failed;
        }
        self.components.iter().map(|component| component.verdict).max().unwrap_or(Verdict::Healthy)
    }

    /// What is not well of it, in one line.
    pub(super) fn trouble(&self) -> String {
        let of_components = self
            .components
            .iter()
            .filter(|component| component.verdict != Verdict::Healthy)
            .map(|component| format!("{}: {}", component.name, component.message));
        self.error.iter().cloned().chain(of_components).collect::<Vec<_>>().join("; ")
    }
}

impl Status {
    /// The status as text for a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let primary = self.cluster.as_ref().map(|view| &view.primary);
        match (&self.primary_address, primary) {
            (Some(address), Some(primary)) => {
                let _ = writeln!(
                    out,
                    "Primary   {} ({address}), timeline {}",
                    primary.name, primary.timeline
                );
            }
            (Some(address), None) => {
                let _ = writeln!(out, "Primary   {address}");
            }
            (None, _) => out.push_str("Primary   none published\n"),
        }
        match &self.failover {
            Some(Attempt { purpose, holder, started_at, step, .. }) if purpose == FAILOVER => {
                let _ = writeln!(out, "Failover  by {holder}, since {started_at}, at step {step}");
            }
            Some(Attempt { purpose, holder, started_at, .. }) => {
                let _ = writeln!(out, "Lock      held by {holder}, since {started_at}: {purpose}");
            }
            None => out.push_str("Failover  none running\n"),
        }
        if let Some(last) = self.last_failover.as_ref().filter(|last| last.outcome != RUNNING) {
            let _ = writeln!(out, "Last      {}", last.text());
        }
        out.push('\n');
        out.push_str(&table(&self.standby_rows()));
        out.push('\n');
        out.push_str(&table(&self.agent_rows()));
        if !self.failed_actions.is_empty() {
            out.push_str("\nFailed\n");
            for failed in &self.failed_actions {
                let _ = writeln!(out, "  {}", failed.text().replace('\n', "\n  "));
            }
        }
        if !self.problems.is_empty() {
            out.push_str("\nProblems\n");
            for problem in &self.problems {
                let _ = writeln!(out, "  {problem}");
            }
        }
        out
    }

    fn standby_rows(&self) -> Vec<Vec<String>> {
        let mut rows =
            vec![["STANDBY", "ADDRESS", "STATE", "SYNC", "REPLAY LAG"].map(str::to_owned).to_vec()];
        for standby in self.cluster.iter().flat_map(|view| &view.standbys) {
            rows.push(vec![
                standby.name.clone(),
                standby.address.map_or_else(|| "-".to_owned(), |address| address.to_string()),
                standby.state.clone(),
                standby.sync_state.clone(),
                format!("{} B", standby.replay_lag_bytes),
            ]);
        }
        rows
    }

    fn agent_rows(&self) -> Vec<Vec<String>> {
        let mut rows =
            vec![["AGENT", "KIND", "API", "VERSION", "HEALTH"].map(str::to_owned).to_vec()];
        for agent in &self.agents {
            let Registration { host, kind, api, version } = &agent.registration;
            rows.push(vec![
                host.clone(),
                kind.to_string(),
                api.to_string(),
                version.clone(),
                agent.verdict().to_string(),
            ]);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        cluster::{Primary, Standby},
        registration::AgentKind,
    };

    fn view() -> ClusterView {
        ClusterView {
            primary: Primary {
                name: "pg03".to_owned(),
                address: "172.17.0.4".parse().expect("an address"),
                timeline: 4,
            },
            standbys: vec![Standby {
                name: "pg01".to_owned(),
                address: "172.17.0.2".parse().ok(),
                state: "streaming".to_owned(),
                sync_state: "sync".to_owned(),
                replay_lag_bytes: 0,
            }],
            offline: Vec::new(),
            quorum: true,
            system_identifier: "7".to_owned(),
            observed_at: "2026-01-01T00:00:00Z".to_owned(),
        }
    }

    fn agent(components: Vec<Component>, error: Option<&str>) -> AgentStatus {
        AgentStatus {
            registration: Registration {
                host: "app01".to_owned(),
                kind: AgentKind::Proxy,
                api: "172.17.0.5:8081".parse().expect("an address"),
                version: "0.1.0".to_owned(),
            },
            components,
            error: error.map(str::to_owned),
            failed_actions: Vec::new(),
        }
    }

    #[test]
    fn a_healthy_cluster_reads_as_two_tables() {
        let healthy = vec![Component::new("etcd", Verdict::Healthy, "answers")];
        let status = Status {
            primary_address: Some("172.17.0.4".to_owned()),
            cluster: Some(view()),
            agents: vec![agent(healthy, None)],
            failover: None,
            last_failover: None,
            failed_actions: Vec::new(),
            problems: Vec::new(),
        };
        assert_eq!(
            status.text(),
            "\
Primary   pg03 (172.17.0.4), timeline 4
Failover  none running

STANDBY  ADDRESS     STATE      SYNC  REPLAY LAG
pg01     172.17.0.2  streaming  sync  0 B

AGENT  KIND   API              VERSION  HEALTH
app01  proxy  172.17.0.5:8081  0.1.0    healthy
"
        );
    }

    #[test]
    fn a_stopped_node_comes_with_its_reason_and_commands() {
        let status = Status {
            primary_address: None,
            cluster: None,
            agents: Vec::new(),
            failover: None,
            last_failover: None,
            failed_actions: vec![FailedAction {
                node: "pg02".to_owned(),
                action: "start".to_owned(),
                reason: "diverged from 10.0.0.1".to_owned(),
                commands: vec!["pg_rewind".to_owned(), "crm_resource --cleanup".to_owned()],
            }],
            problems: Vec::new(),
        };
        let shown = "Failed\n  pg02: start failed: diverged from 10.0.0.1\n      pg_rewind\n      \
                     crm_resource --cleanup\n";
        assert!(status.text().contains(shown), "{}", status.text());
        let json = serde_json::to_value(&status).expect("serializable");
        assert_eq!(json["failed_actions"][0]["commands"][1], "crm_resource --cleanup");
    }

    #[test]
    fn whoever_holds_the_lock_is_shown_with_the_reason() {
        let attempt = |purpose: &str| Attempt {
            id: "a".to_owned(),
            holder: "pg09, process 7".to_owned(),
            purpose: purpose.to_owned(),
            started_at: "noon".to_owned(),
            step: "pause".to_owned(),
            pause_deadline_unix_ms: 0,
        };
        let shown = |purpose| {
            let status = Status {
                primary_address: None,
                cluster: None,
                agents: Vec::new(),
                failover: Some(attempt(purpose)),
                last_failover: None,
                failed_actions: Vec::new(),
                problems: Vec::new(),
            };
            status.text().lines().nth(1).unwrap_or_default().to_owned()
        };
        assert_eq!(shown("failover"), "Failover  by pg09, process 7, since noon, at step pause");
        let words = "Lock      held by pg09, process 7, since noon: with-lock: make backup";
        assert_eq!(shown("with-lock: make backup"), words);
    }
}
