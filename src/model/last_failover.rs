//! What became of the last planned failover, for `pgcm status`.

use serde::Serialize;

use super::{
    attempt::Attempt,
    history::{Change, Kind, RUNNING},
};

/// Outcome of a failover that never told its end.
pub const UNFINISHED: &str = "unfinished";

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LastFailover {
    /// Who ran it, and when it began (RFC 3339 in UTC).
    pub holder: String,
    pub started_at: String,
    /// As in its report; `running` while it holds the lock; `unfinished` when it neither does nor told
    /// its end.
    pub outcome: String,
    /// The step that stopped, or that an unfinished one was at last.
    pub step: Option<String>,
    pub reason: Option<String>,
}

impl LastFailover {
    /// The newest planned one among `changes`, which begin with the newest; `lock` is who holds the
    /// failover lock now.
    pub fn of(changes: &[Change], lock: Option<&Attempt>) -> Option<Self> {
        let change = changes.iter().find(|change| change.kind == Kind::Planned)?;
        let is_held = lock.is_some_and(|lock| Some(&lock.id) == change.attempt.as_ref());
        let (outcome, reason) = match &*change.outcome {
            // After `unmigrate` it works on without the lock, and nothing of it is left but a wait.
            RUNNING if !is_held => {
                let words = "it does not hold the lock and has not told its end: its process died, was \
                             frozen or cut off, or it still waits for the old primary. Whatever it held \
                             ends by itself";
                (UNFINISHED, Some(words.to_owned()))
            }
            other => (other, change.stopped.as_ref().map(|stopped| stopped.reason.clone())),
        };
        let stopped = change.stopped.as_ref().map(|stopped| stopped.step.clone());
        Some(Self {
            holder: change.holder.clone().unwrap_or_else(|| "unknown".to_owned()),
            started_at: change.started_at.clone().unwrap_or_default(),
            outcome: outcome.to_owned(),
            step: stopped.or_else(|| change.step.clone()),
            reason,
        })
    }

    /// In one line.
    pub fn text(&self) -> String {
        let Self { holder, started_at, outcome, step, reason } = self;
        let step = step.as_ref().map(|step| format!(" at step {step}")).unwrap_or_default();
        let reason = reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default();
        format!("{outcome}{step}, by {holder}, since {started_at}{reason}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(value: serde_json::Value) -> Change {
        let mut change = serde_json::json!({
            "kind": "planned", "attempt": "a", "holder": "ops", "started_at": "noon",
            "old_primary": null, "new_primary": null,
        });
        change.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        serde_json::from_value(change).expect("a change")
    }

    fn holder(id: &str) -> Attempt {
        Attempt {
            id: id.to_owned(),
            holder: "ops".to_owned(),
            purpose: "failover".to_owned(),
            started_at: "noon".to_owned(),
            step: "migrate".to_owned(),
            pause_deadline_unix_ms: 0,
        }
    }

    #[test]
    fn a_failover_that_has_not_told_its_end_runs_only_while_it_holds_the_lock() {
        let running = change(serde_json::json!({ "outcome": "running", "step": "migrate" }));
        for (lock, outcome) in [(Some("a"), "running"), (Some("b"), UNFINISHED), (None, UNFINISHED)]
        {
            let lock = lock.map(holder);
            let last =
                LastFailover::of(std::slice::from_ref(&running), lock.as_ref()).expect("one");
            assert_eq!((last.outcome.as_str(), last.step.as_deref()), (outcome, Some("migrate")));
        }
        let text = LastFailover::of(&[running], None).expect("one").text();
        assert!(text.starts_with("unfinished at step migrate, by ops, since noon: it"), "{text}");
    }

    #[test]
    fn the_step_that_stopped_comes_with_its_reason() {
        let stopped = change(serde_json::json!({
            "outcome": "put_back", "stopped": { "step": "pause", "reason": "busy" },
        }));
        let unplanned = change(serde_json::json!({ "kind": "unplanned", "outcome": "promoted" }));
        let last = LastFailover::of(&[unplanned.clone(), stopped], None).expect("one");
        assert_eq!(last.text(), "put_back at step pause, by ops, since noon: busy");
        assert_eq!(LastFailover::of(&[unplanned], None), None);
    }
}
