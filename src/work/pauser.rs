//! Pauses and resumes the PgBouncers of this machine, and never leaves them paused.

mod expiry;
mod recover;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use slog::{Logger, info, warn};
use tokio::sync::watch;

use self::expiry::arm;
use super::{
    consoles::{self, Failure},
    fence::SharedGate,
};
use crate::{
    edge::pgbouncer::{Console, ConsoleError},
    error::chain,
    model::{
        console::Blocker,
        fence::StaleToken,
        pause::{Claim, NotBegun, PauseBook, Taken},
        span::millis,
    },
};

/// Bounds the look at who is in the way, while clients still wait.
const LOOK: Duration = Duration::from_millis(500);

/// What a [`Pauser`] commands.
#[derive(Debug, Clone)]
pub struct PauserOptions {
    /// One console for each PgBouncer process; at least one.
    pub consoles: Vec<Console>,
    /// Bounds each try to resume and to prove it, over all processes together.
    pub resume_limit: Duration,
    /// Bounds a pause found at start: its deadline was written by another machine's clock.
    pub adopt_ceiling: Duration,
}

/// What a [`Pauser`] has done and does, for metrics.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PauseStatus {
    /// A pause was asked for and traffic has not been proven to flow since.
    pub paused: bool,
    /// Since when.
    pub paused_at: Option<Instant>,
    /// How long the pause before lasted, until traffic was proven to flow.
    pub last: Option<Duration>,
    /// Attempt that the pause belongs to.
    pub attempt: Option<String>,
    /// Pauses that were proven.
    pub pauses: u64,
    /// Pauses that failed; traffic was resumed.
    pub failures: u64,
    /// Pauses that were ended by their expiry.
    pub expiries: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum PauseError {
    #[error("refused")]
    Stale(#[source] StaleToken),
    #[error("{}; traffic flows again", Busy(.blockers))]
    Busy { blockers: Vec<Blocker> },
    #[error("PgBouncer is paused on behalf of attempt {attempt}")]
    Taken { attempt: String },
    #[error("a resume arrived while the pause was being made; traffic flows")]
    Superseded,
    #[error("the pause arrived after the resume of its own attempt {attempt}; nothing was touched")]
    Ended { attempt: String },
    #[error("the pause limits make no sense: {reason}")]
    Limits { reason: &'static str },
    #[error("the PgBouncer at {socket} refused; traffic flows", socket = .socket.display())]
    Console {
        socket: PathBuf,
        #[source]
        source: ConsoleError,
    },
    #[error(
        "the PgBouncer at {socket} may still hold its clients; pgcm goes on trying to resume it, \
         by hand: RESUME on its admin console",
        socket = .socket.display()
    )]
    Stuck {
        socket: PathBuf,
        #[source]
        source: ConsoleError,
    },
    #[error("the pause was dropped, the agent is stopping")]
    Stopping,
    #[error("this agent is stopping and begins no pause any more; nothing was touched")]
    Closing,
}

/// Says who is in the way.
struct Busy<'a>(&'a [Blocker]);

impl fmt::Display for Busy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("open transactions did not end within the limit")?;
        for (index, blocker) in self.0.iter().enumerate() {
            write!(f, "{}{blocker}", if index == 0 { ": " } else { ", " })?;
        }
        Ok(())
    }
}

/// Pauses and resumes every PgBouncer of this machine. Cheap to clone.
///
/// Calls are made one after the other. A call goes on to its end even when its caller goes away.
#[derive(Clone)]
pub struct Pauser(Arc<Inner>);

struct Inner {
    options: PauserOptions,
    gate: SharedGate,
    book: Mutex<PauseBook>,
    /// Held while commands are under way.
    turn: tokio::sync::Mutex<()>,
    /// The agent is about to end.
    closing: AtomicBool,
    /// Counts requests to resume; a pause under way gives up when it changes.
    resumes: watch::Sender<u64>,
    status: watch::Sender<PauseStatus>,
    log: Logger,
}

