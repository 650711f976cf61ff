//! Clients that append to sequences of their own and remember each acknowledgement.
//!
//! Most write through app01's PgBouncer, as applications do. One more for each node writes to that
//! node's Postgres past any pool: it sees what a primary accepts that nobody should reach any more.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use tokio::{sync::watch, task::JoinHandle};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::{
    docker::cluster::{Cluster, NODES},
    verdict::{Acknowledgement, Key, Write},
};

/// Between two commits of one client: enough to see a stall of a few hundredths of a second.
const PACE: Duration = Duration::from_millis(15);
const RETRY: Duration = Duration::from_millis(100);
/// An application without limits of its own.
const PATIENT: Duration = Duration::from_secs(30);
/// An application that gives up, connects anew and tries again.
const IMPATIENT: Duration = Duration::from_secs(5);
const POOL_PORT: u16 = 6432;
const POSTGRES_PORT: u16 = 5432;

/// How one client behaves.
#[derive(Clone)]
struct Habit {
    writer: String,
    host: String,
    port: u16,
    patience: Duration,
    /// Connects anew for each commit.
    restless: bool,
}

impl Habit {
    fn pooled(&self) -> bool {
        self.port == POOL_PORT
    }
}

pub(crate) struct Ledger {
    writes: Arc<Mutex<Vec<Write>>>,
    stop: watch::Sender<bool>,
    writers: Vec<JoinHandle<()>>,
    clock: Instant,
}

impl Ledger {
    /// Starts the clients of one round. Times count from `clock`; `name` sets the round's writers
    /// apart from all others.
    ///
    /// # Errors
    /// The table cannot be made.
    pub(crate) async fn start(
        cluster: &Cluster,
        clock: Instant,
        name: &str,
    ) -> Result<Self, String> {
        let pool = cluster.address("app01").await;
        make_table(&pool).await?;
        let habit = |writer: &str, host: &str, port, patience| Habit {
            writer: format!("{name}-{writer}"),
            host: host.to_owned(),
            port,
            patience,
            restless: false,
        };
        let mut habits = vec![
            habit("patient1", &pool, POOL_PORT, PATIENT),
            habit("patient2", &pool, POOL_PORT, PATIENT),
            habit("impatient1", &pool, POOL_PORT, IMPATIENT),
            habit("impatient2", &pool, POOL_PORT, IMPATIENT),
            Habit { restless: true, ..habit("restless", &pool, POOL_PORT, IMPATIENT) },
        ];
        for node in NODES {
            let address = cluster.address(node).await;
            habits.push(habit(&format!("past-{node}"), &address, POSTGRES_PORT, IMPATIENT));
        }
        let writes = Arc::new(Mutex::new(Vec::new()));
        let (stop, stopped) = watch::channel(false);
        let write = |habit| append(habit, clock, writes.clone(), stopped.clone());
        let writers = habits.into_iter().map(|habit| tokio::spawn(write(habit))).collect();
        Ok(Self { writes, stop, writers, clock })
    }

