//! Steps in a row, each under a limit; when one stops, every begun step is undone, newest first.
//!
//! Nothing here knows what the steps do. A signal ends an `act`, never an `undo`: an action that was
//! cut off may have taken effect, so the undo of begun steps must be idempotent and touch only what
//! the run owns.

use std::{future::Future, pin::Pin, time::Duration};

use serde::Serialize;
use tokio::time::{Instant, timeout};

use super::progress::{Event, Progress};
use crate::model::span::millis;

pub type Act<'a> = Pin<Box<dyn Future<Output = Result<(), Trouble>> + Send + 'a>>;
pub type UndoAct<'a> = Pin<Box<dyn Future<Output = Vec<Dirt>> + Send + 'a>>;

/// One row of the table.
pub struct Step<T: 'static> {
    pub name: &'static str,
    pub act: for<'a> fn(&'a T) -> Act<'a>,
    /// Asked when the step begins.
    pub limit: fn(&T) -> Duration,
    /// What it means when the action does not end within the limit.
    pub on_timeout: TroubleKind,
    pub undo: Option<Undo<T>>,
}

/// How a begun step is undone. Must be idempotent.
pub struct Undo<T: 'static> {
    pub act: for<'a> fn(&'a T) -> UndoAct<'a>,
    pub limit: fn(&T) -> Duration,
}

/// What a step could not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    pub kind: TroubleKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TroubleKind {
    /// Something outside did not answer; nothing was touched.
    Unanswered,
    /// Checks failed; nothing was touched.
    Refused,
    /// The lock is held elsewhere; nothing was touched.
    Locked,
    /// Clients' transactions outlived the pause: it may well succeed later.
    Busy,
    /// Anything else.
    Failed,
}

impl Trouble {
    pub fn new(kind: TroubleKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    pub fn failed(reason: impl Into<String>) -> Self {
        Self::new(TroubleKind::Failed, reason)
    }
}

/// Something that an undo could not put back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Dirt {
    pub what: String,
    /// What to run, or by when it ends by itself.
    pub remedy: String,
}

impl Dirt {
    pub fn new(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into() }
    }
}

/// Why a step stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    Failed,
    TimedOut,
    Signal,
    LockLost,
}

/// What ends an action from outside.
pub trait Interruptible {
    /// Returns, as soon as no further action may begin or go on, why not.
    fn interrupted(&self) -> impl Future<Output = (Cause, String)> + Send;
}

/// Where a run stopped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Stopped {
    pub step: &'static str,
    pub cause: Cause,
    pub reason: String,
    #[serde(skip)]
    pub kind: TroubleKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    Done,
    Stopped,
    NotBegun,
}

/// What became of one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StepReport {
    pub step: &'static str,
    pub state: StepState,
    pub duration_ms: u64,
    /// How long its undo took, if it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo_ms: Option<u64>,
}

/// What became of a run: the stopped step *and* everything left dirty.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    pub steps: Vec<StepReport>,
    pub stopped: Option<Stopped>,
    pub dirty: Vec<Dirt>,
}

/// Runs `steps` on `subject`; on the first that stops, undoes all that were begun.
pub async fn run<T: Interruptible + Sync>(
    steps: &[Step<T>],
    subject: &T,
    progress: &dyn Progress,
) -> Outcome {
    let mut outcome = Outcome::default();
    for step in steps {
        if outcome.stopped.is_some() {
            let state = StepState::NotBegun;
            let report = StepReport { step: step.name, state, duration_ms: 0, undo_ms: None };
            outcome.steps.push(report);
            continue;
        }
        let (stopped, duration_ms) = act(step, subject, progress).await;
        let state = if stopped.is_some() { StepState::Stopped } else { StepState::Done };
        outcome.steps.push(StepReport { step: step.name, state, duration_ms, undo_ms: None });
        outcome.stopped = stopped;
    }
    if outcome.stopped.is_some() {
        undo_begun(steps, subject, progress, &mut outcome).await;
    }
    outcome
}

async fn act<T: Interruptible + Sync>(
    step: &Step<T>,
    subject: &T,
    progress: &dyn Progress,
) -> (Option<Stopped>, u64) {
    let limit = (step.limit)(subject);
    let began = Instant::now();
    progress.tell(&Event::Begun { step: step.name, limit });
    let stopped = |cause, kind, reason| Some(Stopped { step: step.name, cause, reason, kind });
    let stopped = tokio::select! {
        // What forbids to act counts before what was achieved.
        biased;
        (cause, reason) = subject.interrupted() => stopped(cause, TroubleKind::Failed, reason),
        result = timeout(limit, (step.act)(subject)) => match result {
            Ok(Ok(())) => None,
            Ok(Err(trouble)) => stopped(Cause::Failed, trouble.kind, trouble.reason),
            Err(_) => {
                let reason = format!("it did not end within {limit:?}");
                stopped(Cause::TimedOut, step.on_timeout, reason)
            }
        },
    };
    let took = began.elapsed();
    match &stopped {
        None => progress.tell(&Event::Done { step: step.name, took }),
        Some(stopped) => {
            progress.tell(&Event::Stopped { step: step.name, took, reason: &stopped.reason });
        }
    }
    (stopped, millis(took))
}

