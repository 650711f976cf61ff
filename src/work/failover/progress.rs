//! What a watcher is told while a failover runs.

use std::time::Duration;

use slog::{Logger, info, warn};

use super::{check::Found, pipeline::Dirt};
use crate::model::{span::millis, terminated::Terminated};

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
    /// A finding that would have stopped the failover was overridden by name.
    Overridden {
        found: &'a Found,
    },
    /// Transactions that held up the pause were ended, as asked for.
    Terminated {
        transactions: &'a [Terminated],
    },
    NotTerminated {
        reason: &'a str,
    },
    /// Another attempt begins after `wait`.
    Again {
        attempt: u32,
        of: u32,
        wait: Duration,
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
            Event::Overridden { .. }
            | Event::Terminated { .. }
            | Event::NotTerminated { .. }
            | Event::Again { .. } => self.tell_exception(event),
        }
    }
}

impl Logged {
    /// What the operator asked for beyond the usual.
    fn tell_exception(&self, event: &Event<'_>) {
        let log = &self.0;
        match event {
            Event::Overridden { found } => warn!(log, "OVERRIDDEN: a check that refuses";
                "event" => "failover.check.override", "by" => &found.by,
                "check" => &found.finding.check, "message" => &found.finding.message),
            Event::Terminated { transactions } => {
                for one in *transactions {
                    warn!(log, "TERMINATED: a transaction that held up the pause";
                        "event" => "failover.blocker.terminate", "pid" => one.pid,
                        "user" => &one.user, "database" => &one.database,
                        "application" => &one.application, "age_ms" => one.age_ms,
                        "query" => &one.query);
                }
            }
            Event::NotTerminated { reason } => {
                warn!(log, "cannot terminate what holds up the pause";
                "event" => "failover.blocker.fail", "reason" => reason)
            }
            Event::Again { attempt, of, wait } => info!(log, "trying again";
                "event" => "failover.attempt.wait", "attempt" => attempt, "attempts" => of,
                "wait_ms" => millis(*wait)),
            _ => {}
        }
    }
}
