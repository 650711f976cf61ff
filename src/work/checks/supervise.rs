//! The checks of a Postgres node.
//!
//! What is true of the whole cluster is told by the supervise of the primary alone, so that each
//! finding comes once; where there is no primary, by every one that is asked.

use std::{path::Path, sync::Arc, time::Duration};

use super::{Terms, judge, pacemaker, pgbouncer};
use crate::{
    edge::{
        clock,
        command::{Processes, Run},
        disk,
        etcd::{Etcd, EtcdError},
        failure_note::{self, STATE_DIR},
        pacemaker::{Pacemaker, PacemakerError},
        pgbouncer::Console,
        postgres::{LocalPostgres, LogicalSlot, Postgres, PostgresError},
    },
    error::chain,
    model::{
        attempt::LOCK,
        cluster::ClusterView,
        crm_mon::PacemakerView,
        failed_action,
        finding::{Finding, Severity},
        health::{Component, Health, Verdict},
        location::Location,
        primary::LocalFacts,
    },
    work::publish::CLUSTER,
};

/// Younger transactions are business as usual.
const TRANSACTION_AGE: Duration = Duration::from_secs(1);
/// Bounds the question for space.
const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Looks at Pacemaker, etcd and Postgres of this node.
pub struct SuperviseChecks<R = Processes> {
    node: String,
    pacemaker: Arc<Pacemaker<R>>,
    postgres: Arc<Postgres>,
    etcd: Arc<Etcd>,
    consoles: Vec<Console>,
}

impl<R: Run> SuperviseChecks<R> {
    /// Checks for `node`, Pacemaker's name of this machine; `consoles` are its PgBouncers'.
    pub fn new(
        node: String,
        pacemaker: Arc<Pacemaker<R>>,
        postgres: Arc<Postgres>,
        etcd: Arc<Etcd>,
        consoles: Vec<Console>,
    ) -> Self {
        Self { node, pacemaker, postgres, etcd, consoles }
    }

    /// What stands in the way of a planned failover on these `terms`.
    ///
    /// Bounded by the limits of Pacemaker's tools and of queries. A question without an answer is
    /// itself a finding.
    pub async fn findings(&self, terms: &Terms) -> Vec<Finding> {
        let (view, facts) = tokio::join!(self.pacemaker.view(), self.postgres.facts());
        let view = match view {
            Ok(view) => view,
            Err(error) => {
                let words = format!("{}; look there at: crm_mon -1", self.told(&error.in_full()));
                return vec![Finding::refuse("pacemaker", words)];
            }
        };
        let mut findings = pacemaker::roles(&view);
        match view.promoted()[..] {
            [primary] if primary == self.node => {
                findings.extend(pacemaker::maintenance(&view));
                findings.extend(pacemaker::cluster(&view));
                let (constraints, dc) =
                    tokio::join!(self.constraints(&view, terms), self.dc(&view));
                findings.extend(constraints);
                findings.extend(dc);
                match &facts {
                    Ok(facts) => findings.extend(self.primary(&view, facts, terms).await),
                    Err(error) => findings.push(self.silent(error)),
                }
            }
            [_] => findings = self.standby(facts.as_ref(), terms).await,
            _ => {}
        }
        // Without an answer there is no failover at all.
        if let Ok(Some(published)) = self.published().await {
            findings.extend(pacemaker::agreement(&view, &published.primary.name));
        }
        findings
    }

    async fn constraints(&self, view: &PacemakerView, terms: &Terms) -> Vec<Finding> {
        let found = match self.pacemaker.constraints(view).await {
            Ok(found) => found,
            Err(error) => return vec![Finding::refuse("constraints", error.in_full())],
        };
        let counting = counting(&found.locations);
        let mut findings = pacemaker::leftovers(&counting);
        if let Ok(Some(target)) = self.target(terms).await {
            findings.extend(pacemaker::preferences(view, &counting, &target));
        }
        findings.extend(pacemaker::ties(&found.ties));
        findings
    }

    /// Without one there is no quorum, which is told as such.
    async fn dc(&self, view: &PacemakerView) -> Option<Finding> {
        let dc = view.dc.as_deref()?;
        pacemaker::dc(dc, self.pacemaker.controller_state(dc).await)
    }

