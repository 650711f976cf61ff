//! Past changes of the primary: the values below `/history/`.

use std::{fmt::Write as _, time::Duration};

use serde::{Deserialize, Serialize};

use super::{
    attempt::Attempt,
    cluster::{ClusterView, Primary},
    crm_mon::PacemakerView,
    primary::LocalFacts,
    table::table,
    terminated::Terminated,
};

/// Prefix of the keys, below the namespace.
pub const HISTORY: &str = "/history/";
/// Older entries go.
pub const KEPT: usize = 100;
/// Outcome of a planned failover that has not told its end.
pub const RUNNING: &str = "running";

/// Key of what happened at `unix_ms`. Of fixed width, so that the order of keys is that of time.
pub fn key(unix_ms: u64) -> String {
    format!("{HISTORY}{unix_ms:015}")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `pgcm failover`, whatever came of it.
    Planned,
    /// Nobody asked pgcm for it.
    Unplanned,
}

/// One entry. What a planned failover writes has more than is read here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started_at: Option<String>,
    /// Absent while a planned failover runs, and for good when its process died.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<String>,
    /// As in the report of a failover; `running` until that is written; `promoted` when unplanned.
    pub outcome: String,
    /// Name of the attempt that was planned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempt: Option<String>,
    /// Who ran it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<String>,
    /// The step that a planned failover was at last, until it has told its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    pub old_primary: Option<Primary>,
    pub new_primary: Option<Primary>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clients_held_ms: Option<u64>,
    /// Unplanned: from the last look that saw the old primary in its place until the new one was
    /// published. Absent when the new primary's supervise had not seen the old one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub without_primary_ms: Option<u64>,
    /// Unplanned: when the old primary last wrote its view, by its own clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_confirmed_at: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<PastStep>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stopped: Option<PastStop>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<PastFinding>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub terminated: Vec<Terminated>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastStep {
    pub step: String,
    /// `done`, `stopped`, `not_begun`.
    pub state: String,
    pub duration_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastStop {
    pub step: String,
    pub reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastFinding {
    pub by: String,
    pub check: String,
    #[serde(default)]
    pub overridden: bool,
}

/// The change that publishing `ours` over `stored` is, when nobody else writes it down: a newer
/// timeline that no failover with the lock explains. Times are left empty.
pub fn unplanned(
    stored: Option<&ClusterView>,
    ours: &ClusterView,
    lock: Option<&Attempt>,
) -> Option<Change> {
    let stored = stored?;
    let is_new = ours.primary.timeline > stored.primary.timeline;
    if !is_new || lock.is_some_and(Attempt::moves_the_primary) {
        return None;
    }
    Some(Change {
        kind: Kind::Unplanned,
        started_at: None,
        ended_at: None,
        outcome: "promoted".to_owned(),
        attempt: None,
        holder: None,
        step: None,
        old_primary: Some(stored.primary.clone()),
        new_primary: Some(ours.primary.clone()),
        duration_ms: None,
        clients_held_ms: None,
        without_primary_ms: None,
        last_confirmed_at: Some(stored.observed_at.clone()).filter(|at| !at.is_empty()),
        steps: Vec::new(),
        stopped: None,
        findings: Vec::new(),
        terminated: Vec::new(),
    })
}

/// Whether what is published is still so for all that `node` sees: Pacemaker runs that primary
/// on a node that is well, and if it is this one its Postgres takes writes.
pub fn is_as_published(
    view: &PacemakerView,
    node: &str,
    local: Option<&LocalFacts>,
    published: &Primary,
) -> bool {
    let well = view.node(&published.name).is_some_and(|node| node.online && !node.unclean);
    let writable = |facts: &LocalFacts| facts.writable && facts.timeline == published.timeline;
    let elsewhere = published.name != node;
    well && view.promoted() == [published.name.as_str()]
        && (elsewhere || local.is_some_and(writable))
}

/// How long planned failovers took that were done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Expected {
    /// How many it is drawn from.
    pub failovers: usize,
    pub clients_held: Spread,
    pub steps: Vec<ExpectedStep>,
}

