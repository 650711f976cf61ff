//! Clients that commit all the time, one through each PgBouncer, and remember what was acknowledged.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::support::postgres::connect;

const PACE: Duration = Duration::from_millis(15);
/// Longer than anything that is allowed to happen.
const PATIENCE: Duration = Duration::from_secs(30);

/// What one client saw.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    acknowledged: Vec<(String, Instant)>,
    errors: Vec<(String, Instant)>,
}

pub(crate) struct Writers {
    began: Instant,
    seen: Vec<Arc<Mutex<Seen>>>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
}

impl Writers {
    /// One client for each of `ports`, whose rows begin with `name`.
    pub(crate) fn start(ports: &[u16], name: &str) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut writers = Self { began: Instant::now(), seen: Vec::new(), stop, tasks: Vec::new() };
        for &port in ports {
            let seen = Arc::<Mutex<Seen>>::default();
            let write = write(port, format!("{name}-{port}"), seen.clone(), stopped.clone());
            writers.tasks.push(tokio::spawn(write));
            writers.seen.push(seen);
        }
        writers
    }

    /// Waits until every client has had another commit acknowledged.
    pub(crate) async fn all_commit(&self, limit: Duration) -> Result<(), String> {
        let counts = || self.seen.iter().map(|seen| seen.lock().unwrap().acknowledged.len());
        // One that is under way may have been done before.
        let wanted: Vec<usize> = counts().map(|count| count + 2).collect();
        let end = Instant::now() + limit;
        while counts().zip(&wanted).any(|(now, wanted)| now < *wanted) {
            if Instant::now() > end {
                return Err(format!("not every client commits within {limit:?}: {}", self.told()));
            }
            tokio::time::sleep(PACE).await;
        }
        Ok(())
    }

    /// Ends them; the longest time that any of them went without a commit, all acknowledged rows, and
    /// all errors, with when they were seen.
    pub(crate) async fn stop(self) -> (Duration, HashSet<String>, Vec<(String, Instant)>) {
        self.stop.send_replace(true);
        for task in self.tasks {
            let _ = task.await;
        }
        let (mut longest, mut rows, mut errors) = (Duration::ZERO, HashSet::new(), Vec::new());
        for seen in &self.seen {
            let seen = seen.lock().unwrap();
            let mut before = self.began;
            for (id, at) in &seen.acknowledged {
                longest = longest.max(*at - before);
                before = *at;
                rows.insert(id.clone());
            }
            longest = longest.max(before.elapsed());
            errors.extend(seen.errors.iter().cloned());
        }
        (longest, rows, errors)
    }

    fn told(&self) -> String {
        let last = |seen: &Arc<Mutex<Seen>>| seen.lock().unwrap().errors.last().cloned();
        let errors: Vec<String> =
            self.seen.iter().filter_map(last).map(|(error, _)| error).collect();
        if errors.is_empty() { "they wait".to_owned() } else { errors.join("; ") }
    }
}

async fn write(port: u16, name: String, seen: Arc<Mutex<Seen>>, stopped: watch::Receiver<bool>) {
    let mut client = None;
    let mut number = 0_u64;
    while !*stopped.borrow() {
        number += 1;
        let id = format!("{name}-{number}");
        let done = timeout(PATIENCE, commit(&mut client, port, &id)).await;
        match done.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}"))) {
            Ok(()) => seen.lock().unwrap().acknowledged.push((id, Instant::now())),
            Err(error) => {
                client = None;
                seen.lock().unwrap().errors.push((error, Instant::now()));
            }
        }
        tokio::time::sleep(PACE).await;
    }
}

async fn commit(client: &mut Option<Client>, port: u16, id: &str) -> Result<(), String> {
    if client.is_none() {
        *client = Some(connect(port, "app").await.map_err(|error| format!("login: {error:?}"))?);
    }
    let insert = format!("INSERT INTO acknowledged VALUES ('{id}')");
    let query = client.as_ref().unwrap().simple_query(&insert).await;
    query.map(drop).map_err(|error| format!("commit: {error:?}"))
}

/// The rows that are stored, read at the Postgres on `port` of `client`.
pub(crate) async fn stored(client: &Client) -> Result<HashSet<String>, String> {
    let rows = client.simple_query("SELECT id FROM acknowledged").await;
    let rows = rows.map_err(|error| format!("cannot read what is stored: {error:?}"))?;
    let id = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    };
    Ok(rows.into_iter().filter_map(id).collect())
}
