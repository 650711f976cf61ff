//! One log line for each change of state, none for each look.

use slog::{Logger, error, info, warn};

use super::latest::{Latest, Outcome};

/// Remembers what was told last.
#[derive(Default)]
pub(super) struct Story {
    pacemaker_failing: bool,
    etcd_failing: bool,
    told: Option<Outcome>,
    primary: Option<(String, u32)>,
}

impl Story {
    /// Tells what is new in `latest`.
    pub(super) fn tell(&mut self, latest: &Latest, namespace: &str, log: &Logger) {
        self.tell_pacemaker(latest, log);
        self.tell_etcd(latest, log);
        self.tell_outcome(latest, namespace, log);
    }

    fn tell_pacemaker(&mut self, latest: &Latest, log: &Logger) {
        match &latest.pacemaker {
            Err(reason) if !self.pacemaker_failing => warn!(log,
                "cannot read roles from Pacemaker; what is published stays, trying again";
                "event" => "publish.look.fail", "error" => reason),
            Ok(_) if self.pacemaker_failing => {
                info!(log, "Pacemaker answers again"; "event" => "publish.look.recover");
            }
            _ => {}
        }
        self.pacemaker_failing = latest.pacemaker.is_err();
    }

    fn tell_etcd(&mut self, latest: &Latest, log: &Logger) {
        match &latest.stored {
            Err(reason) if !self.etcd_failing => warn!(log,
                "cannot reach etcd; Postgres and PgBouncer go on as they are, trying again";
                "event" => "publish.etcd.fail", "error" => reason),
            Ok(_) if self.etcd_failing => {
                info!(log, "etcd answers again"; "event" => "publish.etcd.recover");
            }
            _ => {}
        }
        self.etcd_failing = latest.stored.is_err();
    }

    fn tell_outcome(&mut self, latest: &Latest, namespace: &str, log: &Logger) {
        let outcome = &latest.outcome;
        let quiet = matches!(outcome, Outcome::NotYet | Outcome::Outrun | Outcome::Failed(_));
        if quiet || self.told.as_ref() == Some(outcome) {
            return;
        }
        match outcome {
            Outcome::Written => self.tell_primary(latest, log),
            Outcome::Held(hold) if hold.is_alarming() => error!(log,
                "publishing nothing: two primaries";
                "event" => "publish.primary.several", "reason" => %hold),
            Outcome::Held(hold) => info!(log, "publishing nothing from here";
                "event" => "publish.primary.hold", "reason" => %hold, "why" => hold.name()),
            Outcome::Refused(refused) => error!(log,
                "what etcd says must not be replaced by what this node sees";
                "event" => "publish.primary.refuse", "reason" => %refused,
                "remedy" => refused.remedy(namespace)),
            _ => {}
        }
        // A refresh is no news, and neither is that nothing had to be written after it.
        let calm = matches!(outcome, Outcome::Unchanged | Outcome::Written);
        self.told = Some(if calm { Outcome::Unchanged } else { outcome.clone() });
        if !calm {
            self.primary = None;
        }
    }

    fn tell_primary(&mut self, latest: &Latest, log: &Logger) {
        let view = latest.stored.as_ref().ok().and_then(|stored| stored.view.as_ref());
        let Some(view) = view else { return };
        let now = (view.primary.name.clone(), view.primary.timeline);
        if self.primary.as_ref() != Some(&now) {
            info!(log, "published the primary";
                "event" => "publish.primary.write", "node" => &view.primary.name,
                "address" => %view.primary.address, "timeline" => view.primary.timeline);
            self.primary = Some(now);
        }
    }
}