    /// Waits at most `limit` until commits get through the pool that were begun after the call.
    ///
    /// # Errors
    /// None did.
    pub(crate) async fn flows(&self, limit: Duration) -> Result<(), String> {
        let from = self.clock.elapsed();
        let deadline = Instant::now() + limit;
        while self.commits_since(from) < 20 {
            if Instant::now() >= deadline {
                return Err(format!("no commits get through within {limit:?}"));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Waits until nothing has been acknowledged for a while and then something is again; at most
    /// `limit`, since nothing may ever stall.
    pub(crate) async fn stalls_and_flows(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut last = (self.commits_since(Duration::ZERO), Instant::now());
        let mut stalled = false;
        while Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let commits = self.commits_since(Duration::ZERO);
            if commits > last.0 {
                if stalled {
                    return;
                }
                last = (commits, Instant::now());
            } else if last.1.elapsed() > Duration::from_millis(1_000) {
                stalled = true;
            }
        }
    }

    fn commits_since(&self, from: Duration) -> usize {
        let writes = self.writes.lock().unwrap();
        let fresh = writes.iter().rev().take_while(|write| write.ended >= from);
        fresh.filter(|w| w.pooled && w.begun >= from && w.acknowledged.is_some()).count()
    }

    /// Ends the clients; what they are still waiting for stays unknown.
    pub(crate) async fn stop(self) -> Vec<Write> {
        // Nobody listens when every client has ended by itself.
        let _ = self.stop.send(true);
        for writer in self.writers {
            // A client that panicked has left what it saw until then.
            let _ = writer.await;
        }
        std::mem::take(&mut *self.writes.lock().unwrap())
    }
}

/// The rows of all writers whose names begin with `name`.
///
/// # Errors
/// No primary answers within `limit`.
pub(crate) async fn stored(
    cluster: &Cluster,
    name: &str,
    limit: Duration,
) -> Result<HashSet<Key>, String> {
    let pool = cluster.address("app01").await;
    let query = format!("SELECT writer, number FROM ledger WHERE starts_with(writer, '{name}-')");
    let deadline = Instant::now() + limit;
    loop {
        let read = async {
            let client = connect(&pool, POOL_PORT).await?;
            let rows = client.simple_query(&query).await;
            rows.map_err(|error| format!("{error:?}"))
        };
        let why = match tokio::time::timeout(PATIENT, read).await {
            Ok(Ok(rows)) => return Ok(rows.iter().filter_map(key).collect()),
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {PATIENT:?}"),
        };
        if Instant::now() >= deadline {
            return Err(format!("the table cannot be read: {why}"));
        }
        tokio::time::sleep(RETRY).await;
    }
}

fn key(message: &SimpleQueryMessage) -> Option<Key> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some((row.get(0)?.to_owned(), row.get(1)?.parse().ok()?))
}

async fn make_table(pool: &str) -> Result<(), String> {
    let table = "CREATE TABLE IF NOT EXISTS ledger
        (writer text, number bigint, PRIMARY KEY (writer, number))";
    let client = connect(pool, POOL_PORT).await?;
    let made = client.simple_query(table).await;
    made.map(drop).map_err(|error| format!("cannot make the table: {error:?}"))
}

/// Appends 1, 2, 3 … until told to stop. A number whose commit was not acknowledged is not tried
/// again: it may be there.
async fn append(
    habit: Habit,
    clock: Instant,
    writes: Arc<Mutex<Vec<Write>>>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut connection = None;
    let mut number = 0;
    while !*stopped.borrow() {
        number += 1;
        let begun = clock.elapsed();
        let outcome = tokio::select! {
            outcome = commit(&mut connection, &habit, number) => outcome,
            // An error as well: the sender is gone.
            _ = stopped.wait_for(|stop| *stop) => Err("stopped".to_owned()),
        };
        let failed = outcome.is_err();
        let write = Write {
            key: (habit.writer.clone(), number),
            pooled: habit.pooled(),
            begun,
            ended: clock.elapsed(),
            acknowledged: outcome.ok(),
        };
        writes.lock().unwrap().push(write);
        if failed || habit.restless {
            connection = None;
        }
        tokio::time::sleep(if failed { RETRY } else { PACE }).await;
    }
}

async fn commit(
    connection: &mut Option<Client>,
    habit: &Habit,
    number: u64,
) -> Result<Acknowledgement, String> {
    let writer = &habit.writer;
    let insert = format!(
        "INSERT INTO ledger VALUES ('{writer}', {number}) RETURNING
            (SELECT coalesce(max(number), 0) FROM ledger WHERE writer = '{writer}'),
            current_setting('cluster_name'), pg_walfile_name(pg_current_wal_lsn())"
    );
    let work = async {
        if connection.is_none() {
            *connection = Some(connect(&habit.host, habit.port).await?);
        }
        let Some(client) = connection else { return Err("not connected".to_owned()) };
        // The answer is complete only after the commit.
        let rows = client.simple_query(&insert).await.map_err(|error| format!("{error:?}"))?;
        rows.iter().find_map(acknowledgement).ok_or_else(|| "no row came back".to_owned())
    };
    let limit = tokio::time::timeout(habit.patience, work);
    limit.await.unwrap_or_else(|_| Err(format!("no answer within {:?}", habit.patience)))
}

fn acknowledgement(message: &SimpleQueryMessage) -> Option<Acknowledgement> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    Some(Acknowledgement {
        saw: row.get(0)?.parse().ok()?,
        node: row.get(1)?.to_owned(),
        timeline: u32::from_str_radix(row.get(2)?.get(..8)?, 16).ok()?,
    })
}

async fn connect(host: &str, port: u16) -> Result<Client, String> {
    let conninfo =
        format!("host={host} port={port} user=app password=app dbname=app connect_timeout=5");
    let connected = tokio_postgres::connect(&conninfo, NoTls).await;
    let (client, connection) = connected.map_err(|error| format!("{error:?}"))?;
    tokio::spawn(async move {
        // The client reports what broke.
        let _ = connection.await;
    });
    Ok(client)
}
