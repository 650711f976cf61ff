//! The list of steps on a terminal: one line each, rewritten until the step has ended.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    edge::streams,
    model::finding::Finding,
    work::failover::progress::{Event, Progress},
};

/// How often the line of the running step is drawn anew.
const TICK: Duration = Duration::from_millis(100);
/// More names than this are only counted.
const NAMED: usize = 3;

pub(super) struct Live(Mutex<Option<Running>>);

/// The step, or its undo, that runs now.
struct Running {
    label: String,
    began: Instant,
    limit: Duration,
    awaited: Vec<String>,
}

impl Running {
    fn line(&self, elapsed: Duration) -> String {
        let elapsed = elapsed.as_secs_f64();
        let limit = self.limit.as_secs_f64();
        let mut line = format!("  {:<10} {elapsed:>5.1} s of at most {limit:.0} s", self.label);
        if !self.awaited.is_empty() {
            line.push_str(", waiting for ");
            line.push_str(&listed(&self.awaited));
        }
        line
    }
}

/// The first names, and how many more.
fn listed(names: &[String]) -> String {
    let shown = names.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    match names.len().checked_sub(NAMED) {
        None | Some(0) => shown,
        Some(more) => format!("{shown} and {more} more"),
    }
}

/// The lines that stay, of an event that leaves any.
fn lasting(event: &Event<'_>) -> Option<String> {
    let ended = |label: String, how: &str, took: &Duration| {
        format!("  {label:<10} {how:<7} {:>6} ms", took.as_millis())
    };
    Some(match event {
        Event::Done { step, took } => ended((*step).to_owned(), "done", took),
        Event::Stopped { step, took, reason } => {
            format!("{}  {reason}", ended((*step).to_owned(), "stopped", took))
        }
        Event::UndoDone { step, took, dirty: [] } => ended(format!("undo {step}"), "done", took),
        Event::UndoDone { step, took, .. } => ended(format!("undo {step}"), "FAILED", took),
        Event::Overridden { found } => {
            let Finding { check, message, .. } = &found.finding;
            format!("  OVERRIDDEN {check} ({}): {message}", found.by)
        }
        Event::Terminated { transactions } => {
            let one = |ended| format!("  TERMINATED {ended}");
            transactions.iter().map(one).collect::<Vec<_>>().join("\n")
        }
        Event::NotTerminated { reason } => format!("  cannot terminate: {reason}"),
        Event::Again { attempt, of, wait } => {
            format!("  attempt {attempt} of {of} begins in {wait:?}; clients work meanwhile")
        }
        Event::Begun { .. } | Event::Awaiting { .. } | Event::UndoBegun { .. } => return None,
    })
}

impl Live {
    /// Must be called inside a runtime; draws until the last reference to it is dropped.
    pub(super) fn start(dry_run: bool) -> Arc<Self> {
        let live = Arc::new(Self(Mutex::default()));
        if !dry_run {
            live.draw(Some(
                "  Ctrl-C, once, stops it: what was begun is undone, and clients are let go",
            ));
        }
        let drawn = Arc::downgrade(&live);
        tokio::spawn(async move {
            while let Some(live) = drawn.upgrade() {
                live.draw(None);
                drop(live);
                sleep(TICK).await;
            }
        });
        live
    }

    /// Says that a signal was heard and what follows from it.
    pub(super) fn stopping(&self) {
        self.draw(Some(
            "  stopping: what was begun is undone now; a demotion cannot be, so after it the new primary is \
             waited for. A second Ctrl-C changes nothing",
        ));
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts `lasting` above the line of what runs, and draws that anew.
    fn draw(&self, lasting: Option<&str>) {
        let running = self.running();
        let line = running
            .as_ref()
            .map(|running| running.line(running.began.elapsed()))
            .unwrap_or_default();
        let lasting = lasting.map(|text| format!("{text}\n")).unwrap_or_default();
        if lasting.is_empty() && line.is_empty() {
            return;
        }
        // Back to the line's begin, erase it; and no wrapping, which could not be erased.
        streams::stderr().show(&format!("\r\x1b[2K{lasting}\x1b[?7l{line}\x1b[?7h"));
    }
}

impl Progress for Live {
    fn tell(&self, event: &Event<'_>) {
        match event {
            Event::Begun { step, limit } => self.begin((*step).to_owned(), *limit),
            Event::UndoBegun { step, limit } => self.begin(format!("undo {step}"), *limit),
            Event::Awaiting { names, .. } => {
                if let Some(running) = self.running().as_mut() {
                    running.awaited = names.to_vec();
                }
            }
            Event::Done { .. } | Event::Stopped { .. } | Event::UndoDone { .. } => {
                *self.running() = None;
            }
            _ => {}
        }
        self.draw(lasting(event).as_deref());
    }
}

impl Live {
    fn begin(&self, label: String, limit: Duration) {
        let began = Instant::now();
        *self.running() = Some(Running { label, began, limit, awaited: Vec::new() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_of_a_step_tells_elapsed_limit_and_who_is_awaited() {
        let names = |count: usize| (0..count).map(|n| format!("app{n}/proxy")).collect();
        let mut running = Running {
            label: "pause".to_owned(),
            began: Instant::now(),
            limit: Duration::from_secs(25),
            awaited: Vec::new(),
        };
        let elapsed = Duration::from_millis(1_240);
        assert_eq!(running.line(elapsed), "  pause        1.2 s of at most 25 s");
        running.awaited = names(1);
        assert_eq!(
            running.line(elapsed),
            "  pause        1.2 s of at most 25 s, waiting for app0/proxy"
        );
        running.awaited = names(200);
        let line = running.line(elapsed);
        assert!(line.ends_with("waiting for app0/proxy, app1/proxy, app2/proxy and 197 more"));
    }

    #[test]
    fn what_ended_stays_and_what_runs_does_not() {
        let took = Duration::from_millis(7);
        let done = lasting(&Event::Done { step: "pause", took });
        assert_eq!(done.as_deref(), Some("  pause      done         7 ms"));
        let undone = lasting(&Event::UndoDone { step: "pause", took, dirty: &[] });
        assert_eq!(undone.as_deref(), Some("  undo pause done         7 ms"));
        assert_eq!(lasting(&Event::Begun { step: "pause", limit: took }), None);
    }
}
