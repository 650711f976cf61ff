//! Runs a command while holding the failover lock, and no longer than that.

use std::{sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use slog::{Logger, info, warn};
use tokio::time::{Instant, timeout};

use super::shutdown::Stop;
use crate::{
    edge::{
        clock,
        command::{Attached, CommandError, Foreground},
        etcd::Etcd,
        lock::{Acquired, Lock, LockError, LockOptions},
    },
    error::chain,
    model::{attempt::Attempt, span::millis},
};

/// How long a killed process may take to be gone.
const LAST: Duration = Duration::from_secs(5);
/// How often it is killed meanwhile.
const AGAIN: Duration = Duration::from_millis(200);

#[derive(Debug, Clone)]
pub struct WithLockOptions {
    /// Program and its arguments.
    pub program: String,
    pub args: Vec<String>,
    /// Host and process, for whoever finds the lock taken.
    pub holder: String,
    pub lock_timeout: Duration,
    pub lock_lease: Duration,
    pub watch_interval: Duration,
    /// SIGKILL follows SIGTERM after this.
    pub kill_after: Duration,
    /// Whether the command shares this process's group: then a terminal's Ctrl-C reaches it too.
    pub on_terminal: bool,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The command did, with this status; 128 + the signal if one ended it.
    Command(i32),
    /// The command never ran: somebody else holds the lock.
    Locked(Attempt),
}

#[derive(Debug, thiserror::Error)]
pub enum WithLockError {
    #[error("cannot take the failover lock, so `{program}` was not run")]
    Lock {
        program: String,
        #[source]
        source: LockError,
    },
    #[error("asked to stop before `{program}` was run")]
    Stopped { program: String },
    #[error("cannot run the command")]
    Command(#[source] CommandError),
    #[error("the failover lock was lost while `{program}` ran; it was told to end and {end}")]
    Lost { program: String, end: String },
    #[error("`{program}` did not end {LAST:?} after it was killed; it runs on without the lock")]
    Unkillable { program: String },
}

/// Takes the lock, runs the command with this process's input and output, gives the lock back.
///
/// When the lock is lost, or at `stop`, the command and what it has started get SIGTERM and, after
/// [`WithLockOptions::kill_after`], SIGKILL; a daemon that began a session of its own does not.
/// `interrupt` counts as a stop unless the terminal tells the command itself. Needs no key in etcd
/// but the lock.
///
/// # Errors
/// [`WithLockError`]; the lock is free again at once, or when its lease ends.
pub async fn run(
    options: WithLockOptions,
    etcd: Arc<Etcd>,
    mut stop: Stop,
    mut interrupt: Stop,
    log: Logger,
) -> Result<Ended, WithLockError> {
    let lock_options = LockOptions { lease: options.lock_lease, poll: options.watch_interval };
    let lock = Lock::new(etcd, attempt(&options), lock_options);
    let acquired = tokio::select! {
        acquired = lock.acquire(options.lock_timeout) => Some(acquired),
        () = stop.wait() => None,
        () = interrupt.wait() => None,
    };
    let program = options.program.clone();
    let result = match acquired {
        None => Err(WithLockError::Stopped { program }),
        Some(Err(source)) => Err(WithLockError::Lock { program, source }),
        Some(Ok(Acquired::HeldElsewhere(holder))) => return Ok(Ended::Locked(holder)),
        Some(Ok(Acquired::Held { token, .. })) => {
            info!(log, "holding the failover lock"; "event" => "lock.command.begin",
                "program" => &program, "fencing_token" => token);
            if options.on_terminal {
                held(&options, &lock, token, stop, None, &log).await
            } else {
                held(&options, &lock, token, stop, Some(interrupt), &log).await
            }
        }
    };
    if let Err(error) = lock.release().await {
        warn!(log, "the lock is not released, it ends with its lease";
            "event" => "lock.command.release.fail", "error" => %chain(&error));
    }
    result
}

/// Runs the command while the lock is held.
async fn held(
    options: &WithLockOptions,
    lock: &Lock,
    token: i64,
    mut stop: Stop,
    mut interrupt: Option<Stop>,
    log: &Logger,
) -> Result<Ended, WithLockError> {
    let call = Foreground {
        program: options.program.clone(),
        args: options.args.clone(),
        variables: vec![("PGCM_FENCING_TOKEN".to_owned(), token.to_string())],
        own_group: !options.on_terminal,
    };
    let mut command = Attached::start(call).map_err(WithLockError::Command)?;
    let mut lost = lock.lost();
    let interrupted = async {
        match &mut interrupt {
            Some(interrupt) => interrupt.wait().await,
            None => std::future::pending().await,
        }
    };
    let status = tokio::select! {
        status = command.wait() => Some(status.map_err(WithLockError::Command)?),
        _ = lost.wait_for(|&lost| lost) => None,
        () = stop.wait() => None,
        () = interrupted => None,
    };
    let (status, killed) = match status {
        Some(status) => (status, false),
        None => end(&mut command, options, log).await?,
    };
    if lock.is_lost() {
        let how = if killed { "killed" } else { "ended" };
        let end = format!("{how}, with status {status}");
        return Err(WithLockError::Lost { program: options.program.clone(), end });
    }
    Ok(Ended::Command(status))
}

/// Tells the command, and what it has started, to end, then makes them; returns its status and whether any had to be
/// killed.
async fn end(
    command: &mut Attached,
    options: &WithLockOptions,
    log: &Logger,
) -> Result<(i32, bool), WithLockError> {
    warn!(log, "telling the command to end"; "event" => "lock.command.stop",
        "program" => &options.program, "kill_after_ms" => millis(options.kill_after));
    command.signal(Signal::SIGTERM);
    if let Ok(status) = timeout(options.kill_after, command.wait_for_all()).await {
        return Ok((status.map_err(WithLockError::Command)?, false));
    }
    let until = Instant::now() + LAST;
    while Instant::now() < until {
        // Again: what is being killed may have started something.
        command.signal(Signal::SIGKILL);
        if let Ok(status) = timeout(AGAIN, command.wait_for_all()).await {
            return Ok((status.map_err(WithLockError::Command)?, true));
        }
    }
    Err(WithLockError::Unkillable { program: options.program.clone() })
}

fn attempt(options: &WithLockOptions) -> Attempt {
    let words = std::iter::once(&options.program).chain(&options.args);
    let line = words.map(String::as_str).collect::<Vec<_>>().join(" ");
    Attempt {
        id: format!("{}-{}", options.holder, clock::unix_ms()),
        holder: options.holder.clone(),
        purpose: format!("with-lock: {}", line.chars().take(100).collect::<String>()),
        started_at: clock::now_rfc3339(),
        step: "running".to_owned(),
        pause_deadline_unix_ms: 0,
    }
}
