//! The checks of a Postgres node.
//!
//! What is true of the whole cluster is told by the supervise of the primary alone, so that each
//! finding comes once; where there is no primary, by every one that is asked.

use std::{sync::Arc, time::Duration};

use super::{Terms, pgbouncer};
use crate::{
    edge::{
        command::{Processes, Run},
        etcd::Etcd,
        pacemaker::{Pacemaker, PacemakerError},
        pgbouncer::Console,
        postgres::{Burdens, Delays, LocalPostgres, OpenTransaction, Postgres, PostgresError},
    },
    error::chain,
    model::{
        attempt::LOCK,
        cluster::ClusterView,
        crm_mon::PacemakerView,
        finding::Finding,
        health::{Component, Verdict},
        location::Location,
        primary::LocalFacts,
        successor,
    },
    work::publish::CLUSTER,
};

/// More WAL segments than this waiting for the archive make a shutdown too long.
const ARCHIVE_BACKLOG_SEGMENTS: i64 = 20;
/// A standby that has more than this to replay makes a promotion too long.
const REPLAY_BACKLOG_BYTES: u64 = 64 << 20;
/// Younger transactions are business as usual.
const TRANSACTION_AGE: Duration = Duration::from_secs(1);

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
            Err(error) => return vec![Finding::refuse("pacemaker", self.told(&error.in_full()))],
        };
        let mut findings = roles(&view);
        match view.promoted()[..] {
            [primary] if primary == self.node => {
                findings.extend(cluster(&view));
                findings.extend(locations(self.pacemaker.locations(&view).await));
                match &facts {
                    Ok(facts) => findings.extend(self.primary(&view, facts, terms).await),
                    Err(error) => findings.push(self.silent(error)),
                }
            }
            [_] => findings = self.standby(facts.as_ref(), terms).await,
            _ => {}
        }
        findings
    }

    async fn primary(
        &self,
        view: &PacemakerView,
        facts: &LocalFacts,
        terms: &Terms,
    ) -> Vec<Finding> {
        let mut findings = target(view, &self.node, facts, terms);
        let age = TRANSACTION_AGE.min(terms.pause_timeout);
        let (open, burdens) =
            tokio::join!(self.postgres.open_transactions(age), self.postgres.burdens());
        match open {
            Ok(open) => findings.extend(open_transactions(&open, terms.pause_timeout)),
            Err(error) => findings.push(self.silent(&error)),
        }
        match burdens {
            Ok(found) => findings.extend(burdens_of(&found)),
            Err(error) => findings.push(self.silent(&error)),
        }
        findings
    }

    /// What a standby knows better than the primary: whether it would be promoted quickly.
    async fn standby(
        &self,
        facts: Result<&LocalFacts, &PostgresError>,
        terms: &Terms,
    ) -> Vec<Finding> {
        if let Err(error) = facts {
            // The primary refuses when this is the standby that it would move to.
            return vec![Finding::warn("postgres", self.told(&chain(error).to_string()))];
        }
        match self.postgres.delays().await {
            Ok(delays) => delays_of(&self.node, &delays, self.is_target(terms).await),
            Err(error) => vec![Finding::warn("postgres", self.told(&chain(&error).to_string()))],
        }
    }

    /// Whether the primary would move here.
    async fn is_target(&self, terms: &Terms) -> bool {
        if let Some(target) = &terms.target {
            return *target == self.node;
        }
        let published = self.etcd.get(CLUSTER).await.ok().flatten();
        published
            .and_then(|entry| serde_json::from_str::<ClusterView>(&entry.value).ok())
            .is_some_and(|view| {
                view.synchronous_standby().is_some_and(|standby| standby.name == self.node)
            })
    }

    fn silent(&self, error: &PostgresError) -> Finding {
        Finding::refuse("postgres", self.told(&chain(error).to_string()))
    }

    fn told(&self, what: &str) -> String {
        format!("{}: {what}", self.node)
    }

    /// One verdict each for `quorum`, `postgres`, `pgbouncer` and `etcd`.
    pub async fn health(&self) -> Vec<Component> {
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
        vec![quorum_health(&view), postgres, pgbouncer, etcd]
    }
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