impl Pauser {
    pub fn new(options: PauserOptions, gate: SharedGate, log: Logger) -> Self {
        Self(Arc::new(Inner {
            options,
            gate,
            book: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            closing: AtomicBool::new(false),
            resumes: watch::Sender::new(0),
            status: watch::Sender::default(),
            log,
        }))
    }

    /// No pause that was not asked for by its coordinator lasts longer than this.
    pub fn ceiling(&self) -> Duration {
        self.0.options.adopt_ceiling
    }

    /// What is paused now, and counters.
    pub fn status(&self) -> watch::Receiver<PauseStatus> {
        self.0.status.subscribe()
    }

    /// Holds new queries at every PgBouncer of this machine until [`Self::resume`], or `expiry` at
    /// the latest; returns how many processes were shown to be paused.
    ///
    /// `timeout` bounds the wait for open transactions, `expiry` counts from this call.
    ///
    /// # Errors
    /// [`PauseError::Busy`] when transactions outlive `timeout`, [`PauseError::Ended`] after a resume
    /// of the same claim. After any error except [`PauseError::Stuck`] and [`PauseError::Taken`]
    /// traffic flows.
    pub async fn pause(
        &self,
        claim: &Claim,
        timeout: Duration,
        expiry: Duration,
    ) -> Result<u32, PauseError> {
        let (inner, claim) = (Arc::clone(&self.0), claim.clone());
        // Commands that were begun are finished, whether or not the caller still listens.
        let call = tokio::spawn(async move { inner.pause(&claim, timeout, expiry).await });
        call.await.unwrap_or(Err(PauseError::Stopping))
    }

    /// Lets queries flow at every PgBouncer, proves it and cancels the expiry. Idempotent.
    ///
    /// A pause that is still being made gives up at once.
    ///
    /// # Errors
    /// [`PauseError::Stuck`] when a process could not be shown to run within the limit; the expiry
    /// stays armed and is due now.
    pub async fn resume(&self, claim: &Claim) -> Result<(), PauseError> {
        let (inner, claim) = (Arc::clone(&self.0), claim.clone());
        let call = tokio::spawn(async move { inner.resume(&claim).await });
        call.await.unwrap_or(Err(PauseError::Stopping))
    }

    /// Lets no further pause begin, and returns once the one that is under way or held has ended.
    pub async fn drain(&self) {
        self.0.closing.store(true, Ordering::Relaxed);
        drop(self.0.turn.lock().await);
        let _ = self.status().wait_for(|status| !status.paused).await;
    }

    /// Server connections that are in use now, as far as the consoles tell.
    pub async fn blockers(&self) -> Vec<Blocker> {
        consoles::blockers(&self.0.options.consoles, LOOK).await
    }
}