    async fn primary(
        &self,
        view: &PacemakerView,
        facts: &LocalFacts,
        terms: &Terms,
    ) -> Vec<Finding> {
        let mut findings = judge::target(view, &self.node, facts, terms);
        let age = TRANSACTION_AGE.min(terms.pause_timeout);
        let (open, burdens, walsenders, slots, disk) = tokio::join!(
            self.postgres.open_transactions(age),
            self.postgres.burdens(),
            self.postgres.walsenders(),
            self.postgres.logical_slots(),
            self.disk(true)
        );
        match disk {
            Ok(disk) => findings.extend(disk),
            Err(error) => findings.push(self.silent(&error)),
        }
        match walsenders {
            Ok(walsenders) => findings.extend(judge::walsenders(view, &walsenders)),
            Err(error) => findings.push(self.silent(&error)),
        }
        match slots {
            Ok(slots) => findings.extend(judge::logical_slots(&slots)),
            Err(error) => findings.push(self.silent(&error)),
        }
        match open {
            Ok(open) => findings.extend(judge::open_transactions(&open, terms.pause_timeout)),
            Err(error) => findings.push(self.silent(&error)),
        }
        match burdens {
            Ok(found) => findings.extend(judge::burdens_of(&found)),
            Err(error) => findings.push(self.silent(&error)),
        }
        findings
    }

    /// Logical failover slots that subscribers find here after a move; none where Postgres does not
    /// say, which [`Self::findings`] tells.
    pub async fn failover_slots(&self) -> Vec<String> {
        let slots = self.postgres.logical_slots().await.unwrap_or_default();
        slots.into_iter().filter(LogicalSlot::is_carried).map(|slot| slot.name).collect()
    }

    /// What a standby knows better than the primary: whether it would be promoted quickly.
    async fn standby(
        &self,
        facts: Result<&LocalFacts, &PostgresError>,
        terms: &Terms,
    ) -> Vec<Finding> {
        if let Err(error) = facts {
            return vec![self.silent_elsewhere(error)];
        }
        let is_target = self.is_target(terms).await;
        let silent = |error: &PostgresError| {
            if is_target { self.silent(error) } else { self.silent_elsewhere(error) }
        };
        let (delays, disk) = tokio::join!(self.postgres.delays(), self.disk(is_target));
        let mut findings = disk.unwrap_or_else(|error| vec![silent(&error)]);
        match delays {
            Ok(delays) => findings.extend(judge::delays_of(&self.node, &delays, is_target)),
            Err(error) => findings.push(silent(&error)),
        }
        findings
    }

    /// Whether the file systems of PGDATA and its WAL have room. `is_needed`: the primary is here, or
    /// would move here.
    async fn disk(&self, is_needed: bool) -> Result<Vec<Finding>, PostgresError> {
        let data = self.postgres.data_directory().await?;
        let mut seen = Vec::new();
        let mut findings = Vec::new();
        for place in [data.clone(), data.join("pg_wal")] {
            match disk::space(&place, DISK_LIMIT).await {
                // The WAL is on the same file system unless its numbers differ.
                Ok(space) if seen.contains(&space) => {}
                Ok(space) => {
                    findings.extend(judge::disk(&self.node, &place, space, is_needed));
                    seen.push(space);
                }
                Err(error) => {
                    let words = self.told(&chain(&error).to_string());
                    let words = format!("{words}; look there at: df -h {}", place.display());
                    findings.push(Finding::warn("disk-space", words));
                }
            }
        }
        Ok(findings)
    }

    /// Whether the primary would move here. It may, when etcd does not say: a check that refuses there
    /// must not become a warning.
    async fn is_target(&self, terms: &Terms) -> bool {
        match self.target(terms).await {
            Ok(target) => target.is_some_and(|target| target == self.node),
            Err(_) => true,
        }
    }

    /// Where the primary would move.
    async fn target(&self, terms: &Terms) -> Result<Option<String>, EtcdError> {
        if let Some(target) = &terms.target {
            return Ok(Some(target.clone()));
        }
        let published = self.published().await?;
        let standby = published.as_ref().and_then(ClusterView::synchronous_standby);
        Ok(standby.map(|standby| standby.name.clone()))
    }

    async fn published(&self) -> Result<Option<ClusterView>, EtcdError> {
        let entry = self.etcd.get(CLUSTER).await?;
        Ok(entry.and_then(|entry| serde_json::from_str(&entry.value).ok()))
    }

    fn silent(&self, error: &PostgresError) -> Finding {
        let words = self.told(&chain(error).to_string());
        Finding::refuse("postgres", format!("{words}; look at the log of Postgres there"))
    }