fn roles(view: &PacemakerView) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !view.quorum {
        findings.push(Finding::refuse(
            "quorum",
            "this side of the cluster has no quorum; bring back enough nodes first",
        ));
    }
    match view.promoted()[..] {
        [_] => {}
        [] => findings
            .push(Finding::refuse("primary", "no node is promoted; look at: crm_mon -Afr -1")),
        ref nodes => findings.push(Finding::refuse(
            "primary",
            format!("{} are promoted at once; stop all but one of them", nodes.join(" and ")),
        )),
    }
    findings
}

fn cluster(view: &PacemakerView) -> Vec<Finding> {
    let mut findings = Vec::new();
    if view.maintenance {
        findings.push(Finding::refuse(
            "maintenance",
            "the cluster is in maintenance mode, so Pacemaker would move nothing; \
             run: crm_attribute --name maintenance-mode --delete",
        ));
    }
    if !view.fencing {
        findings.push(Finding::warn(
            "fencing",
            "fencing is off (stonith-enabled=false): a lost node may go on taking writes",
        ));
    }
    for node in view.nodes.iter().filter(|node| node.standby || !node.online) {
        let what = if node.online { "in standby mode" } else { "offline" };
        findings.push(Finding::warn("nodes", format!("{} is {what}", node.name)));
    }
    for fails in &view.fail_counts {
        findings.push(Finding::warn(
            "fail-count",
            format!(
                "the resource failed on {node} before ({count} times); \
                 once the cause is known run: crm_resource --cleanup --node {node}",
                node = fails.node,
                count = fails.count
            ),
        ));
    }
    findings
}

fn locations(found: Result<Vec<Location>, PacemakerError>) -> Vec<Finding> {
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![Finding::refuse("constraints", error.in_full())],
    };
    let leftovers = found.iter().filter(|location| location.is_leftover());
    leftovers
        .map(|location| {
            let id = &location.id;
            let message = format!(
                "constraint {id} of an earlier move is still there and would pin the primary; \
                 run: cibadmin --delete --xpath \"//rsc_location[@id='{id}']\""
            );
            // This attempt replaces pgcm's own; somebody else's works against it.
            if location.is_ours() {
                Finding::warn("constraints", message)
            } else {
                Finding::refuse("constraints", message)
            }
        })
        .collect()
}

fn target(view: &PacemakerView, node: &str, facts: &LocalFacts, terms: &Terms) -> Vec<Finding> {
    match successor::choose(view, node, &facts.standbys, terms.target.as_deref()) {
        Err(why) => vec![Finding::refuse("target", why.to_string())],
        Ok(standby) if standby.replay_lag_bytes > REPLAY_BACKLOG_BYTES => vec![Finding::refuse(
            "lag",
            format!(
                "{} has {} MB to replay before it can be promoted; wait until it has caught up",
                standby.name,
                standby.replay_lag_bytes >> 20
            ),
        )],
        Ok(_) => Vec::new(),
    }
}

fn open_transactions(open: &[OpenTransaction], pause_timeout: Duration) -> Vec<Finding> {
    let one = |t: &OpenTransaction| {
        format!(
            "PID {} ({} on {}, {:?}, {} for {:.1}s): {}",
            t.pid,
            t.user,
            t.database,
            t.application,
            t.state,
            t.age.as_secs_f64(),
            t.query
        )
    };
    if open.is_empty() {
        return Vec::new();
    }
    let list: Vec<_> = open.iter().map(one).collect();
    let message = format!(
        "the pause fails if these do not end within {pause_timeout:?}: {}; end them (SELECT \
         pg_terminate_backend(PID)), or use --attempts or --terminate-blockers-after",
        list.join("; ")
    );
    // Of a younger one the pause is the judge: it may end in time, and a pause that fails is undone.
    let finding = if open.iter().any(|open| open.age >= pause_timeout) {
        Finding::refuse("open-transactions", message)
    } else {
        Finding::warn("open-transactions", message)
    };
    vec![finding]
}

