//! From a signal to a bounded end: one channel that every loop watches.

use std::{future::Future, time::Duration};

use slog::{Logger, info, warn};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::JoinSet,
};

use crate::edge::signals::Hangup;

/// Tells loops when to end. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Stop(watch::Receiver<bool>);

impl Stop {
    /// A stop and the switch that flips it.
    pub fn new() -> (watch::Sender<bool>, Self) {
        let (switch, receiver) = watch::channel(false);
        (switch, Self(receiver))
    }

    pub fn is_set(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns once the stop was asked for.
    pub async fn wait(&mut self) {
        // A dropped switch means that nobody is left who could want us to go on.
        let _ = self.0.wait_for(|&stopped| stopped).await;
    }
}

/// Returns when SIGTERM, SIGINT or SIGHUP arrives: a session that is cut off ends in good order, too.
pub async fn signalled() -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = Hangup::listen()?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = hangup.recv() => "SIGHUP",
    })
}

/// The tasks of one daemon, by name.
#[derive(Default)]
pub struct Tasks {
    set: JoinSet<&'static str>,
    running: Vec<&'static str>,
}

impl Tasks {
    /// Starts `task`, which must end when its [`Stop`] says so.
    pub fn spawn(&mut self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        self.running.push(name);
        self.set.spawn(async move {
            task.await;
            name
        });
    }

    /// Waits for a signal, then for `drained`, which a second signal cuts short, then for all tasks, at most
    /// `grace`; whatever is late is named and ended.
    ///
    /// A task that ends before any signal stops the rest: a daemon with a part missing is worse than
    /// one that its service manager starts again. Returns whether a signal was the cause.
    pub async fn run(
        mut self,
        log: &Logger,
        switch: watch::Sender<bool>,
        drained: impl Future<Output = ()>,
        grace: Duration,
    ) -> bool {
        let signalled = tokio::select! {
            signal = signalled() => {
                info!(log, "stopping"; "event" => "daemon.stop", "signal" => signal.unwrap_or("none"));
                tokio::select! {
                    () = drained => {}
                    _ = signalled() => {}
                }
                true
            }
            ended = self.set.join_next() => {
                let name = self.ended(ended);
                slog::error!(log, "a task ended on its own, stopping";
                    "event" => "daemon.task.end", "task" => name);
                false
            }
        };
        let _ = switch.send(true);
        let all = async {
            while let Some(ended) = self.set.join_next().await {
                if let Ok(name) = ended {
                    self.running.retain(|&running| running != name);
                }
            }
        };
        if tokio::time::timeout(grace, all).await.is_err() {
            warn!(log, "some tasks did not end in time and are dropped";
                "event" => "daemon.stop.late", "tasks" => self.running.join(","));
        }
        signalled
    }

    fn ended(
        &mut self,
        ended: Option<Result<&'static str, tokio::task::JoinError>>,
    ) -> &'static str {
        let name = match ended {
            Some(Ok(name)) => name,
            Some(Err(_)) => "a task that panicked",
            None => "none",
        };
        self.running.retain(|&running| running != name);
        name
    }
}