impl Inner {
    async fn pause(
        self: &Arc<Self>,
        claim: &Claim,
        timeout: Duration,
        expiry: Duration,
    ) -> Result<u32, PauseError> {
        if timeout.is_zero() || expiry <= timeout {
            return Err(PauseError::Limits { reason: "0 < timeout < expiry must hold" });
        }
        let arrived = Instant::now();
        let mut resumes = self.resumes.subscribe();
        let _turn = self.turn.lock().await;
        if self.closing.load(Ordering::Relaxed) {
            return Err(PauseError::Closing);
        }
        self.gate.lock().admit(claim.token).map_err(PauseError::Stale)?;
        if resumes.has_changed().unwrap_or(true) {
            return Err(PauseError::Superseded);
        }
        // Armed before PAUSE is sent: from here on traffic comes back, whatever happens.
        let begun = self.book().begin(claim, arrived, expiry);
        let timer = begun.map_err(|why| match why {
            NotBegun::Taken(Taken { attempt }) => PauseError::Taken { attempt },
            NotBegun::Ended { attempt } => PauseError::Ended { attempt },
        })?;
        self.publish();
        arm(self, timer);
        let answers = tokio::select! {
            answers = consoles::pause(&self.options.consoles, timeout) => answers,
            _ = resumes.changed() => return self.undo(PauseError::Superseded).await,
        };
        let paused = u32::try_from(answers.len()).unwrap_or(u32::MAX);
        let failure = answers.into_iter().filter_map(Result::err).min_by_key(|failure| {
            // A process that is away says more than one that is busy.
            matches!(failure.error, ConsoleError::TimedOut { .. })
        });
        let Some(failure) = failure else {
            self.status.send_modify(|status| status.pauses += 1);
            info!(self.log, "PgBouncer is paused, clients wait"; "event" => "pause.begin",
                "attempt" => &claim.attempt, "processes" => paused,
                "took_ms" => millis(arrived.elapsed()), "expiry_ms" => millis(expiry));
            return Ok(paused);
        };
        let error = match failure.error {
            ConsoleError::TimedOut { command: "PAUSE", .. } => PauseError::Busy {
                blockers: consoles::blockers(&self.options.consoles, LOOK).await,
            },
            source => PauseError::Console { socket: failure.socket, source },
        };
        self.undo(error).await
    }

    /// Resumes everything after a pause that failed with `error`.
    async fn undo(self: &Arc<Self>, error: PauseError) -> Result<u32, PauseError> {
        self.status.send_modify(|status| status.failures += 1);
        warn!(self.log, "the pause failed, resuming"; "event" => "pause.begin.fail",
            "error" => %chain(&error));
        match self.flow().await {
            Ok(()) => Err(error),
            Err(failure) => {
                self.abandon();
                // A process that is away holds no clients; what it refused says more.
                match error {
                    PauseError::Console { ref socket, source: ConsoleError::NotThere { .. } }
                        if *socket == failure.socket =>
                    {
                        Err(error)
                    }
                    _ => Err(PauseError::Stuck { socket: failure.socket, source: failure.error }),
                }
            }
        }
    }

    async fn resume(self: &Arc<Self>, claim: &Claim) -> Result<(), PauseError> {
        let check = || -> Result<(), PauseError> {
            self.gate.lock().admit_to_let_go(claim.token).map_err(PauseError::Stale)?;
            let checked = self.book().check(claim, Instant::now());
            checked.map_err(|taken| PauseError::Taken { attempt: taken.attempt })
        };
        check()?;
        self.book().end(claim);
        self.resumes.send_modify(|count| *count += 1);
        let _turn = self.turn.lock().await;
        check()?;
        match self.flow().await {
            Ok(()) => {
                info!(self.log, "PgBouncer runs"; "event" => "pause.end",
                    "attempt" => &claim.attempt);
                Ok(())
            }
            Err(failure) => {
                self.abandon();
                Err(PauseError::Stuck { socket: failure.socket, source: failure.error })
            }
        }
    }

    /// Resumes and proves it; the pause leaves the book only then.
    async fn flow(&self) -> Result<(), Failure> {
        consoles::resume(&self.options.consoles, self.options.resume_limit).await?;
        self.book().release();
        self.publish();
        Ok(())
    }

    /// Leaves a pause that nobody wants to a timer that is due now.
    fn abandon(self: &Arc<Self>) {
        let timer = self.book().adopt(None, Instant::now());
        self.publish();
        arm(self, timer);
    }

    fn publish(&self) {
        let (paused, attempt) = {
            let book = self.book();
            (book.is_held(), book.owner().map(str::to_owned))
        };
        self.status.send_modify(|status| {
            status.paused = paused;
            if paused {
                status.paused_at.get_or_insert_with(Instant::now);
            } else if let Some(at) = status.paused_at.take() {
                status.last = Some(at.elapsed());
            }
            status.attempt = attempt;
        });
    }

    fn book(&self) -> MutexGuard<'_, PauseBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
