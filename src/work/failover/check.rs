//! The checks: everything that is asked before anything is touched.

use std::{sync::Arc, time::Duration};

use serde::Serialize;
use tokio::{task::JoinSet, time::timeout};

use super::{
    Failover,
    agents::{self, Agent, Candidate},
    pipeline::{Trouble, TroubleKind},
    progress::Event,
    together,
};
use crate::{
    edge::peer::{PeerError, pb},
    error::chain,
    model::{
        cluster::ClusterView,
        finding::{Finding, OVERRIDABLE, Severity},
        history::expected,
        problem::silent_member,
        registration::{AgentKind, Registration},
        span::millis,
    },
    work::history,
};

/// The check whose refusal time may cure.
pub const OPEN_TRANSACTIONS: &str = "open-transactions";

/// A finding and who found it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Found {
    /// `host/kind`, or `failover` for what the agents together show.
    pub by: String,
    #[serde(flatten)]
    pub finding: Finding,
    /// It refuses, and the operator named it to go on all the same.
    pub overridden: bool,
}

impl Found {
    /// Whether the failover does not begin because of it.
    pub fn refuses(&self) -> bool {
        self.finding.severity == Severity::Refuse && !self.overridden
    }
}

fn found(by: &str, finding: Finding) -> Found {
    Found { by: by.to_owned(), finding, overridden: false }
}

/// Of a lock that a dry run finds taken; `waits` is how long the run would wait for it.
fn lock_finding(taken: &str, waits: Duration) -> Finding {
    if waits.is_zero() {
        let remedy = "wait until it is free, see `pgcm status`, or use --lock-timeout";
        Finding::refuse("lock", format!("{taken}; {remedy}"))
    } else {
        Finding::warn("lock", format!("{taken}; the failover would wait for it, at most {waits:?}"))
    }
}

/// What one agent answered.
struct Asked {
    name: String,
    health: Result<pb::HealthResponse, PeerError>,
    checked: Result<pb::CheckResponse, PeerError>,
    candidate: Candidate,
}

/// What the checks learned.
#[derive(Debug, Clone)]
pub struct World {
    pub view: Option<ClusterView>,
    /// Whom the checks were about, and the move is going to be.
    pub target: Option<String>,
    pub agents: Vec<Arc<Agent>>,
    pub findings: Vec<Found>,
}

impl Failover {
    /// The checks as the first step. A lock that is taken and not to be waited for ends it before
    /// any agent is asked; a dry run asks them all the same, and ends as the run would.
    pub(super) async fn first_check(&self) -> Result<(), Trouble> {
        let (checked, ()) = tokio::join!(self.check_or_plan(), self.recall());
        let Some(finding) = self.move_time() else { return checked };
        self.state().findings.push(found("failover", finding));
        checked.and(Err(Trouble::new(
            TroubleKind::Refused,
            "it must not begin because of move-time (failover)",
        )))
    }

    /// Learns from past failovers what to expect of this one. Without them it is a failover all the same.
    async fn recall(&self) {
        let limit = self.options.health_check_timeout;
        if let Ok(Ok((_, entries, _))) = timeout(limit, history::read(&self.etcd)).await {
            self.state().expected = expected(&entries);
        }
    }

    async fn check_or_plan(&self) -> Result<(), Trouble> {
        let waits = self.options.lock_timeout;
        if self.options.dry_run {
            let taken = self.lock_is_free().await;
            let checked = self.check().await;
            let Err(taken) = taken else { return checked };
            if taken.kind == TroubleKind::Locked {
                self.state().findings.push(found("failover", lock_finding(&taken.reason, waits)));
            }
            return if waits.is_zero() { Err(taken) } else { checked };
        }
        if waits.is_zero() {
            self.lock_is_free().await?;
        }
        self.check().await
    }

