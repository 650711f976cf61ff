//! What became of a failover, for people and for programs.

use std::fmt;

use serde::Serialize;
use tokio::time::Instant;

use super::{
    FailoverOptions, State,
    agents::{Tier, pausers},
    check::{Found, OPEN_TRANSACTIONS},
    pipeline::{Dirt, Outcome, StepReport, StepState, Stopped, TroubleKind},
};
use crate::{
    edge::clock,
    exit::Exit,
    model::{
        attempt::Attempt,
        cluster::Primary,
        finding::Severity,
        history::{Expected, ExpectedStep, RUNNING, Spread},
        span::millis,
        terminated::Terminated,
    },
};

/// The report. As JSON it is also what `/history/` keeps.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// `planned`: as opposed to a change that nobody asked for.
    pub kind: &'static str,
    pub attempt: String,
    pub holder: String,
    pub started_at: String,
    /// None while it runs.
    pub ended_at: Option<String>,
    /// `running`, `done`, `planned` (dry run), `unanswered`, `refused`, `locked`, `put_back`, `needs_hands`.
    pub outcome: &'static str,
    /// The step that it was at last; None once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<&'static str>,
    pub exit_code: Option<u8>,
    pub old_primary: Option<Primary>,
    /// Who is primary now, as far as known.
    pub new_primary: Option<Primary>,
    /// From the first request to pause until the last agent confirmed that clients flow.
    pub clients_held_ms: Option<u64>,
    pub duration_ms: u64,
    pub steps: Vec<StepReport>,
    pub stopped: Option<Stopped>,
    pub dirty: Vec<Dirt>,
    pub findings: Vec<Found>,
    /// Transactions that were ended because they held up the pause.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub terminated: Vec<Terminated>,
    /// Attempts before this one, each fully undone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<Earlier>,
    /// Only for a dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    #[serde(skip)]
    pub exit: Exit,
    /// Whether only open transactions stood in the way, so that another attempt may succeed.
    #[serde(skip)]
    pub busy: bool,
}

/// An attempt before the reported one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Earlier {
    pub attempt: String,
    pub reason: String,
    pub duration_ms: u64,
}

impl Earlier {
    pub(super) fn of(report: &Report) -> Self {
        let reason = report.stopped.as_ref().map(|stopped| stopped.reason.clone());
        Self {
            attempt: report.attempt.clone(),
            reason: reason.unwrap_or_default(),
            duration_ms: report.duration_ms,
        }
    }
}

/// What a failover would do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Plan {
    pub from: Option<String>,
    pub to: Option<String>,
    /// In the order of the pause.
    pub pause: Vec<PlannedPause>,
    pub pause_timeout_ms: u64,
    pub pause_expiry_ms: u64,
    pub pacemaker_timeout_ms: u64,
    pub prepare_timeout_ms: u64,
    pub verify_timeout_ms: u64,
    /// From past failovers; none when there was none.
    pub expected: Option<Expected>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlannedPause {
    pub tier: Tier,
    pub agent: String,
}

impl Plan {
    fn new(options: &FailoverOptions, state: &State) -> Self {
        let pause = pausers(&state.agents)
            .into_iter()
            .map(|(tier, agent)| PlannedPause { tier, agent: agent.peer.name().to_owned() })
            .collect();
        Self {
            from: state.before.as_ref().map(|view| view.primary.name.clone()),
            to: state.target.clone(),
            pause,
            pause_timeout_ms: millis(options.pause_timeout),
            pause_expiry_ms: millis(options.pause_expiry),
            pacemaker_timeout_ms: millis(options.pacemaker_timeout),
            prepare_timeout_ms: millis(options.prepare_timeout),
            verify_timeout_ms: millis(options.verify_timeout),
            expected: state.expected.clone(),
        }
    }
}

impl Report {
    /// What stands in the history from `step` on, until more is known.
    pub(super) fn running(
        options: &FailoverOptions,
        attempt: &Attempt,
        state: &State,
        step: &'static str,
    ) -> Self {
        let report = Self::new(options, attempt, Instant::now(), state, Outcome::default());
        Self {
            ended_at: None,
            outcome: RUNNING,
            step: Some(step),
            exit_code: None,
            new_primary: state.after.clone(),
            ..report
        }
    }

