//! Clients as applications are: they commit one row at a time through app01 and remember each
//! acknowledgement.

use std::{
    collections::HashSet,
    fmt,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgcm::edge::clock;
use tokio::{sync::watch, task::JoinHandle};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage, error::SqlState};

use super::cluster::Cluster;

const RETRY: Duration = Duration::from_millis(50);
const LOGIN_EVERY: Duration = Duration::from_millis(100);
/// A client that waits longer than this gives up and counts an error.
const PATIENCE: Duration = Duration::from_secs(30);

/// A commit that a client was told of.
#[derive(Debug)]
struct Acknowledged {
    id: String,
    at: Instant,
}

/// What the clients saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    acknowledged: Vec<Acknowledged>,
    pub(crate) logins: usize,
    pub(crate) errors: Vec<String>,
    pub(crate) longest_wait: Duration,
    /// The longest wait of each committing client.
    pub(crate) longest_waits: Vec<Duration>,
    pub(crate) longest_login: Duration,
}

impl Seen {
    fn note(&mut self, begun: Instant, outcome: Result<(), String>, good: impl FnOnce(&mut Self)) {
        let waited = begun.elapsed();
        self.longest_wait = self.longest_wait.max(waited);
        match outcome {
            Ok(()) => good(self),
            Err(error) => self.errors.push(error),
        }
    }

    /// When each commit was acknowledged, in no order.
    pub(crate) fn commits(&self) -> Vec<Instant> {
        self.acknowledged.iter().map(|commit| commit.at).collect()
    }

    /// The longest time in which nobody got a commit through.
    pub(crate) fn longest_gap(&self) -> Duration {
        let mut at = self.commits();
        at.sort_unstable();
        at.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// How many acknowledged rows are not in the database.
    pub(crate) async fn lost(&self, cluster: &Cluster) -> usize {
        let client = connect(cluster).await.unwrap();
        let rows = client.simple_query("SELECT id FROM acknowledged").await.unwrap();
        let stored: HashSet<&str> = rows.iter().filter_map(first_column).collect();
        self.acknowledged.iter().filter(|commit| !stored.contains(commit.id.as_str())).count()
    }
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} commits, {} logins, {} errors, longest wait {} ms",
            self.acknowledged.len(),
            self.logins,
            self.errors.len(),
            self.longest_wait.as_millis()
        )
    }
}

pub(crate) struct Load {
    seen: Arc<Mutex<Seen>>,
    stop: watch::Sender<bool>,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    /// Starts `count` clients that commit as fast as they can, and one that logs in again and again.
    pub(crate) async fn start(cluster: &Cluster, count: usize) -> Self {
        Self::start_paced(cluster, count, Duration::ZERO).await
    }

    /// Starts `count` clients that begin a commit every `pace`, if the one before is done, and one
    /// that logs in again and again.
    pub(crate) async fn start_paced(cluster: &Cluster, count: usize, pace: Duration) -> Self {
        let setup = connect(cluster).await.unwrap();
        setup
            .simple_query("CREATE TABLE IF NOT EXISTS acknowledged (id text PRIMARY KEY)")
            .await
            .unwrap();
        let longest_waits = vec![Duration::ZERO; count];
        let seen = Arc::new(Mutex::new(Seen { longest_waits, ..Seen::default() }));
        let (stop, stopped) = watch::channel(false);
        let address = cluster.address("app01").await;
        let run = clock::unix_ms();
        let mut clients = Vec::new();
        let every = pace / u32::try_from(count.max(1)).unwrap();
        for number in 0..count {
            let client = Committer {
                number,
                address: address.clone(),
                name: format!("{run}-{number}"),
                pace,
                // Spread, so that they do not all come at once.
                first: every * u32::try_from(number).unwrap(),
            };
            clients.push(tokio::spawn(client.run(seen.clone(), stopped.clone())));
        }
        clients.push(tokio::spawn(logins(address, seen.clone(), stopped)));
        Self { seen, stop, clients }
    }

    /// Waits for fresh commits, which must come within a second or two.
    pub(crate) async fn flows(&self) {
        self.flows_again(Duration::from_secs(5)).await;
    }