    /// Asks every agent and judges the answers.
    ///
    /// # Errors
    /// `Unanswered` when etcd does not answer, `Refused` when anything found forbids to begin.
    pub(super) async fn check(&self) -> Result<(), Trouble> {
        let mut world = self.look_at_world().await?;
        self.judge(&mut world.findings);
        let refusing: Vec<String> = world
            .findings
            .iter()
            .filter(|found| found.refuses())
            .map(|found| format!("{} ({})", found.finding.check, found.by))
            .collect();
        {
            let mut state = self.state();
            state.target = world.target;
            state.before = world.view;
            state.agents = world.agents;
            state.findings = world.findings;
        }
        if refusing.is_empty() {
            return Ok(());
        }
        let reason = format!("it must not begin because of {}", refusing.join(", "));
        Err(Trouble::new(TroubleKind::Refused, reason))
    }

    /// Takes into account what the operator asked for.
    fn judge(&self, findings: &mut [Found]) {
        for found in findings {
            let Finding { check, severity, .. } = &mut found.finding;
            if *check == OPEN_TRANSACTIONS && self.options.terminate_after.is_some() {
                *severity = Severity::Warn;
            }
            let named = self.options.overrides.contains(check);
            if *severity == Severity::Refuse && named && OVERRIDABLE.contains(&check.as_str()) {
                found.overridden = true;
                self.progress.tell(&Event::Overridden { found });
            }
        }
    }

    /// The published view, or a finding about what is wrong with it.
    pub(super) async fn read_view(&self) -> Result<Result<ClusterView, Finding>, Trouble> {
        let entry =
            self.etcd.get("/cluster").await.map_err(|error| {
                Trouble::new(TroubleKind::Unanswered, chain(&error).to_string())
            })?;
        let Some(entry) = entry else {
            let words = "no primary is published (/cluster is not in etcd); look at the log of \
                         `pgcm supervise` on the Postgres nodes";
            return Ok(Err(Finding::refuse("no-primary", words)));
        };
        Ok(serde_json::from_str(&entry.value).map_err(|error| {
            let words = format!("/cluster in etcd cannot be read ({error}); supervise heals it");
            Finding::refuse("no-primary", words)
        }))
    }

    async fn look_at_world(&self) -> Result<World, Trouble> {
        let view = self.read_view().await?;
        let (candidates, odd) = agents::discover(&self.etcd, &self.options.endpoints, &self.peers)
            .await
            .map_err(|error| Trouble::new(TroubleKind::Unanswered, chain(&error).to_string()))?;
        let mut findings: Vec<Found> = odd
            .into_iter()
            .map(|words| found("failover", Finding::refuse("agent-address", words)))
            .collect();
        let target = view.as_ref().ok().and_then(|view| together::expected(&self.options, view));
        let (asked, silent) =
            tokio::join!(self.ask_all(candidates, target.as_deref()), self.etcd.silent_members());
        findings.extend(
            silent
                .iter()
                .map(|why| found("failover", Finding::warn("etcd-members", silent_member(why)))),
        );
        let mut agents = Vec::new();
        for asked in asked {
            agents.extend(judge_agent(asked, &mut findings).map(Arc::new));
        }
        agents.sort_by_key(|agent| (agent.host.clone(), agent.kind));
        let together = together::judge(&self.options, view.as_ref(), &agents);
        findings.extend(together.into_iter().map(|finding| found("failover", finding)));
        Ok(World { view: view.ok(), target, agents, findings })
    }