    /// Of a standby, which the primary does without; one that is gone is no target any more.
    fn silent_elsewhere(&self, error: &PostgresError) -> Finding {
        Finding { severity: Severity::Warn, ..self.silent(error) }
    }

    fn told(&self, what: &str) -> String {
        format!("{}: {what}", self.node)
    }

    /// One verdict each for `quorum`, `postgres`, `pgbouncer` and `etcd`, on the DC one for `constraints`; and
    /// what failed of Postgres on any node, as Pacemaker holds it, with what the agent of this node said in full.
    pub async fn health(&self) -> Health {
        let (view, facts, etcd, pgbouncer) = tokio::join!(
            self.pacemaker.view(),
            self.postgres.facts(),
            self.etcd.get(LOCK),
            pgbouncer::health(&self.consoles),
        );
        let postgres = postgres_health(&self.node, view.as_ref().ok(), facts.as_ref());
        let etcd = match etcd {
            Ok(_) => Component::new("etcd", Verdict::Healthy, "answers"),
            Err(error) => Component::new("etcd", Verdict::Failed, chain(&error).to_string()),
        };
        let note = failure_note::read(Path::new(STATE_DIR), self.pacemaker.resource());
        let failed = view.as_ref().map(|view| failed_action::current(view, &self.node, note));
        let mut components = vec![quorum_health(&view), postgres, pgbouncer, etcd];
        if let Ok(view) = &view {
            components.extend(self.constraints_health(view).await);
        }
        Health { failed_actions: failed.unwrap_or_default(), components }
    }

    /// Told by the DC's supervise alone, so that it comes once, whether or not anybody is promoted.
    async fn constraints_health(&self, view: &PacemakerView) -> Option<Component> {
        if view.dc.as_deref() != Some(&self.node) {
            return None;
        }
        let (verdict, message) = match self.pacemaker.locations(view).await {
            Err(error) => (Verdict::Failed, error.in_full()),
            Ok(found) => {
                let by_hand = |found: &&&Location| found.is_leftover() && !found.is_ours();
                let counting = counting(&found);
                let pins = counting.iter().filter(by_hand).map(|found| pacemaker::pins(&found.id));
                match pins.collect::<Vec<_>>() {
                    pins if pins.is_empty() => {
                        (Verdict::Healthy, "none pins the primary".to_owned())
                    }
                    pins => (Verdict::Degraded, pins.join("; ")),
                }
            }
        };
        Some(Component::new("constraints", verdict, message))
    }
}

/// Those that have not expired.
fn counting(found: &[Location]) -> Vec<&Location> {
    found.iter().filter(|found| !clock::is_over(found.until.as_deref())).collect()
}

fn quorum_health(view: &Result<PacemakerView, PacemakerError>) -> Component {
    let (verdict, message) = match view {
        Err(error) => (Verdict::Failed, error.in_full()),
        Ok(view) if view.dc.is_none() => {
            (Verdict::Failed, "Pacemaker has no designated controller yet".to_owned())
        }
        Ok(view) if !view.quorum => {
            (Verdict::Failed, "this side of the cluster has no quorum".to_owned())
        }
        Ok(view) if view.maintenance => (
            Verdict::Degraded,
            "the cluster is in maintenance mode: nothing fails over by itself".to_owned(),
        ),
        Ok(_) => (Verdict::Healthy, "has quorum".to_owned()),
    };
    Component::new("quorum", verdict, message)
}

fn postgres_health(
    node: &str,
    view: Option<&PacemakerView>,
    facts: Result<&LocalFacts, &PostgresError>,
) -> Component {
    let promoted = view.is_some_and(|view| view.promoted().contains(&node));
    let (verdict, message) = match facts {
        Err(error) => (Verdict::Failed, chain(error).to_string()),
        Ok(facts) if promoted && (facts.in_recovery || !facts.writable) => {
            (Verdict::Failed, "promoted, but takes no writes".to_owned())
        }
        Ok(facts) if promoted && facts.standbys.is_empty() => {
            (Verdict::Degraded, "primary without any standby".to_owned())
        }
        Ok(_) if promoted => (Verdict::Healthy, "primary".to_owned()),
        Ok(facts) if facts.in_recovery => (Verdict::Healthy, "standby".to_owned()),
        Ok(_) => (Verdict::Degraded, "takes writes, but is not promoted".to_owned()),
    };
    Component::new("postgres", verdict, message)
}