    pub(super) fn new(
        options: &FailoverOptions,
        attempt: &Attempt,
        began: Instant,
        state: &State,
        mut outcome: Outcome,
    ) -> Self {
        if let Some(stopped) = outcome.stopped.as_ref().filter(|_| state.moved) {
            outcome.dirty.extend(unverified(stopped, state));
        }
        let exit = judge(&outcome, state);
        let old_primary = state.before.as_ref().map(|view| view.primary.clone());
        let held = state.held_since.zip(state.released_at);
        // Once a move was asked for, only who looked afterwards knows.
        let stays = !state.migrate_begun;
        Self {
            kind: "planned",
            attempt: attempt.id.clone(),
            holder: attempt.holder.clone(),
            started_at: attempt.started_at.clone(),
            ended_at: Some(clock::now_rfc3339()),
            outcome: match exit {
                Exit::Done if options.dry_run => "planned",
                exit => name(exit),
            },
            step: None,
            exit_code: Some(exit as u8),
            new_primary: state.after.clone().or_else(|| old_primary.clone().filter(|_| stays)),
            old_primary,
            clients_held_ms: held.map(|(from, to)| millis(to.saturating_duration_since(from))),
            busy: is_busy(exit, outcome.stopped.as_ref(), &state.findings),
            duration_ms: millis(began.elapsed()),
            steps: outcome.steps,
            stopped: outcome.stopped,
            dirty: outcome.dirty,
            findings: state.findings.clone(),
            terminated: state.terminated.clone(),
            earlier: Vec::new(),
            plan: options.dry_run.then(|| Plan::new(options, state)),
            exit,
        }
    }
}

/// What nobody has looked at when a move happened and the run stopped all the same.
fn unverified(stopped: &Stopped, state: &State) -> Option<Dirt> {
    let old = &state.before.as_ref()?.primary.name;
    let new = &state.after.as_ref()?.name;
    let (what, remedy) = if stopped.step == "verify" {
        (
            format!("the primary is {new}, but {old} was not seen back as a standby"),
            format!("look at `pgcm status`, and on {old} at `crm_mon -Afr1` and Postgres' log"),
        )
    } else {
        (
            format!("the primary is {new} although `{}` stopped; not verified", stopped.step),
            format!("look at `pgcm status`: {old} should be a streaming standby"),
        )
    };
    Some(Dirt::new(what, remedy))
}

fn judge(outcome: &Outcome, state: &State) -> Exit {
    let Some(stopped) = &outcome.stopped else { return Exit::Done };
    if !outcome.dirty.is_empty() || state.moved {
        return Exit::NeedsHands;
    }
    match stopped.kind {
        TroubleKind::Unanswered => Exit::Unreachable,
        TroubleKind::Refused => Exit::Refused,
        TroubleKind::Locked => Exit::Locked,
        TroubleKind::Failed | TroubleKind::Busy => Exit::PutBack,
    }
}

/// Whether nothing but open transactions stood in the way of a failover that left no trace.
fn is_busy(exit: Exit, stopped: Option<&Stopped>, findings: &[Found]) -> bool {
    match exit {
        Exit::PutBack => stopped.is_some_and(|stopped| stopped.kind == TroubleKind::Busy),
        Exit::Refused => {
            let mut refusing = findings.iter().filter(|found| found.refuses()).peekable();
            refusing.peek().is_some()
                && refusing.all(|found| found.finding.check == OPEN_TRANSACTIONS)
        }
        _ => false,
    }
}