    /// Waits at most `limit` until commits get through again.
    pub(crate) async fn flows_again(&self, limit: Duration) {
        let begun = Instant::now();
        // Commits acknowledged in the instant before count for what was, not for what is.
        tokio::time::sleep(RETRY).await;
        let before = self.commits();
        while self.commits() < before + 50 {
            assert!(begun.elapsed() < limit, "no commits within {limit:?}");
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Waits at most `limit` until each client has committed, and forgets all waits so far: from now
    /// on none is about connecting.
    pub(crate) async fn every_client_commits(&self, limit: Duration) {
        let begun = Instant::now();
        let waits = || self.seen.lock().unwrap().longest_waits.contains(&Duration::ZERO);
        while waits() {
            assert!(begun.elapsed() < limit, "not every client commits within {limit:?}");
            tokio::time::sleep(RETRY).await;
        }
        let mut seen = self.seen.lock().unwrap();
        seen.longest_waits.fill(Duration::ZERO);
        (seen.longest_wait, seen.longest_login) = (Duration::ZERO, Duration::ZERO);
    }

    fn commits(&self) -> usize {
        self.seen.lock().unwrap().acknowledged.len()
    }

    pub(crate) async fn stop(self) -> Seen {
        self.stop.send(true).unwrap();
        for client in self.clients {
            client.await.unwrap();
        }
        std::mem::take(&mut *self.seen.lock().unwrap())
    }
}

/// A client that commits one row after the other.
struct Committer {
    number: usize,
    address: String,
    name: String,
    pace: Duration,
    first: Duration,
}

impl Committer {
    async fn run(self, seen: Arc<Mutex<Seen>>, stopped: watch::Receiver<bool>) {
        tokio::time::sleep(self.first).await;
        let mut client = None;
        let mut number = 0_u64;
        while !*stopped.borrow() {
            number += 1;
            let id = format!("{}-{number}", self.name);
            let begun = Instant::now();
            let committed = commit(&mut client, &self.address, &id).await;
            let failed = committed.is_err();
            let at = Instant::now();
            {
                let mut seen = seen.lock().unwrap();
                let longest = &mut seen.longest_waits[self.number];
                *longest = (*longest).max(at - begun);
                seen.note(begun, committed, |seen| {
                    seen.acknowledged.push(Acknowledged { id, at });
                });
            }
            if failed {
                client = None;
                tokio::time::sleep(RETRY).await;
            }
            tokio::time::sleep(self.pace.saturating_sub(begun.elapsed())).await;
        }
    }
}

async fn commit(client: &mut Option<Client>, address: &str, id: &str) -> Result<(), String> {
    let work = async {
        if client.is_none() {
            *client = Some(connect_to(address).await?);
        }
        let insert = format!("INSERT INTO acknowledged VALUES ('{id}')");
        client.as_ref().unwrap().simple_query(&insert).await.map(|_| ())
    };
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(|error| format!("commit: {error:?}")),
        Err(_) => Err(format!("commit: no answer within {PATIENCE:?}")),
    }
}

async fn logins(address: String, seen: Arc<Mutex<Seen>>, stopped: watch::Receiver<bool>) {
    while !*stopped.borrow() {
        let begun = Instant::now();
        let work = async { connect_to(&address).await?.simple_query("SELECT 1").await };
        let served = match tokio::time::timeout(PATIENCE, work).await {
            Ok(done) => done.map(|_| ()).map_err(|error| format!("login: {error:?}")),
            Err(_) => Err(format!("login: no answer within {PATIENCE:?}")),
        };
        {
            let mut seen = seen.lock().unwrap();
            seen.longest_login = seen.longest_login.max(begun.elapsed());
            seen.note(begun, served, |seen| seen.logins += 1);
        }
        tokio::time::sleep(LOGIN_EVERY).await;
    }
}

async fn connect(cluster: &Cluster) -> Result<Client, tokio_postgres::Error> {
    connect_to(&cluster.address("app01").await).await
}

async fn connect_to(address: &str) -> Result<Client, tokio_postgres::Error> {
    connect_to_port(address, 6432).await
}

async fn connect_to_port(address: &str, port: u16) -> Result<Client, tokio_postgres::Error> {
    let conninfo =
        format!("host={address} port={port} user=app password=app dbname=app connect_timeout=30");
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await?;
    tokio::spawn(async move {
        // The client reports what broke.
        let _ = connection.await;
    });
    Ok(client)
}

fn first_column(message: &SimpleQueryMessage) -> Option<&str> {
    match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    }
}

/// A transaction that is held open.
pub(crate) struct Transaction {
    client: Client,
    /// PID of its Postgres backend.
    pub(crate) pid: i32,
}

impl Transaction {
    pub(crate) async fn open(cluster: &Cluster) -> Self {
        let client = connect(cluster).await.unwrap();
        client.simple_query("BEGIN").await.unwrap();
        let rows = client.simple_query("SELECT pg_backend_pid()").await.unwrap();
        let pid = rows.iter().find_map(first_column).unwrap().parse().unwrap();
        client.simple_query("CREATE TEMP TABLE held (x int) ON COMMIT DROP").await.unwrap();
        Self { client, pid }
    }

    pub(crate) async fn commit(self) {
        self.client.simple_query("COMMIT").await.unwrap();
    }
}

/// Connections to the primary's Postgres itself, as many as it takes from people who are no superusers.
pub(crate) struct Crowd {
    clients: Vec<Client>,
    address: String,
    /// PID of one of their backends.
    pub(crate) pid: i32,
}

impl Crowd {
    pub(crate) async fn take_all_slots(cluster: &Cluster) -> Self {
        let address = cluster.published_primary().await;
        let first = past_the_pool(&address).await.unwrap();
        let rows = first.simple_query("SELECT pg_backend_pid()").await.unwrap();
        let pid = rows.iter().find_map(first_column).unwrap().parse().unwrap();
        let mut clients = vec![first];
        while let Ok(client) = past_the_pool(&address).await {
            clients.push(client);
            assert!(clients.len() < 1000, "the server takes any number of connections");
        }
        Self { clients, address, pid }
    }

    /// Whether one more would be refused, and none of them was thrown out.
    pub(crate) async fn is_full(&self) -> bool {
        let thrown_out = self.clients.iter().any(Client::is_closed);
        let refused = past_the_pool(&self.address).await.err();
        let state = refused.as_ref().and_then(tokio_postgres::Error::code);
        !thrown_out && state == Some(&SqlState::TOO_MANY_CONNECTIONS)
    }
}

async fn past_the_pool(address: &str) -> Result<Client, tokio_postgres::Error> {
    connect_to_port(address, 5432).await
}
