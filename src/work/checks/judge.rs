//! What Postgres of a node and its machine mean for a planned failover: pure verdicts, each with what
//! to do.

use std::{path::Path, time::Duration};

use super::Terms;
use crate::{
    edge::{
        disk::Space,
        postgres::{Burdens, Delays, LogicalSlot, OpenTransaction, Walsender},
    },
    model::{crm_mon::PacemakerView, finding::Finding, primary::LocalFacts, successor},
};

/// More WAL segments than this waiting for the archive make a shutdown too long.
const ARCHIVE_BACKLOG_SEGMENTS: i64 = 20;
/// A standby that has more than this to replay makes a promotion too long.
const REPLAY_BACKLOG_BYTES: u64 = 64 << 20;
/// A receiver that is further behind makes a shutdown too long: it waits for each.
const WALSENDER_BACKLOG_BYTES: u64 = 16 << 20;
/// With less space a checkpoint, or the WAL of a promotion, may stop Postgres.
const LEAST_FREE_BYTES: u64 = 256 << 20;
/// Less space than this is worth a word.
const LITTLE_FREE_BYTES: u64 = 1 << 30;

pub(super) fn target(
    view: &PacemakerView,
    node: &str,
    facts: &LocalFacts,
    terms: &Terms,
) -> Vec<Finding> {
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

pub(super) fn open_transactions(open: &[OpenTransaction], pause_timeout: Duration) -> Vec<Finding> {
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

pub(super) fn burdens_of(burdens: &Burdens) -> Vec<Finding> {
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
        let words = format!(
            "{pending} WAL segments wait for the archive, and a shutdown waits for them; see that \
             archive_command keeps up (SELECT * FROM pg_stat_archiver)"
        );
        findings.push(Finding::warn("archive", words));
    }
    findings
}

/// A delay matters where the primary would move to; elsewhere it is worth a word.
pub(super) fn delays_of(node: &str, delays: &Delays, is_target: bool) -> Vec<Finding> {
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

/// Whoever is sent WAL and is none of Pacemaker's nodes: a shutdown waits until it has everything.
pub(super) fn walsenders(view: &PacemakerView, all: &[Walsender]) -> Vec<Finding> {
    let others = all.iter().filter(|one| one.is_logical || view.node(&one.application).is_none());
    let judge = |one: &Walsender| {
        let Walsender { application, pid, behind_bytes, .. } = one;
        if one.is_backup {
            let words = format!(
                "a base backup runs ({application:?}, PID {pid}) and fails when the primary stops; \
                 wait for it if you need it"
            );
            return Finding::warn("walsenders", words);
        }
        let check = if one.is_logical { "logical-replication" } else { "walsenders" };
        let words = format!(
            "a shutdown waits until {application:?} (PID {pid}) has received everything, and it is \
             {} MB behind; wait until it has caught up, or end it: SELECT pg_terminate_backend({pid})",
            behind_bytes >> 20
        );
        if *behind_bytes > WALSENDER_BACKLOG_BYTES {
            Finding::refuse(check, words)
        } else {
            Finding::warn(check, words)
        }
    };
    others.map(judge).collect()
}

/// Slots of the primary that its successor will not have. Whether it has those that it may copy, only
/// both nodes together show.
pub(super) fn logical_slots(slots: &[LogicalSlot]) -> Option<Finding> {
    let left: Vec<_> = slots.iter().filter(|slot| slot.failover != Some(true)).collect();
    let remedy = if left.first()?.failover.is_none() {
        "before Postgres 17 no slot survives a move; drop those that nobody needs"
    } else {
        "make them failover slots (ALTER SUBSCRIPTION NAME SET (failover = true)), or drop those that \
         nobody needs"
    };
    let name = |slot: &&LogicalSlot| {
        let in_use = if slot.active { " (in use)" } else { "" };
        format!("{}{in_use}", slot.name)
    };
    let words = format!(
        "the new primary will not have the logical slots {}: their subscribers must be set up anew; \
         {remedy}",
        left.iter().map(name).collect::<Vec<_>>().join(", ")
    );
    Some(Finding::refuse("logical-slots", words))
}

/// Whether the file system of `place` has room. It decides only where the primary is or moves to.
pub(super) fn disk(node: &str, place: &Path, space: Space, is_needed: bool) -> Option<Finding> {
    let Space { free_bytes, total_bytes } = space;
    let message = format!(
        "only {} of {} MB are free at {} on {node}; make room before Postgres stops for lack of it",
        free_bytes >> 20,
        total_bytes >> 20,
        place.display()
    );
    if free_bytes < LEAST_FREE_BYTES && is_needed {
        Some(Finding::refuse("disk-space", message))
    } else {
        (free_bytes < LITTLE_FREE_BYTES).then(|| Finding::warn("disk-space", message))
    }
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
    fn a_receiver_of_wal_that_is_far_behind_refuses_and_a_near_one_warns() {
        const HEALTHY: &str = include_str!("../../../tests/data/crm_mon/healthy/pgsql-trixie.xml");
        let view = PacemakerView::parse(HEALTHY, "Postgresql").expect("recorded");
        let walsender = |application: &str, is_logical, is_backup, behind_bytes| Walsender {
            application: application.to_owned(),
            pid: 4711,
            is_logical,
            is_backup,
            behind_bytes,
        };
        for (one, expected) in [
            (walsender("pg02", false, false, 1 << 30), None),
            (walsender("sub", true, false, 0), Some(("logical-replication", Severity::Warn))),
            (
                walsender("sub", true, false, 17 << 20),
                Some(("logical-replication", Severity::Refuse)),
            ),
            (walsender("pg02", true, false, 0), Some(("logical-replication", Severity::Warn))),
            (walsender("pg_receivewal", false, false, 0), Some(("walsenders", Severity::Warn))),
            (
                walsender("pg_receivewal", false, false, 17 << 20),
                Some(("walsenders", Severity::Refuse)),
            ),
            (
                walsender("pg_basebackup", false, true, 17 << 20),
                Some(("walsenders", Severity::Warn)),
            ),
        ] {
            let found = walsenders(&view, std::slice::from_ref(&one));
            let found = found.first().map(|finding| (finding.check.as_str(), finding.severity));
            assert_eq!(found, expected, "{one:?}");
        }
    }

    #[test]
    fn slots_that_the_new_primary_will_not_have_are_told_by_what_the_version_can() {
        let slot = |name: &str, failover| LogicalSlot {
            name: name.to_owned(),
            active: name == "busy",
            failover,
            usable: true,
        };
        let of = |slots: &[LogicalSlot]| logical_slots(slots).map(|finding| finding.message);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[slot("safe", Some(true))]), None);
        let told =
            of(&[slot("safe", Some(true)), slot("busy", Some(false)), slot("idle", Some(false))]);
        let told = told.expect("a finding");
        assert!(
            told.contains("the logical slots busy (in use), idle: their subscribers"),
            "{told}"
        );
        assert!(told.contains("SET (failover = true)"), "{told}");
        let told = of(&[slot("idle", None)]).expect("a finding");
        assert!(told.contains("before Postgres 17 no slot survives a move"), "{told}");
    }

    #[test]
    fn too_little_space_refuses_only_where_the_primary_is_or_moves_to() {
        let severity = |free_bytes, is_needed| {
            let space = Space { free_bytes, total_bytes: 1 << 40 };
            disk("pg01", Path::new("/data"), space, is_needed).map(|finding| finding.severity)
        };
        assert_eq!(severity(LITTLE_FREE_BYTES, true), None);
        assert_eq!(severity(LITTLE_FREE_BYTES - 1, true), Some(Severity::Warn));
        assert_eq!(severity(LEAST_FREE_BYTES - 1, true), Some(Severity::Refuse));
        assert_eq!(severity(LEAST_FREE_BYTES - 1, false), Some(Severity::Warn));
    }
}