fn name(exit: Exit) -> &'static str {
    match exit {
        Exit::Done => "done",
        Exit::Usage => "usage",
        Exit::Unreachable => "unanswered",
        Exit::Refused => "refused",
        Exit::Locked => "locked",
        Exit::PutBack => "put_back",
        Exit::NeedsHands => "needs_hands",
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.headline())?;
        if let Some(stopped) = &self.stopped {
            writeln!(f, "  stopped at {}: {}", stopped.step, stopped.reason)?;
        }
        for step in self.steps.iter().filter(|step| step.state != StepState::NotBegun) {
            let state = if step.state == StepState::Done { "done" } else { "stopped" };
            write!(f, "  {:<10} {state:<8} {:>7} ms", step.step, step.duration_ms)?;
            match step.undo_ms {
                Some(undo_ms) => writeln!(f, ", undone in {undo_ms} ms")?,
                None => writeln!(f)?,
            }
        }
        if let Some(plan) = &self.plan {
            write!(f, "{plan}")?;
        }
        for (number, earlier) in self.earlier.iter().enumerate() {
            let Earlier { reason, duration_ms, .. } = earlier;
            writeln!(f, "  attempt {} undone after {duration_ms} ms: {reason}", number + 1)?;
        }
        for terminated in &self.terminated {
            writeln!(f, "  TERMINATED: {terminated}")?;
        }
        for Found { by, finding, overridden } in &self.findings {
            let severity = match finding.severity {
                Severity::Warn => "warning",
                Severity::Refuse if *overridden => "OVERRIDDEN",
                Severity::Refuse => "refused",
            };
            writeln!(f, "  {severity}: {by}: {} [{}]", finding.message, finding.check)?;
        }
        for dirt in &self.dirty {
            writeln!(f, "  left: {}\n        {}", dirt.what, dirt.remedy)?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let or_none = |name: &Option<String>| name.clone().unwrap_or_else(|| "nobody".to_owned());
        writeln!(
            f,
            "  plan: move the primary from {} to {}",
            or_none(&self.from),
            or_none(&self.to)
        )?;
        writeln!(f, "    prepare    CHECKPOINT on both, at most {} ms", self.prepare_timeout_ms)?;
        for (place, pause) in self.pause.iter().enumerate() {
            let tier = match pause.tier {
                Tier::App => "application",
                Tier::Postgres => "Postgres node",
            };
            writeln!(f, "    pause      {}. {} ({tier})", place + 1, pause.agent)?;
        }
        writeln!(
            f,
            "    migrate    at most {} ms, after at most {} ms for open transactions",
            self.pacemaker_timeout_ms, self.pause_timeout_ms
        )?;
        writeln!(
            f,
            "    resume     each as soon as it follows; at most {} ms after the pause in any case",
            self.pause_expiry_ms
        )?;
        writeln!(
            f,
            "    verify     the old primary streams, at most {} ms",
            self.verify_timeout_ms
        )?;
        let Some(Expected { failovers, clients_held, steps }) = &self.expected else {
            return writeln!(f, "  no failover is on record to tell durations from");
        };
        writeln!(f, "  to expect, as {failovers} failovers on record took (median, worst):")?;
        for ExpectedStep { step, spread } in steps {
            writeln!(f, "    {step:<10} {:>6} ms {:>6} ms", spread.median_ms, spread.worst_ms)?;
        }
        let Spread { median_ms, worst_ms } = clients_held;
        writeln!(f, "    clients wait {median_ms:>4} ms {worst_ms:>6} ms")
    }
}

impl Report {
    fn headline(&self) -> String {
        let of = |primary: &Option<Primary>| {
            primary
                .as_ref()
                .map_or_else(|| "nobody".to_owned(), |p| format!("{} ({})", p.name, p.address))
        };
        let (old, new) = (of(&self.old_primary), of(&self.new_primary));
        match self.exit {
            Exit::Done if self.plan.is_some() => "dry run: nothing was touched".to_owned(),
            Exit::Done => format!(
                "moved the primary from {old} to {new} in {} ms; clients were held for {} ms",
                self.duration_ms,
                self.clients_held_ms.unwrap_or_default()
            ),
            Exit::Usage => "wrong usage".to_owned(),
            Exit::Unreachable => "something outside did not answer; nothing was touched".to_owned(),
            Exit::Refused => "checks failed; nothing was touched".to_owned(),
            Exit::Locked => "the failover lock is held elsewhere; nothing was touched".to_owned(),
            Exit::PutBack => format!("stopped; everything was put back; the primary is {old}"),
            Exit::NeedsHands if self.new_primary.is_none() => {
                "stopped; needs hands; which node is the primary is not known".to_owned()
            }
            Exit::NeedsHands => format!("stopped; needs hands; the primary is {new}"),
        }
    }
}
