//! Moves the promoted role: what the failover asks of the supervise on the primary.

mod terminate;

use std::{
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use slog::{Logger, info};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};

use crate::{
    edge::{
        clock,
        command::{Processes, Run},
        etcd::Etcd,
        pacemaker::{Pacemaker, PacemakerError},
        postgres::{LocalPostgres, Postgres, PostgresError},
    },
    error::chain,
    model::{
        attempt::{Attempt, LOCK},
        cluster::{ClusterView, Primary},
        crm_mon::{PacemakerView, Without},
        location::Location,
        successor::{self, NoSuccessor},
    },
    work::publish::CLUSTER,
};

/// What Pacemaker said while clients still worked is true enough for this long: asking again takes a
/// tenth of a second and more, and the agent proves for itself what the move stands on.
const PREPARED_FOR: Duration = Duration::from_secs(10);
/// Pause between two looks that no watch asked for. They cost the processors that the move needs.
const LOOK: Duration = Duration::from_millis(200);

/// The new primary's promotion score comes with its first monitor. Before that, and without the constraint,
/// Pacemaker would take the role back to a node of a higher score. That monitor is waited for so long.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two looks at promotion scores.
const ROLE_LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    #[error("there is no standby to move to: {0}")]
    NoTarget(NoSuccessor),
    #[error("{}", match .primary {
        Some(node) => format!("this node is not the primary, {node} is; ask the supervise there"),
        None => "this node is not the primary, and no node is".to_owned(),
    })]
    NotPrimaryHere { primary: Option<String> },
    #[error("{node} is primary again, on timeline {timeline}: the move was turned back")]
    TurnedBack { node: String, timeline: u32 },
    #[error("attempt {attempt} was withdrawn before Pacemaker was asked; nothing was touched")]
    Withdrawn { attempt: String },
    #[error("attempt {attempt} was overtaken by a newer one, whose constraint it may be by now")]
    Overtaken { attempt: String },
    #[error(
        "the constraint stays: without it Pacemaker may move the primary from {promoted} to {rival}, whose promotion \
         score is as high; the first monitor of {promoted} settles that, and supervise removes the constraint then"
    )]
    Contested { promoted: String, rival: String },
    #[error(
        "the constraint stays: Pacemaker has not ended the promotion of {node}, and might take the role back without it; \
         supervise removes the constraint once it has"
    )]
    Unfinished { node: String },
    #[error("no new primary was published within {limit:?}; {seen}")]
    TimedOut { limit: Duration, seen: String },
    #[error("cannot ask Pacemaker for the move")]
    Pacemaker(#[source] PacemakerError),
    #[error("the Postgres of this node is no help")]
    Postgres(#[source] PostgresError),
}

/// Moves the promoted role of the cluster that this node is in.
pub struct Mover<R = Processes, P = Postgres> {
    node: String,
    pacemaker: Arc<Pacemaker<R>>,
    postgres: Arc<P>,
    etcd: Arc<Etcd>,
    log: Logger,
    /// The clone whose constraint this process made last.
    moved: Mutex<Option<String>>,
    /// Held while Pacemaker is asked for a move, or to forget one: of the two the later one counts.
    turn: tokio::sync::Mutex<()>,
    /// The attempt that was withdrawn last. What it asked for and still comes is refused.
    withdrawn: Mutex<Option<String>>,
    /// What Pacemaker said when the move was prepared, and when that was.
    prepared: Mutex<Option<(Instant, PacemakerView)>>,
}

impl<R: Run> Mover<R, Postgres> {
    /// Runs CHECKPOINT on this node's Postgres, and asks Pacemaker what a move that follows soon has to
    /// know; returns how long the checkpoint took.
    ///
    /// # Errors
    /// [`MoveError::Postgres`] when it fails, or takes longer than `limit`.
    pub async fn prepare(&self, limit: Duration) -> Result<Duration, MoveError> {
        let (took, view) = tokio::join!(self.postgres.checkpoint(limit), self.pacemaker.view());
        *self.prepared.lock().unwrap_or_else(PoisonError::into_inner) =
            view.ok().map(|view| (Instant::now(), view));
        took.map_err(MoveError::Postgres)
    }
}

impl<R: Run, P: LocalPostgres> Mover<R, P> {
    /// A mover for `node`, Pacemaker's name of this machine.
    pub fn new(
        node: String,
        pacemaker: Arc<Pacemaker<R>>,
        postgres: Arc<P>,
        etcd: Arc<Etcd>,
        log: Logger,
    ) -> Self {
        Self {
            node,
            pacemaker,
            postgres,
            etcd,
            log,
            moved: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            withdrawn: Mutex::default(),
            prepared: Mutex::default(),
        }
    }

    /// Moves the promoted role to `target`, or to the synchronous standby.
    ///
    /// Returns once another node is published as primary on a newer timeline: it takes writes by
    /// then. The request to Pacemaker stops to count `lifetime` after it was made; `limit` bounds all.
    ///
    /// # Errors
    /// With [`MoveError::NoTarget`], [`MoveError::NotPrimaryHere`] and [`MoveError::Withdrawn`]
    /// nothing was touched. After any other, [`Self::unmigrate`] and [`Self::settle`] find out where
    /// things stand.
    pub async fn migrate(
        &self,
        attempt: &str,
        target: Option<&str>,
        limit: Duration,
        lifetime: Duration,
    ) -> Result<Primary, MoveError> {
        let begun = Instant::now();
        let (view, facts) = tokio::join!(self.view_for_move(), self.postgres.facts());
        let view = view?;
        if view.promoted() != [self.node.as_str()] {
            let primary = view.promoted().first().map(|&node| node.to_owned());
            return Err(MoveError::NotPrimaryHere { primary });
        }
        let facts = facts.map_err(MoveError::Postgres)?;
        let target = successor::choose(&view, &self.node, &facts.standbys, target)
            .map_err(MoveError::NoTarget)?;
        let turn = self.turn.lock().await;
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            let seen = "Pacemaker was not asked, it would have been too late".to_owned();
            return Err(MoveError::TimedOut { limit, seen });
        }
        if self.is_withdrawn(attempt) {
            return Err(MoveError::Withdrawn { attempt: attempt.to_owned() });
        }
        let until = clock::rfc3339_after(lifetime);
        *self.moved.lock().unwrap_or_else(PoisonError::into_inner) = view.clone.clone();
        self.pacemaker.move_to(&view, &target.name, &until).await.map_err(MoveError::Pacemaker)?;
        drop(turn);
        info!(self.log, "asked Pacemaker to move the primary"; "event" => "move.primary.begin",
            "attempt" => attempt, "from" => &self.node, "to" => &target.name, "until" => &until);
        let left = limit.saturating_sub(begun.elapsed());
        let primary = self.published_after(facts.timeline, limit, left).await?;
        info!(self.log, "the primary has moved"; "event" => "move.primary.done",
            "attempt" => attempt, "to" => &primary.name, "timeline" => primary.timeline);
        Ok(primary)
    }

    fn is_withdrawn(&self, attempt: &str) -> bool {
        let withdrawn = self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner);
        withdrawn.as_deref() == Some(attempt)
    }

    /// What Pacemaker said when the move was prepared, if that was just now, or else says now.
    async fn view_for_move(&self) -> Result<PacemakerView, MoveError> {
        let prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner).take();
        match prepared {
            Some((at, view)) if at.elapsed() < PREPARED_FOR => Ok(view),
            _ => self.pacemaker.view().await.map_err(MoveError::Pacemaker),
        }
    }

    async fn published_after(
        &self,
        timeline: u32,
        limit: Duration,
        left: Duration,
    ) -> Result<Primary, MoveError> {
        let mut seen = "nothing was read from etcd".to_owned();
        let wake = Notify::new();
        let search = async {
            loop {
                match self.published().await {
                    Err(reason) => seen = reason,
                    Ok(None) => seen = "etcd names no primary".to_owned(),
                    Ok(Some(primary)) if primary.timeline > timeline => return primary,
                    Ok(Some(Primary { name, timeline, .. })) => {
                        seen = format!("etcd still names {name} on timeline {timeline}");
                    }
                }
                next_look(&wake).await;
            }
        };
        match self.woken(left, &wake, search).await {
            Some(primary) if primary.name == self.node => {
                Err(MoveError::TurnedBack { node: primary.name, timeline: primary.timeline })
            }
            Some(primary) => Ok(primary),
            None => Err(MoveError::TimedOut { limit, seen: self.complete(seen).await }),
        }
    }

    /// Waits until one node is primary for Pacemaker, published, and takes writes, whichever it is, and no request of
    /// pgcm stands that would move the role away from it.
    ///
    /// From this call on no move of `attempt` begins here; one whose request to Pacemaker is under way is waited for.
    ///
    /// # Errors
    /// [`MoveError::TimedOut`] when that was not the case within `limit`; it says what was seen.
    pub async fn settle(&self, attempt: &str, limit: Duration) -> Result<Primary, MoveError> {
        self.withdraw(attempt);
        let mut seen = "nothing was seen".to_owned();
        let wake = Notify::new();
        let search = async {
            drop(self.turn.lock().await);
            loop {
                match self.settled().await {
                    Ok(primary) => return primary,
                    Err(why) => seen = why,
                }
                next_look(&wake).await;
            }
        };
        let found = self.woken(limit, &wake, search).await;
        found.ok_or(MoveError::TimedOut { limit, seen })
    }

    async fn settled(&self) -> Result<Primary, String> {
        let (view, published) = tokio::join!(self.pacemaker.view(), self.published());
        let view = view.map_err(|error| error.in_full())?;
        if !view.quorum {
            return Err("this side of the cluster has no quorum".to_owned());
        }
        let promoted = match view.promoted()[..] {
            [node] => node.to_owned(),
            [] => return Err("Pacemaker has promoted no node".to_owned()),
            ref nodes => return Err(format!("{} are promoted at once", nodes.join(" and "))),
        };
        // A lost one is called promoted until it is fenced.
        if !view.node(&promoted).is_some_and(|node| node.online && !node.unclean) {
            return Err(format!("{promoted} is promoted, but Pacemaker has lost it"));
        }
        let primary = published?.ok_or("etcd names no primary")?;
        if primary.name != promoted {
            return Err(format!("{promoted} is promoted, etcd names {}", primary.name));
        }
        if primary.name == self.node {
            // What is published of this node may be from before a demotion.
            let facts = self.postgres.facts().await.map_err(|error| chain(&error).to_string())?;
            if facts.in_recovery || !facts.writable || facts.timeline != primary.timeline {
                return Err(format!("{promoted} is promoted but does not take writes yet"));
            }
        }
        let standing = self.pacemaker.locations(&view).await.map_err(|error| error.in_full())?;
        match standing.iter().find_map(|location| led_away_to(location, &promoted)) {
            Some(node) => Err(format!(
                "{promoted} is promoted, and Pacemaker still asked to move the role to {node}"
            )),
            None => Ok(primary),
        }
    }

    fn withdraw(&self, attempt: &str) {
        let withdrawn = Some(attempt.to_owned());
        *self.withdrawn.lock().unwrap_or_else(PoisonError::into_inner) = withdrawn;
    }

    /// Takes back the request to Pacemaker, as soon as that does not undo the move; returns whether there was
    /// one. Idempotent.
    ///
    /// From this call on no move of `attempt` begins here; one whose request to Pacemaker is under
    /// way is waited for, so that the request cannot arrive after it was taken back.
    ///
    /// # Errors
    /// [`MoveError::Contested`], [`MoveError::Unfinished`] and [`MoveError::Overtaken`] when it still stands, [`MoveError::Pacemaker`] when
    /// it may. `is_newest` tells whether no newer attempt was heard of meanwhile.
    pub async fn unmigrate(
        &self,
        attempt: &str,
        is_newest: impl Fn() -> bool + Send,
    ) -> Result<bool, MoveError> {
        self.withdraw(attempt);
        self.until_role_stays(attempt).await?;
        let _turn = self.turn.lock().await;
        if !is_newest() {
            return Err(MoveError::Overtaken { attempt: attempt.to_owned() });
        }
        let remembered = self.moved.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let clone = match remembered {
            Some(clone) => Some(clone),
            None => self.pacemaker.view().await.map_err(MoveError::Pacemaker)?.clone,
        };
        let Some(clone) = clone else { return Ok(false) };
        self.pacemaker.forget_move(&clone).await.map_err(MoveError::Pacemaker)
    }

    /// Whether another attempt than `attempt` is seen to hold the lock. While etcd does not answer here, the tokens that
    /// were heard of decide.
    async fn is_overtaken(&self, attempt: &str) -> bool {
        let Ok(Some(lock)) = self.etcd.get(LOCK).await else { return false };
        serde_json::from_str::<Attempt>(&lock.value).map_or(true, |holder| holder.id != attempt)
    }

    /// Waits until Pacemaker leaves the promoted role where it is without the request, at most [`PATIENCE`].
    /// Where nobody has the role by then the request has to go: with it, nobody else may get it.
    ///
    /// # Errors
    /// [`MoveError::Contested`] when it would still move the role away from a node that has it, [`MoveError::Unfinished`]
    /// from one that is being promoted, and may be published already;
    /// [`MoveError::Overtaken`] when another attempt than `attempt` has the lock, and [`MoveError::Pacemaker`] when
    /// nobody says where the role is.
    async fn until_role_stays(&self, attempt: &str) -> Result<(), MoveError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Before the look, which is to be as new as can be.
            if self.is_overtaken(attempt).await {
                return Err(MoveError::Overtaken { attempt: attempt.to_owned() });
            }
            let view = self.pacemaker.roles().await;
            let is_late = Instant::now() >= deadline;
            match view.map(|view| view.without_constraint()) {
                Ok(Without::Stays) => return Ok(()),
                Ok(Without::Leaves { promoted, rival }) if is_late => {
                    return Err(MoveError::Contested { promoted, rival });
                }
                Ok(Without::Promoting { node }) if is_late => {
                    return Err(MoveError::Unfinished { node });
                }
                Ok(Without::Nobody) if is_late => return Ok(()),
                Err(error) if is_late => return Err(MoveError::Pacemaker(error)),
                _ => sleep(ROLE_LOOK).await,
            }
        }
    }

    /// The view that is published now; what Pacemaker and Postgres of this node say goes in the
    /// publisher's `Latest`.
    async fn published(&self) -> Result<Option<Primary>, String> {
        let entry = self.etcd.get(CLUSTER).await.map_err(|error| chain(&error).to_string())?;
        let view = entry.and_then(|entry| serde_json::from_str::<ClusterView>(&entry.value).ok());
        Ok(view.map(|view| view.primary))
    }

    /// Runs `search` to its end, at most `limit`; `wake` is notified whenever the published view
    /// changes.
    async fn woken<T>(
        &self,
        limit: Duration,
        wake: &Notify,
        search: impl Future<Output = T>,
    ) -> Option<T> {
        let watched = async {
            tokio::select! {
                found = search => found,
                never = self.etcd.wake_on_change(CLUSTER, wake, &self.log) => match never {},
            }
        };
        timeout(limit, watched).await.ok()
    }

    /// Adds what Pacemaker says to what etcd says, for the report.
    async fn complete(&self, seen: String) -> String {
        match self.pacemaker.view().await {
            Ok(view) => match view.promoted()[..] {
                [] => format!("{seen}; Pacemaker has promoted no node"),
                ref nodes => format!("{seen}; Pacemaker has promoted {}", nodes.join(" and ")),
            },
            Err(error) => format!("{seen}; {}", error.in_full()),
        }
    }
}

/// The node that `location`, if it is a request of pgcm that counts, moves the role to from `promoted`.
fn led_away_to<'a>(location: &'a Location, promoted: &str) -> Option<&'a str> {
    let counts = location.is_ours() && !clock::is_over(location.until.as_deref());
    let target = location.promoted.iter().find(|preference| preference.node != promoted)?;
    counts.then_some(target.node.as_str())
}

/// Returns when it is time for another look.
async fn next_look(wake: &Notify) {
    tokio::select! {
        () = wake.notified() => {}
        () = sleep(LOOK) => {}
    }
}
