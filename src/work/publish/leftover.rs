//! Removes the move constraint of a failover that is over, however it ended.

use std::time::Duration;

use slog::{info, warn};
use tokio::time::Instant;

use super::{Publisher, Stored};
use crate::{
    edge::{clock, command::Run, pacemaker::PacemakerError, postgres::LocalPostgres},
    model::{
        attempt::LOCK,
        crm_mon::{PacemakerView, Without},
        location::Location,
    },
};

/// How often the primary's node looks for constraints that nobody needs, when nothing hints at one.
const SWEEP: Duration = Duration::from_secs(10);
/// For so long a constraint must have stood while nobody held the lock. Whoever takes the lock writes
/// another date into it.
const ORPHANED: Duration = Duration::from_secs(1);

/// What the sweep remembers from look to look.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// Somebody held the lock at the last look.
    was_locked: bool,
    swept_at: Option<Instant>,
    /// The date in the constraint that stood without a holder of the lock, and since when.
    orphan: Option<(Option<String>, Instant)>,
}

impl Leftover {
    /// Whether this look is one to look for constraints in.
    fn is_due(&mut self, locked: bool) -> bool {
        let was_locked = std::mem::replace(&mut self.was_locked, locked);
        if locked {
            self.orphan = None;
            return false;
        }
        let hint = was_locked || self.orphan.is_some();
        hint || self.swept_at.is_none_or(|at| at.elapsed() >= SWEEP)
    }

    /// Whether nobody needs `constraint` any more; `stays` is whether the promoted role stays without it.
    fn may_go(&mut self, constraint: &Location, stays: bool) -> bool {
        if clock::is_over(constraint.until.as_deref()) {
            return true;
        }
        match &self.orphan {
            Some((until, since)) if *until == constraint.until => {
                stays && since.elapsed() >= ORPHANED
            }
            _ => {
                self.orphan = Some((constraint.until.clone(), Instant::now()));
                false
            }
        }
    }
}

impl<R: Run, P: LocalPostgres> Publisher<R, P> {
    /// Deletes pgcm's own move constraint once it has expired, or once the failover that made it does
    /// not hold the lock any more: a dead one would pin the primary for the constraint's lifetime.
    pub(super) async fn sweep(&mut self, view: &PacemakerView, stored: &Stored) {
        let here = view.promoted() == [self.options.node.as_str()];
        let due = self.leftover.is_due(stored.lock.is_some());
        if !(here && due && view.quorum) {
            return;
        }
        self.leftover.swept_at = Some(Instant::now());
        match self.forget_leftover(view).await {
            Ok(false) => {}
            Ok(true) => info!(self.log, "removed a move constraint that nobody needs";
                "event" => "publish.constraint.remove"),
            Err(error) => warn!(self.log, "cannot look for leftover move constraints";
                "event" => "publish.constraint.fail", "error" => error.in_full()),
        }
    }

    async fn forget_leftover(&mut self, view: &PacemakerView) -> Result<bool, PacemakerError> {
        let locations = self.pacemaker.locations(view).await?;
        let Some(ours) = locations.iter().find(|location| location.is_ours()) else {
            self.leftover.orphan = None;
            return Ok(false);
        };
        // Since this look began somebody may have taken the lock.
        let is_free = async || self.etcd.get(LOCK).await.is_ok_and(|lock| lock.is_none());
        let stays = view.without_constraint() == Without::Stays;
        if !self.leftover.may_go(ours, stays) || !is_free().await {
            return Ok(false);
        }
        self.leftover.orphan = None;
        self.pacemaker.forget_move(&ours.resource).await
    }
}
