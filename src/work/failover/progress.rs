//! What a watcher is told while a failover runs.

use std::time::Duration;

use slog::{Logger, info, warn};

use super::pipeline::{Dirt, millis};

/// One thing that happened.
#[derive(Debug)]
pub enum Event<'a> {
    /// A step began, with at most `limit` to go.
    Begun {
        step: &'static str,
        limit: Duration,
    },
    /// Who has not answered yet; empty when all have.
    Awaiting {
        step: &'static str,
        names: &'a [String],
    },
    Done {
        step: &'static str,
        took: Duration,
    },
    Stopped {
        step: &'static str,
        took: Duration,
        reason: &'a str,
    },
    UndoBegun {
        step: &'static str,
        limit: Duration,
    },
    UndoDone {
        step: &'static str,
        took: Duration,
        dirty: &'a [Dirt],
    },
}

/// Told of each event as it happens; must return at once.
pub trait Progress: Send + Sync {
    fn tell(&self, event: &Event<'_>);
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn tell(&self, _: &Event<'_>) {}
}

/// One log line for each step that ended.
pub struct Logged(pub Logger);

impl Progress for Logged {
    fn tell(&self, event: &Event<'_>) {
        let log = &self.0;
        match event {
            Event::Begun { step, limit } => {
                slog::debug!(log, "a step began"; "event" => "failover.step.begin",
                    "step" => step, "limit_ms" => millis(*limit));
            }
            Event::Awaiting { step, names } => {
                slog::debug!(log, "waiting for agents"; "event" => "failover.step.wait",
                    "step" => step, "awaited" => names.join(","));
            }
            Event::Done { step, took } => {
                info!(log, "a step is done"; "event" => "failover.step.end",
                    "step" => step, "duration_ms" => millis(*took));
            }
            Event::Stopped { step, took, reason } => {
                warn!(log, "a step stopped"; "event" => "failover.step.fail",
                    "step" => step, "duration_ms" => millis(*took), "reason" => reason);
            }
            Event::UndoBegun { step, limit } => {
                slog::debug!(log, "undoing a step"; "event" => "failover.undo.begin",
                    "step" => step, "limit_ms" => millis(*limit));
            }
            Event::UndoDone { step, took, dirty: [] } => {
                info!(log, "a step is undone"; "event" => "failover.undo.end",
                    "step" => step, "duration_ms" => millis(*took));
            }
            Event::UndoDone { step, took, dirty } => {
                for dirt in *dirty {
                    slog::error!(log, "the undo of a step left something behind";
                        "event" => "failover.undo.fail", "step" => step,
                        "duration_ms" => millis(*took), "what" => &dirt.what,
                        "remedy" => &dirt.remedy);
                }
            }
        }
    }
}
