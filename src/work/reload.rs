//! Makes every PgBouncer process follow its file, and proves it.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use super::consoles::in_order;
use crate::{
    edge::pgbouncer::{Console, ConsoleError, Session},
    model::{
        console::ShownConfig,
        pgbouncer_ini::{self, Agreement, Database, compare},
    },
};

/// A RELOAD that did not help is tried again after this long.
const AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    #[error("the PgBouncer at {socket} cannot be told", socket = .socket.display())]
    Console {
        socket: PathBuf,
        #[source]
        source: ConsoleError,
    },
    #[error(
        "the PgBouncer at {socket} does not follow its file: {}; is it started with this file? \
         its log says why it did not load it",
        .differences.join("; "), socket = .socket.display()
    )]
    Differs { socket: PathBuf, differences: Vec<String> },
    #[error(
        "the PgBouncer at {socket} follows, but complains about its configuration",
        socket = .socket.display()
    )]
    Complains {
        socket: PathBuf,
        #[source]
        source: ConsoleError,
    },
    #[error(
        "the PgBouncer at {socket} follows, but has not read its file to the end: {} at the default, not as \
         the file has it; the log of its last RELOAD names the line at fault, with which it would not even start",
        .keys.join(", "), socket = .socket.display()
    )]
    HalfRead { socket: PathBuf, keys: Vec<String> },
}

/// The file that PgBouncer is to follow.
#[derive(Debug, Clone)]
pub struct File {
    pub path: PathBuf,
    pub databases: Vec<Database>,
    /// All of it.
    pub text: String,
}

/// One process, with a console session that is kept open: a new one each second would fill
/// PgBouncer's log.
pub struct Process {
    console: Console,
    session: Option<Session>,
    /// The file changed and no RELOAD has succeeded since.
    pending: bool,
    /// Whether PgBouncer got to the end of its file has not been looked at since it read that.
    unread: bool,
    /// A RELOAD of this session has succeeded: what is not as the file has it was not set on a console before.
    reloaded: bool,
    /// Settings that the last RELOAD seems not to have got to.
    left_at_default: Vec<String>,
    /// A RELOAD has succeeded: what cannot be seen in SHOW DATABASES is known to be in force.
    settled: bool,
    not_before: Option<Instant>,
    reloads: u64,
}

impl Process {
    pub fn new(console: Console) -> Self {
        Self {
            console,
            session: None,
            pending: false,
            unread: true,
            reloaded: false,
            left_at_default: Vec::new(),
            settled: false,
            not_before: None,
            reloads: 0,
        }
    }

    /// RELOADs that this process answered.
    pub fn reloads(&self) -> u64 {
        self.reloads
    }

    /// RELOADs if the file `changed`, or if PgBouncer shows something else than `file`.
    async fn follow(&mut self, file: &File, changed: bool) -> Result<(), ReloadError> {
        if changed {
            self.pending = true;
            self.not_before = None;
        }
        let kept = self.session.is_some();
        let mut result = self.check(file).await;
        if kept && matches!(&result, Err(ReloadError::Console { .. })) {
            // PgBouncer has been restarted, or closed an idle session.
            self.session = None;
            result = self.check(file).await;
        }
        if matches!(&result, Err(ReloadError::Console { .. })) {
            self.session = None;
        }
        result
    }

    async fn check(&mut self, file: &File) -> Result<(), ReloadError> {
        let socket = self.console.socket().to_owned();
        let failed = |source| ReloadError::Console { socket: socket.clone(), source };
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                (self.unread, self.reloaded) = (true, false);
                self.console.connect().await.map_err(failed)?
            }
        };
        let session = self.session.insert(session);
        let mut agreement = compare(&file.databases, &session.databases().await.map_err(failed)?);
        let needed = self.pending
            || matches!(agreement, Agreement::Differs(_))
            || (agreement == Agreement::Unproven && !self.settled);
        let too_soon = self.not_before.is_some_and(|time| Instant::now() < time);
        let mut complaint = None;
        if needed && !too_soon {
            self.not_before = Some(Instant::now() + AGAIN);
            match session.reload().await {
                Ok(()) => (self.pending, self.settled) = (false, true),
                Err(refused @ ConsoleError::Refused { .. }) => complaint = Some(refused),
                Err(error) => {
                    self.not_before = None;
                    return Err(failed(error));
                }
            }
            self.reloads += 1;
            (self.unread, self.reloaded) = (true, true);
            self.left_at_default.clear();
            agreement = compare(&file.databases, &session.databases().await.map_err(failed)?);
        } else if self.unread || !self.left_at_default.is_empty() {
            // Before 1.25 the answer to RELOAD tells nothing of this. Not at once: clients may wait for this proof.
            self.unread = false;
            let left = left_at_default(file, &session.config().await.map_err(failed)?);
            // A SET on the console looks the same until the next RELOAD.
            self.pending |= !left.is_empty() && !self.reloaded;
            self.left_at_default = if self.reloaded { left } else { Vec::new() };
        }
        match (agreement, complaint) {
            (Agreement::Differs(differences), _) => {
                Err(ReloadError::Differs { socket, differences })
            }
            (_, Some(source)) => Err(ReloadError::Complains { socket, source }),
            _ if !self.left_at_default.is_empty() => {
                Err(ReloadError::HalfRead { socket, keys: self.left_at_default.clone() })
            }
            _ => Ok(()),
        }
    }
}

/// The settings that a process seems not to have got to in its `file`. Nothing is said of one that was started with
/// another file, which includes this one and may say more.
fn left_at_default(file: &File, shown: &ShownConfig) -> Vec<String> {
    let is_its_own = shown.file.as_deref().is_some_and(|own| Path::new(own) == file.path);
    if is_its_own {
        pgbouncer_ini::left_at_default(&file.text, &shown.changeable)
    } else {
        Vec::new()
    }
}

/// Makes all `processes` follow, at the same time. The answers are in their order.
pub async fn follow(
    processes: &mut Vec<Process>,
    file: &File,
    changed: bool,
) -> Vec<Result<(), ReloadError>> {
    let mut asked = JoinSet::new();
    for (index, mut process) in std::mem::take(processes).into_iter().enumerate() {
        let file = file.clone();
        asked.spawn(async move {
            let answer = process.follow(&file, changed).await;
            (index, (process, answer))
        });
    }
    let mut answers = Vec::new();
    for (process, answer) in in_order(asked).await {
        processes.push(process);
        answers.push(answer);
    }
    answers
}