impl Expected {
    /// How long `step` takes, in the middle of those that it is drawn from.
    pub fn median(&self, step: &str) -> Option<Duration> {
        let found = self.steps.iter().find(|expected| expected.step == step)?;
        Some(Duration::from_millis(found.spread.median_ms))
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpectedStep {
    pub step: String,
    #[serde(flatten)]
    pub spread: Spread,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Spread {
    pub median_ms: u64,
    pub worst_ms: u64,
}

impl Spread {
    fn of(mut values: Vec<u64>) -> Option<Self> {
        values.sort_unstable();
        let median_ms = *values.get(values.len().checked_sub(1)? / 2)?;
        Some(Self { median_ms, worst_ms: *values.last()? })
    }
}

/// What to expect of the next planned failover, from the last ten of `entries` (newest first) that
/// were done; `None` without any.
pub fn expected(entries: &[Entry]) -> Option<Expected> {
    let done =
        |entry: &&Entry| entry.change.kind == Kind::Planned && entry.change.outcome == "done";
    let done: Vec<&Change> = entries.iter().filter(done).take(10).map(|e| &e.change).collect();
    let names = &done.first()?.steps;
    let of_step = |name: &str| {
        let steps = done.iter().flat_map(|change| &change.steps);
        Spread::of(steps.filter(|step| step.step == name).map(|step| step.duration_ms).collect())
    };
    let steps = names.iter().filter_map(|PastStep { step, .. }| {
        Some(ExpectedStep { step: step.clone(), spread: of_step(step)? })
    });
    Some(Expected {
        failovers: done.len(),
        clients_held: Spread::of(done.iter().filter_map(|c| c.clients_held_ms).collect())?,
        steps: steps.collect(),
    })
}

/// What is read from one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub key: String,
    pub change: Change,
}

/// `entries`, newest first, as text for a terminal.
pub fn text(entries: &[Entry]) -> String {
    if entries.is_empty() {
        return "no change of the primary is on record\n".to_owned();
    }
    let heads = ["WHEN", "KIND", "FROM", "TO", "OUTCOME", "TOOK", "CLIENTS WAITED", "NO PRIMARY"];
    let mut rows = vec![heads.map(str::to_owned).to_vec()];
    rows.extend(entries.iter().map(|entry| row(&entry.change)));
    let mut out = String::new();
    let table = table(&rows);
    let mut lines = table.lines();
    let _ = writeln!(out, "{}", lines.next().unwrap_or_default());
    for (line, entry) in lines.zip(entries) {
        let _ = writeln!(out, "{line}");
        for note in notes(&entry.change) {
            let _ = writeln!(out, "    {note}");
        }
    }
    out
}

fn row(change: &Change) -> Vec<String> {
    let dash = || "-".to_owned();
    let ms = |ms: Option<u64>| ms.map_or_else(dash, |ms| format!("{ms} ms"));
    let of = |primary: &Option<Primary>| {
        primary.as_ref().map_or_else(dash, |p| format!("{} ({})", p.name, p.timeline))
    };
    let when = change.started_at.as_ref().or(change.ended_at.as_ref());
    let kind = match change.kind {
        Kind::Planned => "planned",
        Kind::Unplanned => "unplanned",
    };
    vec![
        when.cloned().unwrap_or_else(dash),
        kind.to_owned(),
        of(&change.old_primary),
        of(&change.new_primary),
        change.outcome.clone(),
        ms(change.duration_ms),
        ms(change.clients_held_ms),
        ms(change.without_primary_ms),
    ]
}

fn notes(change: &Change) -> Vec<String> {
    let mut notes = Vec::new();
    if change.outcome == RUNNING {
        let step = change.step.as_ref().map(|step| format!(", last at step {step}"));
        notes.push(format!(
            "it has not told its end{}: it runs still, or its process died",
            step.unwrap_or_default()
        ));
    }
    if let Some(stop) = &change.stopped {
        notes.push(format!("stopped at {}: {}", stop.step, stop.reason));
    }
    let overridden = change.findings.iter().filter(|finding| finding.overridden);
    notes.extend(
        overridden.map(|finding| format!("overridden: {} ({})", finding.check, finding.by)),
    );
    notes.extend(change.terminated.iter().map(|one| format!("terminated: {one}")));
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::wanted::tests::view;

    fn at(timeline: u32) -> ClusterView {
        let mut view = view("10.0.0.1");
        view.primary.timeline = timeline;
        view
    }

    fn attempt(purpose: &str, step: &str) -> Attempt {
        Attempt {
            id: "a".to_owned(),
            holder: "pg09".to_owned(),
            purpose: purpose.to_owned(),
            started_at: String::new(),
            step: step.to_owned(),
            pause_deadline_unix_ms: 0,
        }
    }

    #[test]
    fn a_newer_timeline_is_a_change_unless_a_failover_moves_the_primary() {
        let (old, new) = (at(7), at(8));
        let change = unplanned(Some(&old), &new, None).expect("a change");
        assert_eq!(change.old_primary, Some(old.primary.clone()));
        assert_eq!(change.last_confirmed_at.as_deref(), Some("2026-01-01T00:00:00Z"));
        for (purpose, step, written) in [
            ("failover", "migrate", false),
            ("failover", "verify", false),
            // The primary was lost while nobody had asked for a move yet.
            ("failover", "pause", true),
            ("with-lock: sleep 9", "running", true),
        ] {
            let lock = attempt(purpose, step);
            let found = unplanned(Some(&old), &new, Some(&lock));
            assert_eq!(found.is_some(), written, "{purpose} at {step}");
        }
        assert_eq!(unplanned(Some(&new), &new, None), None, "nothing changed");
        assert_eq!(unplanned(None, &new, None), None, "what was before is not known");
    }

    #[test]
    fn what_to_expect_comes_from_failovers_that_were_done() {
        let past = |outcome: &str, held, migrate| {
            let mut change = unplanned(Some(&at(7)), &at(8), None).expect("a change");
            change.kind = Kind::Planned;
            change.outcome = outcome.to_owned();
            change.clients_held_ms = Some(held);
            change.steps = vec![PastStep {
                step: "migrate".to_owned(),
                state: "done".to_owned(),
                duration_ms: migrate,
            }];
            Entry { key: key(1), change }
        };
        assert_eq!(expected(&[past("put_back", 9_999, 9_999)]), None);
        let entries = [
            ("done", 500, 300),
            ("put_back", 9_999, 9_999),
            ("done", 400, 250),
            ("done", 900, 700),
        ]
        .map(|(outcome, held, migrate)| past(outcome, held, migrate));
        let spread = |median_ms, worst_ms| Spread { median_ms, worst_ms };
        let step = ExpectedStep { step: "migrate".to_owned(), spread: spread(300, 700) };
        let wanted = Expected { failovers: 3, clients_held: spread(500, 900), steps: vec![step] };
        assert_eq!(expected(&entries), Some(wanted));
    }

    #[test]
    fn text_tells_kinds_ends_and_what_was_overridden() {
        let mut planned = unplanned(Some(&at(7)), &at(8), None).expect("a change");
        planned.kind = Kind::Planned;
        planned.started_at = Some("2026-01-01T00:00:00Z".to_owned());
        planned.outcome = "put_back".to_owned();
        planned.clients_held_ms = Some(12);
        planned.stopped = Some(PastStop { step: "pause".to_owned(), reason: "busy".to_owned() });
        planned.findings = vec![PastFinding {
            by: "pg01/supervise".to_owned(),
            check: "archive".to_owned(),
            overridden: true,
        }];
        let mut lost = unplanned(Some(&at(8)), &at(9), None).expect("a change");
        lost.ended_at = Some("2026-01-02T00:00:00Z".to_owned());
        lost.without_primary_ms = Some(4000);
        let entries = [lost, planned].map(|change| Entry { key: key(1), change });
        assert_eq!(
            text(&entries),
            "\
WHEN                  KIND       FROM      TO        OUTCOME   TOOK  CLIENTS WAITED  NO PRIMARY
2026-01-02T00:00:00Z  unplanned  pg01 (8)  pg01 (9)  promoted  -     -               4000 ms
2026-01-01T00:00:00Z  planned    pg01 (7)  pg01 (8)  put_back  -     12 ms           -
    stopped at pause: busy
    overridden: archive (pg01/supervise)
"
        );
        assert_eq!(text(&[]), "no change of the primary is on record\n");
    }
}