fn burdens_of(burdens: &Burdens) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !burdens.prepared_transactions.is_empty() {
        findings.push(Finding::warn(
            "prepared-transactions",
            format!(
                "these keep their locks across the move: {}; commit them or roll them back",
                burdens.prepared_transactions.join(", ")
            ),
        ));
    }
    let pending = burdens.unarchived_segments.unwrap_or(0);
    if let Some(segment) = &burdens.archive_failing {
        findings.push(Finding::refuse(
            "archive",
            format!(
                "archive_command fails on {segment}, {pending} segments wait, and a shutdown waits \
                 for them; repair archiving first (SELECT * FROM pg_stat_archiver)"
            ),
        ));
    } else if pending > ARCHIVE_BACKLOG_SEGMENTS {
        findings.push(Finding::refuse(
            "archive",
            format!(
                "{pending} WAL segments wait for the archive, and a shutdown waits for them; \
                 wait until they are fewer than {ARCHIVE_BACKLOG_SEGMENTS}"
            ),
        ));
    } else if pending > 1 {
        findings
            .push(Finding::warn("archive", format!("{pending} WAL segments wait for the archive")));
    }
    if !burdens.logical_walsenders.is_empty() {
        findings.push(Finding::warn(
            "logical-replication",
            format!(
                "a shutdown waits until these have received everything: {}",
                burdens.logical_walsenders.join(", ")
            ),
        ));
    }
    findings
}

/// A delay matters where the primary would move to; elsewhere it is worth a word.
fn delays_of(node: &str, delays: &Delays, is_target: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut push = |message: String| {
        findings.push(if is_target {
            Finding::refuse("delay", message)
        } else {
            Finding::warn("delay", message)
        });
    };
    if delays.replay_paused {
        push(format!("replay is paused on {node}; run there: SELECT pg_wal_replay_resume()"));
    }
    if !delays.apply_delay.is_zero() {
        let delay = delays.apply_delay;
        push(format!("{node} applies WAL {delay:?} late (recovery_min_apply_delay); set it to 0"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::finding::Severity;

    #[test]
    fn a_transaction_older_than_the_pause_may_last_refuses_and_a_younger_one_warns() {
        let open = OpenTransaction {
            pid: 4711,
            user: "app".to_owned(),
            database: "app".to_owned(),
            application: "shop".to_owned(),
            state: "idle in transaction".to_owned(),
            age: Duration::from_secs(90),
            query: "UPDATE stock SET n = n - 1".to_owned(),
        };
        let found = open_transactions(std::slice::from_ref(&open), Duration::from_secs(91));
        assert_eq!(found[0].severity, Severity::Warn);
        let found = open_transactions(&[open], Duration::from_secs(90));
        assert_eq!(found[0].severity, Severity::Refuse);
        assert!(found[0].message.contains("PID 4711"), "{}", found[0].message);
    }

    #[test]
    fn an_archive_that_fails_refuses_and_one_that_is_busy_warns() {
        let failing = Burdens {
            unarchived_segments: Some(3),
            archive_failing: Some("000000010000000000000007".to_owned()),
            ..Burdens::default()
        };
        assert_eq!(burdens_of(&failing)[0].severity, Severity::Refuse);
        let busy = Burdens { unarchived_segments: Some(3), ..Burdens::default() };
        assert_eq!(burdens_of(&busy)[0].severity, Severity::Warn);
        let behind = Burdens { unarchived_segments: Some(21), ..Burdens::default() };
        assert_eq!(burdens_of(&behind)[0].severity, Severity::Refuse);
        assert_eq!(burdens_of(&Burdens::default()), []);
    }

    #[test]
    fn a_ban_by_hand_refuses_and_a_leftover_of_ours_warns() {
        let location = |id: &str| Location {
            id: id.to_owned(),
            resource: "msPostgresql".to_owned(),
            until: None,
        };
        let found = locations(Ok(vec![
            location("cli-ban-msPostgresql-on-pg01"),
            location("pgcm-move-msPostgresql"),
            location("prefer-big-machines"),
        ]));
        let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Refuse, Severity::Warn]);
    }
}
