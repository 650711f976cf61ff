//! The same command to every PgBouncer process of this machine, in parallel, with proof.

use std::{
    future::Future,
    path::PathBuf,
    time::{Duration, Instant},
};

use tokio::{task::JoinSet, time::timeout};

use crate::{
    edge::pgbouncer::{Console, ConsoleError, Session},
    model::console::{Blocker, Flow},
};

/// How long to wait before another look or another try.
const STEP: Duration = Duration::from_millis(20);

/// One process's answer that was not the wanted one.
#[derive(Debug)]
pub struct Failure {
    pub socket: PathBuf,
    pub error: ConsoleError,
}

/// Asks every console at once; answers come in the order of `consoles`.
pub async fn each<T, F>(consoles: &[Console], ask: impl Fn(Console) -> F) -> Vec<Result<T, Failure>>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ConsoleError>> + Send + 'static,
{
    let mut asked = JoinSet::new();
    for (index, console) in consoles.iter().enumerate() {
        let socket = console.socket().to_owned();
        let answer = ask(console.clone());
        asked
            .spawn(async move { (index, answer.await.map_err(|error| Failure { socket, error })) });
    }
    in_order(asked).await
}

/// Waits for tasks that give their index along, and returns what they gave in that order.
pub async fn in_order<T: 'static>(mut tasks: JoinSet<(usize, T)>) -> Vec<T> {
    let mut done = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        match ended {
            Ok(one) => done.push(one),
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            // Only a runtime that shuts down cancels these tasks; this one is next.
            Err(_) => std::future::pending().await,
        }
    }
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().map(|(_, one)| one).collect()
}

/// Whether every process says that it lets queries flow.
pub async fn all_flow(consoles: &[Console]) -> bool {
    let flows = each(consoles, |console| async move { console.connect().await?.flow().await });
    flows.await.into_iter().all(|flow| matches!(flow, Ok(Flow::Active)))
}

/// Pauses every process and proves it: nothing flows and no server connection is in use.
///
/// `limit` bounds the whole. On failure any of them may be paused or still pausing.
pub async fn pause(consoles: &[Console], limit: Duration) -> Vec<Result<(), Failure>> {
    let end = Instant::now() + limit;
    // A console that hangs before or after its PAUSE is told apart from open transactions.
    let hung = limit + STEP;
    let asked = each(consoles, |console| async move {
        timeout(hung, pause_one(&console, end)).await.unwrap_or(Err(hangs(hung)))
    });
    asked.await
}

async fn pause_one(console: &Console, end: Instant) -> Result<(), ConsoleError> {
    let late = || ConsoleError::TimedOut { command: "PAUSE", limit: Duration::ZERO };
    let session = console.connect().await?;
    match session.pause(left(end).ok_or_else(late)?).await {
        // An earlier PAUSE may still be waiting for transactions: only the proof below counts.
        Ok(()) | Err(ConsoleError::AlreadyPaused) => {}
        Err(error) => return Err(error),
    }
    drop(session);
    let session = console.connect().await?;
    loop {
        if session.flow().await? == Flow::Active {
            // Somebody resumed it in between.
            return Err(ConsoleError::NotPaused);
        }
        if session.pools().await?.iter().all(|pool| pool.busy_servers == 0) {
            return Ok(());
        }
        let left = left(end).ok_or_else(late)?;
        tokio::time::sleep(left.min(STEP)).await;
    }
}

/// Resumes every process and proves that queries flow, trying again until `limit` ends.
pub async fn resume(consoles: &[Console], limit: Duration) -> Result<(), Failure> {
    let end = Instant::now() + limit;
    let answers = each(consoles, |console| async move {
        loop {
            let hung = left(end).unwrap_or(STEP);
            let error = match timeout(hung, resume_one(&console)).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) => error,
                Err(_) => hangs(hung),
            };
            match left(end) {
                Some(left) => tokio::time::sleep(left.min(STEP)).await,
                None => return Err(error),
            }
        }
    });
    answers.await.into_iter().collect::<Result<Vec<()>, _>>().map(drop)
}

/// A session that is dropped with a PAUSE unanswered must not be the one that resumes: each
/// round has its own.
async fn resume_one(console: &Console) -> Result<(), ConsoleError> {
    let session: Session = console.connect().await?;
    match session.resume().await {
        Ok(()) | Err(ConsoleError::NotPaused) => {}
        Err(error) => return Err(error),
    }
    match session.flow().await? {
        Flow::Active => Ok(()),
        Flow::Held => Err(ConsoleError::AlreadyPaused),
    }
}

/// The transactions that are open now on any process; a console that does not answer within
/// `limit` adds none.
pub async fn blockers(consoles: &[Console], limit: Duration) -> Vec<Blocker> {
    let answers = each(consoles, |console| async move {
        let asked = async { console.connect().await?.blockers().await };
        timeout(limit, asked).await.unwrap_or(Err(hangs(limit)))
    });
    answers.await.into_iter().flatten().flatten().collect()
}

fn hangs(limit: Duration) -> ConsoleError {
    ConsoleError::TimedOut { command: "a console command", limit }
}

fn left(end: Instant) -> Option<Duration> {
    let left = end.saturating_duration_since(Instant::now());
    (!left.is_zero()).then_some(left)
}