async fn undo_begun<T: Interruptible + Sync>(
    steps: &[Step<T>],
    subject: &T,
    progress: &dyn Progress,
    outcome: &mut Outcome,
) {
    for (step, report) in steps.iter().zip(&mut outcome.steps).rev() {
        let Some(undo) = step.undo.as_ref().filter(|_| report.state != StepState::NotBegun) else {
            continue;
        };
        let limit = (undo.limit)(subject);
        let began = Instant::now();
        progress.tell(&Event::UndoBegun { step: step.name, limit });
        let dirty = timeout(limit, (undo.act)(subject)).await.unwrap_or_else(|_| {
            let what = format!("the undo of {} did not end within {limit:?}", step.name);
            vec![Dirt::new(what, "run `pgcm status` to see what is left")]
        });
        let took = began.elapsed();
        progress.tell(&Event::UndoDone { step: step.name, took, dirty: &dirty });
        report.undo_ms = Some(millis(took));
        outcome.dirty.extend(dirty);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::work::failover::progress::Silent;

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum How {
        Fails,
        Hangs,
        Signalled,
    }

    /// Writes down what is done to it; stops at one step, in one way.
    struct Subject {
        stop_at: &'static str,
        how: How,
        undo_hangs: bool,
        calls: Mutex<Vec<String>>,
        signal: tokio::sync::watch::Sender<bool>,
    }

    impl Interruptible for Subject {
        async fn interrupted(&self) -> (Cause, String) {
            let mut signal = self.signal.subscribe();
            let _ = signal.wait_for(|&set| set).await;
            (Cause::Signal, "SIGTERM".to_owned())
        }
    }

    impl Subject {
        fn new(stop_at: &'static str, how: How, undo_hangs: bool) -> Self {
            let signal = tokio::sync::watch::Sender::new(false);
            Self { stop_at, how, undo_hangs, calls: Mutex::default(), signal }
        }

        async fn act(&self, step: &'static str) -> Result<(), Trouble> {
            self.calls.lock().unwrap().push(format!("act {step}"));
            if step == self.stop_at {
                match self.how {
                    How::Fails => return Err(Trouble::failed("told to fail")),
                    How::Hangs => std::future::pending::<()>().await,
                    How::Signalled => {
                        self.signal.send_replace(true);
                        std::future::pending::<()>().await;
                    }
                }
            }
            Ok(())
        }

        async fn undo(&self, step: &'static str) -> Vec<Dirt> {
            // Longer than an instant, so that a signal could end it if it were allowed to.
            tokio::time::sleep(Duration::from_millis(5)).await;
            self.calls.lock().unwrap().push(format!("undo {step}"));
            if self.undo_hangs {
                std::future::pending::<()>().await;
            }
            vec![Dirt::new(format!("dirt of {step}"), "sweep")]
        }
    }

    macro_rules! step {
        ($name:literal, $on_timeout:ident) => {
            Step {
                name: $name,
                act: |subject: &Subject| Box::pin(subject.act($name)),
                limit: |_| Duration::from_millis(40),
                on_timeout: TroubleKind::$on_timeout,
                undo: Some(Undo {
                    act: |subject: &Subject| Box::pin(subject.undo($name)),
                    limit: |_| Duration::from_millis(40),
                }),
            }
        };
    }

    const STEPS: &[Step<Subject>] =
        &[step!("one", Unanswered), step!("two", Failed), step!("three", Failed)];

    #[tokio::test]
    async fn stopping_at_any_step_undoes_the_begun_ones_newest_first() {
        for (index, step) in STEPS.iter().enumerate() {
            for how in [How::Fails, How::Hangs, How::Signalled] {
                let subject = Subject::new(step.name, how, false);
                let outcome = run(STEPS, &subject, &Silent).await;
                let begun = &STEPS[..=index];
                let mut expected: Vec<String> =
                    begun.iter().map(|step| format!("act {}", step.name)).collect();
                expected.extend(begun.iter().rev().map(|step| format!("undo {}", step.name)));
                assert_eq!(*subject.calls.lock().unwrap(), expected, "{how:?}");

                let stopped = outcome.stopped.expect("it stopped");
                let cause = match how {
                    How::Fails => Cause::Failed,
                    How::Hangs => Cause::TimedOut,
                    How::Signalled => Cause::Signal,
                };
                assert_eq!((stopped.step, stopped.cause), (step.name, cause));
                let kind = if how == How::Hangs { step.on_timeout } else { TroubleKind::Failed };
                assert_eq!(stopped.kind, kind, "{how:?} at {}", step.name);
                assert_eq!(outcome.dirty.len(), begun.len(), "each undo's dirt is told");
                let states: Vec<StepState> = outcome.steps.iter().map(|s| s.state).collect();
                assert_eq!(states.len(), STEPS.len());
                assert_eq!(states[index], StepState::Stopped);
                assert!(states[index + 1..].iter().all(|&s| s == StepState::NotBegun));
                assert!(outcome.steps[..=index].iter().all(|step| step.undo_ms.is_some()));
            }
        }
    }

    #[tokio::test]
    async fn an_undo_that_hangs_is_dirt_and_keeps_none_of_the_others_back() {
        let subject = Subject::new("three", How::Fails, true);
        let outcome = run(STEPS, &subject, &Silent).await;
        let undone: Vec<String> = subject.calls.lock().unwrap().split_off(3);
        assert_eq!(undone, ["undo three", "undo two", "undo one"]);
        let dirty: Vec<&str> = outcome.dirty.iter().map(|dirt| dirt.what.as_str()).collect();
        assert_eq!(dirty.len(), 3, "{dirty:?}");
        assert!(dirty[0].starts_with("the undo of three did not end"), "{dirty:?}");
    }

    #[tokio::test]
    async fn a_run_that_succeeds_undoes_nothing() {
        let subject = Subject::new("none", How::Fails, false);
        let outcome = run(STEPS, &subject, &Silent).await;
        assert_eq!(*subject.calls.lock().unwrap(), ["act one", "act two", "act three"]);
        assert!(outcome.stopped.is_none() && outcome.dirty.is_empty());
    }
}
