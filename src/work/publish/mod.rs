//! The loop of supervise: looks at Pacemaker, Postgres and etcd, and publishes the primary.
//!
//! Only the supervise on the node that Pacemaker promotes publishes, and only from the side with quorum. It is woken
//! by pokes; the poll is the truth. What was published never goes backwards.

mod latest;
mod leftover;
mod story;

use std::{net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use slog::{Logger, warn};
use tokio::{
    net::UnixDatagram,
    sync::watch,
    time::{Instant, sleep},
};

pub use self::latest::{Latest, Lock, Outcome, Stored};
use self::{leftover::Leftover, story::Story};
pub use crate::model::cluster::{CLUSTER, MASTER};
use crate::{
    edge::{
        clock,
        command::{Processes, Run},
        etcd::{Entry, Etcd, EtcdError, Expect, Put, Swap},
        pacemaker::Pacemaker,
        poke::{self, Urgency},
        postgres::{LocalPostgres, Postgres, PostgresError},
    },
    error::chain,
    model::{
        attempt::LOCK,
        cluster::{ClusterView, Primary},
        crm_mon::PacemakerView,
        history::{self, Change},
        primary::{Decision, LocalFacts, decide, may_replace, takes_over},
    },
    work::{fence::SharedGate, history::trim, shutdown::Stop},
};

/// A view is written again when it is older than this, although nothing changed.
const REFRESH: Duration = Duration::from_secs(10);
/// The pause after a look that failed, if that is shorter than between other looks.
const RETRY: Duration = Duration::from_millis(500);
/// For this long after a poke Postgres is watched: a promotion may be under way …
const BURST: Duration = Duration::from_secs(1);
/// … this often. crm_mon, which costs a hundred times as much, is asked again only while Postgres
/// says that it is a primary that is not published yet.
const BURST_INTERVAL: Duration = Duration::from_millis(20);
/// A server that Pacemaker promotes is waited for so long …
const LEAVING: Duration = Duration::from_millis(500);
/// … and asked this often.
const LEAVING_LOOK: Duration = Duration::from_millis(3);
/// The least time between two looks that pokes ask for at once.
const HURRY_INTERVAL: Duration = Duration::from_millis(200);
/// A primary that is published already is asked this often: it may have become one anew.
const PUBLISHED_INTERVAL: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct PublishOptions {
    /// Pacemaker's name of this node.
    pub node: String,
    /// Where clients reach this node.
    pub address: IpAddr,
    /// etcd's namespace, for what operators are told to run.
    pub namespace: String,
    /// How often to look when nothing wakes it.
    pub poll_interval: Duration,
    /// Socket to listen on for pokes.
    pub socket: PathBuf,
}

/// See the module.
pub struct Publisher<R = Processes, P = Postgres> {
    options: PublishOptions,
    pacemaker: Arc<Pacemaker<R>>,
    postgres: Arc<P>,
    etcd: Arc<Etcd>,
    gate: SharedGate,
    latest: watch::Sender<Arc<Latest>>,
    log: Logger,
    story: Story,
    written_at: Option<Instant>,
    leftover: Leftover,
    /// Pacemaker promotes the server here, and it was in recovery since that began.
    was_in_recovery: bool,
    /// When Postgres was asked between looks.
    asked_at: Option<Instant>,
    /// Who was published and in place, and when that was seen last.
    in_place: Option<(Primary, Instant)>,
}

/// The keys as they were read.
struct Keys {
    master: Option<Entry>,
    cluster: Option<Entry>,
    stored: Stored,
}

impl<R: Run, P: LocalPostgres> Publisher<R, P> {
    /// The loop, and what it saw last.
    pub fn new(
        options: PublishOptions,
        pacemaker: Arc<Pacemaker<R>>,
        postgres: Arc<P>,
        etcd: Arc<Etcd>,
        gate: SharedGate,
        log: Logger,
    ) -> (Self, watch::Receiver<Arc<Latest>>) {
        let (latest, receiver) = watch::channel(Arc::new(Latest::not_yet()));
        let publisher = Self {
            options,
            pacemaker,
            postgres,
            etcd,
            gate,
            latest,
            log,
            story: Story::default(),
            written_at: None,
            leftover: Leftover::default(),
            was_in_recovery: false,
            asked_at: None,
            in_place: None,
        };
        (publisher, receiver)
    }

    /// Looks and publishes until `stop`.
    pub async fn run(mut self, mut stop: Stop) {
        let socket = self.listen();
        let mut burst_ends = Instant::now();
        let mut look_due = Instant::now();
        let mut hurried_at: Option<Instant> = None;
        while !stop.is_set() {
            if is_due(look_due, burst_ends) || self.is_unpublished_primary().await {
                self.round().await;
                look_due = Instant::now() + self.pause();
            }
            let now = Instant::now();
            // A look that a burst puts off is overdue: counting down to it would be a busy loop.
            let wait = if now < burst_ends {
                BURST_INTERVAL
            } else {
                look_due.saturating_duration_since(now)
            };
            tokio::select! {
                () = stop.wait() => {}
                urgency = poked(socket.as_ref()) => {
                    burst_ends = Instant::now() + BURST;
                    look_due = look_due.min(burst_ends);
                    // From anybody on this machine: not more often than this.
                    let may_hurry = hurried_at.is_none_or(|at| at.elapsed() >= HURRY_INTERVAL);
                    if urgency == Urgency::Now && may_hurry {
                        self.round().await;
                        hurried_at = Some(Instant::now());
                        // By then standbys have connected to a new primary.
                        look_due = Instant::now() + BURST.min(self.pause());
                    }
                }
                () = sleep(wait) => {}
            }
        }
    }

    /// How long until the next look when nothing wakes it.
    fn pause(&self) -> Duration {
        let failed = matches!(self.latest.borrow().outcome, Outcome::Failed(_));
        if failed { RETRY.min(self.options.poll_interval) } else { self.options.poll_interval }
    }

    /// Whether Postgres here takes writes on a timeline that was not published when the last look was
    /// made. A primary that is about to be demoted is none: what is published of it stays true, and
    /// it is asked less often, since it has better things to do. No poke makes it be asked more often
    /// than a burst does: anybody on this machine can send them.
    async fn is_unpublished_primary(&mut self) -> bool {
        let published = {
            let latest = self.latest.borrow();
            let view = latest.stored.as_ref().ok().and_then(|stored| stored.view.as_ref());
            let primary = view.map(|view| &view.primary);
            primary.filter(|primary| primary.name == self.options.node).map(|p| p.timeline)
        };
        let interval = if published.is_some() { PUBLISHED_INTERVAL } else { BURST_INTERVAL };
        if self.asked_at.is_some_and(|at| at.elapsed() < interval) {
            return false;
        }
        self.asked_at = Some(Instant::now());
        let Ok(facts) = self.postgres.facts().await else { return false };
        !facts.in_recovery && published != Some(facts.timeline)
    }

    fn listen(&self) -> Option<UnixDatagram> {
        let path = &self.options.socket;
        poke::listen(path)
            .inspect_err(|error| {
                warn!(self.log, "cannot listen for pokes, a change is seen at the next poll only";
                    "event" => "publish.poke.fail", "socket" => %path.display(),
                    "error" => %error);
            })
            .ok()
    }

    /// One look, and what follows from it.
    async fn round(&mut self) {
        let (view, keys, early) =
            tokio::join!(self.pacemaker.roles(), self.read(), self.postgres.facts());
        let local = self.local(view.as_ref().ok(), early).await;
        let mut stored = Stored::default();
        let decision = view.as_ref().map(|view| self.decide(view, &local));
        let primary_here = matches!(decision, Ok(Decision::Publish(_)));
        let outcome = match (decision, &keys) {
            (Err(error), _) => Outcome::Failed(error.in_full()),
            (_, Err(error)) => Outcome::Failed(chain(error).to_string()),
            (Ok(decision), Ok(keys)) => {
                stored = keys.stored.clone();
                match decision {
                    Decision::Hold(hold) => Outcome::Held(hold),
                    Decision::Publish(ours) => self.publish(ours, keys, &mut stored).await,
                }
            }
        };
        if let (Ok(view), Ok(_)) = (&view, &keys) {
            self.note_in_place(view, local.as_ref().ok(), &stored);
            self.sweep(view, &stored).await;
        }
        let latest = Latest {
            seen_at: clock::now_rfc3339(),
            pacemaker: view.map_err(|error| error.in_full()),
            local,
            primary_here,
            stored: keys.map(|_| stored).map_err(|error| chain(&error).to_string()),
            outcome,
        };
        self.story.tell(&latest, &self.options.namespace, &self.log);
        self.latest.send_replace(Arc::new(latest));
    }

    fn decide(&self, view: &PacemakerView, local: &Result<LocalFacts, String>) -> Decision {
        let PublishOptions { node, address, .. } = &self.options;
        let local = local.as_ref().map_err(String::as_str);
        decide(view, node, *address, local, self.was_in_recovery)
    }

    /// What Postgres says, asked after Pacemaker, whose answer takes longest: it may leave recovery meanwhile. A server that
    /// is being promoted, and was in recovery before (`early`: when this look began), is waited for, [`LEAVING`] at most.
    async fn local(
        &mut self,
        view: Option<&PacemakerView>,
        early: Result<LocalFacts, PostgresError>,
    ) -> Result<LocalFacts, String> {
        let takes_over = view.is_some_and(|view| takes_over(view, &self.options.node));
        let in_recovery = early.is_ok_and(|facts| facts.in_recovery);
        self.was_in_recovery = takes_over && (self.was_in_recovery || in_recovery);
        let until = Instant::now() + LEAVING;
        loop {
            let facts = self.postgres.facts().await;
            let is_early =
                self.was_in_recovery && facts.as_ref().is_ok_and(|facts| !facts.writable);
            if !is_early || Instant::now() >= until {
                return facts.map_err(|error| chain(&error).to_string());
            }
            sleep(LEAVING_LOOK).await;
        }
    }

    async fn read(&self) -> Result<Keys, EtcdError> {
        let snapshot = self.etcd.get_all(&[MASTER, CLUSTER, LOCK]).await?;
        self.gate.heed(&snapshot);
        let (master, cluster) = (snapshot.get(MASTER).cloned(), snapshot.get(CLUSTER).cloned());
        let view = cluster.as_ref().and_then(|entry| serde_json::from_str(&entry.value).ok());
        let lock = snapshot
            .get(LOCK)
            .map(|entry| Lock { attempt: serde_json::from_str(&entry.value).ok() });
        Ok(Keys { master, cluster, stored: Stored { view, lock } })
    }

    /// Writes `ours` unless what is stored is as good, or must not be replaced.
    async fn publish(&mut self, ours: ClusterView, keys: &Keys, stored: &mut Stored) -> Outcome {
        let mut same = false;
        if let Some(theirs) = &stored.view {
            if let Err(refused) = may_replace(theirs, &ours) {
                return Outcome::Refused(refused);
            }
            same = theirs.same_facts(&ours);
        } else if let Some(entry) = &keys.cluster {
            warn!(self.log, "the view in etcd is no view, replacing it";
                "event" => "publish.cluster.heal", "value" => shown(&entry.value));
        }
        let address = ours.primary.address.to_string();
        let right = keys.master.as_ref().is_some_and(|entry| entry.value == address);
        if let (false, true, Some(entry)) = (right, same, &keys.master) {
            warn!(self.log, "somebody changed the primary's address in etcd, putting it back";
                "event" => "publish.master.heal", "value" => shown(&entry.value));
        }
        let fresh = self.written_at.is_some_and(|at| at.elapsed() < REFRESH);
        if same && right && fresh {
            return Outcome::Unchanged;
        }
        let ours = ClusterView { observed_at: clock::now_rfc3339(), ..ours };
        let change = self.change(stored, &ours);
        let outcome = self.write(&ours, address, keys, change.as_ref()).await;
        if outcome == Outcome::Written {
            self.written_at = Some(Instant::now());
            stored.view = Some(ours);
            if let Some(change) = change {
                self.tell_change(&change);
                trim(&self.etcd, &self.log).await;
            }
        }
        outcome
    }

    /// The change of primary that `ours` is, if nobody planned it.
    fn change(&self, stored: &Stored, ours: &ClusterView) -> Option<Change> {
        let lock = stored.lock.as_ref().and_then(|lock| lock.attempt.as_ref());
        let change = history::unplanned(stored.view.as_ref(), ours, lock)?;
        let seen =
            self.in_place.as_ref().filter(|(old, _)| Some(old) == change.old_primary.as_ref());
        let without = seen.map(|(_, at)| at.elapsed().as_millis());
        Some(Change {
            ended_at: Some(ours.observed_at.clone()),
            without_primary_ms: without.and_then(|ms| u64::try_from(ms).ok()),
            ..change
        })
    }

    fn tell_change(&self, change: &Change) {
        let name = |primary: &Option<Primary>| primary.as_ref().map(|p| p.name.clone());
        warn!(self.log, "the primary changed without a failover having been asked for";
            "event" => "publish.primary.unplanned", "from" => name(&change.old_primary),
            "to" => name(&change.new_primary), "without_primary_ms" => change.without_primary_ms);
    }

    fn note_in_place(&mut self, view: &PacemakerView, local: Option<&LocalFacts>, stored: &Stored) {
        let Some(published) = stored.view.as_ref().map(|view| &view.primary) else { return };
        if history::is_as_published(view, &self.options.node, local, published) {
            self.in_place = Some((published.clone(), Instant::now()));
        }
    }

    /// A change goes into the history in the same transaction: it is written once, or not at all.
    async fn write(
        &self,
        ours: &ClusterView,
        address: String,
        keys: &Keys,
        change: Option<&Change>,
    ) -> Outcome {
        let json = match serde_json::to_string(ours) {
            Ok(json) => json,
            Err(error) => return Outcome::Failed(error.to_string()),
        };
        let expect = [(MASTER, unchanged(&keys.master)), (CLUSTER, unchanged(&keys.cluster))];
        let mut puts = vec![
            Put { key: MASTER.to_owned(), value: address, lease: 0 },
            Put { key: CLUSTER.to_owned(), value: json, lease: 0 },
        ];
        puts.extend(change.map(|change| Put {
            key: history::key(clock::unix_ms()),
            value: serde_json::to_string(change).unwrap_or_default(),
            lease: 0,
        }));
        match self.etcd.put_if(&expect, &puts).await {
            Ok(Swap::Done(_)) => Outcome::Written,
            Ok(Swap::Changed) => Outcome::Outrun,
            Err(error) => Outcome::Failed(chain(&error).to_string()),
        }
    }
}

/// Whether it is time to look although nothing is known to have changed. During a burst that waits,
/// if not for long: others need the processors then.
fn is_due(look_due: Instant, burst_ends: Instant) -> bool {
    let now = Instant::now();
    now >= look_due && (now >= burst_ends || now >= look_due + BURST)
}

fn unchanged(entry: &Option<Entry>) -> Expect {
    entry.as_ref().map_or(Expect::Absent, |entry| Expect::ModRevision(entry.mod_revision))
}

/// A value in a log line: its first 100 characters.
fn shown(value: &str) -> String {
    value.chars().take(100).collect()
}

/// Returns when somebody pokes; never without a socket.
async fn poked(socket: Option<&UnixDatagram>) -> Urgency {
    let Some(socket) = socket else { return std::future::pending().await };
    match poke::poked(socket).await {
        Ok(urgency) => urgency,
        // The poll goes on; a socket that fails at once must not make it a busy loop.
        Err(_) => std::future::pending().await,
    }
}