    async fn ask_all(&self, candidates: Vec<Candidate>, target: Option<&str>) -> Vec<Asked> {
        let limit = self.options.health_check_timeout;
        let terms = pb::CheckRequest {
            pause_timeout_ms: millis(self.options.pause_timeout),
            pause_expiry_ms: millis(self.options.pause_expiry),
            target: target.unwrap_or_default().to_owned(),
        };
        let mut awaited: Vec<String> =
            candidates.iter().map(|candidate| candidate.peer.name().to_owned()).collect();
        let mut set = JoinSet::new();
        for candidate in candidates {
            set.spawn(ask(candidate, terms.clone(), limit));
        }
        let mut all = Vec::new();
        self.awaiting("checks", &awaited);
        while let Some(asked) = set.join_next().await {
            if let Ok(asked) = asked {
                awaited.retain(|name| *name != asked.name);
                self.awaiting("checks", &awaited);
                all.push(asked);
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

async fn ask(candidate: Candidate, terms: pb::CheckRequest, limit: Duration) -> Asked {
    let peer = &candidate.peer;
    let (health, checked) = tokio::join!(peer.health(limit), peer.check(terms, limit));
    Asked { name: peer.name().to_owned(), health, checked, candidate }
}

/// Turns an agent's answers into findings; the agent itself if it can be worked with.
fn judge_agent(asked: Asked, findings: &mut Vec<Found>) -> Option<Agent> {
    let name = asked.name;
    let mut tell = |finding| findings.push(found(&name, finding));
    let health = match asked.health {
        Ok(health) => health,
        Err(error) => {
            let words = format!(
                "{error}; start it again, or see its log. If its machine is gone for good, its \
                 registration ends by itself"
            );
            tell(Finding::refuse("agent-health", words));
            return None;
        }
    };
    if let Some(words) = asked.candidate.registration.as_ref().and_then(|r| other_agent(r, &health))
    {
        tell(Finding::refuse("agent-address", words));
        return None;
    }
    for component in &health.components {
        let words =
            format!("{}: {}; {}", component.name, component.message, look_at(&component.name));
        match component.verdict() {
            pb::component::Verdict::Healthy => {}
            pb::component::Verdict::Degraded => tell(Finding::warn("health", words)),
            _ => tell(Finding::refuse("health", words)),
        }
    }
    let checked = asked.checked.unwrap_or_else(|error| {
        let words = format!("{error}; see its log, and whether all agents are of one version");
        tell(Finding::refuse("agent-checks", words));
        pb::CheckResponse::default()
    });
    for finding in checked.findings {
        tell(match finding.severity() {
            pb::finding::Severity::Warn => Finding::warn(&finding.check, finding.message),
            _ => Finding::refuse(&finding.check, finding.message),
        });
    }
    let kind = match health.kind.as_str() {
        "supervise" => AgentKind::Supervise,
        "proxy" => AgentKind::Proxy,
        other => {
            let words = format!(
                "it calls itself `{other}`; name only addresses of `pgcm supervise` and `pgcm proxy` \
                 in failover.endpoints"
            );
            tell(Finding::refuse("agent-kind", words));
            return None;
        }
    };
    Some(Agent {
        host: health.host,
        kind,
        version: health.version,
        pauses: health.pauses,
        follows: health.follows,
        failover_slots: checked.failover_slots,
        peer: asked.candidate.peer,
    })
}

/// Who answers in place of the agent that is registered, if another does: that one would be paused
/// twice, and the registered one never.
fn other_agent(registered: &Registration, answers: &pb::HealthResponse) -> Option<String> {
    let Registration { host, kind, api, .. } = registered;
    if answers.host == *host && answers.kind == kind.to_string() {
        return None;
    }
    let remedy = if api.ip().is_loopback() {
        "set api.token-file on every machine: without a token an agent can be reached from its own \
         machine only"
    } else {
        "set node.name and node.address on both machines, each to its own"
    };
    Some(format!(
        "{}/{} answers at {api}, where {host}/{kind} is registered; {remedy}",
        answers.host, answers.kind
    ))
}

/// Where a component that is not well says more.
fn look_at(component: &str) -> &'static str {
    match component {
        "quorum" | "constraints" => "look at: crm_mon -Afr -1",
        "postgres" => "look at the log of Postgres there, and at: crm_mon -Afr -1",
        "pgbouncer" => "look at the logs of PgBouncer and of `pgcm proxy` there",
        "etcd" => "look at: etcdctl endpoint status --cluster",
        _ => "look at its log",
    }
}
