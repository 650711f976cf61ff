//! A real Postgres, listening on 127.0.0.1 and 127.0.0.2.

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;

use super::{
    eventually, free_port,
    process::{Process, directory, postgres_binary},
};

pub struct Postgres {
    process: Process,
    dir: tempfile::TempDir,
    pub port: u16,
}

/// Makes a cluster and starts it; anybody may log in.
pub async fn start_postgres() -> Postgres {
    start_postgres_with(directory(), &[]).await
}

/// The same in `dir`, which user postgres owns, with `settings` such as `wal_level=logical`.
pub async fn start_postgres_with(dir: tempfile::TempDir, settings: &[&str]) -> Postgres {
    let data = dir.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let args = ["-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-locale"];
    let initdb = postgres_binary("initdb");
    Process::start(&initdb, &args, &dir.path().join("initdb.log"), true).finish("initdb");
    serve(dir, settings).await
}

/// A standby of `primary` that calls itself `name`.
pub async fn start_standby(primary: &Postgres, name: &str) -> Postgres {
    let dir = directory();
    let data = dir.path().join("data");
    let source =
        format!("host=127.0.0.1 port={} user=postgres application_name={name}", primary.port);
    let args = ["-D", data.to_str().expect("UTF-8"), "-d", &source, "-R", "-c", "fast"];
    let log = dir.path().join("backup.log");
    Process::start(&postgres_binary("pg_basebackup"), &args, &log, true).finish("pg_basebackup");
    serve(dir, &[]).await
}

/// Starts what is in the directory `data` below `dir`.
async fn serve(dir: tempfile::TempDir, settings: &[&str]) -> Postgres {
    let (data, port) = (dir.path().join("data"), free_port());
    let sockets = dir.path().to_str().expect("UTF-8");
    let port_text = port.to_string();
    let data = data.to_str().expect("UTF-8");
    let mut args =
        vec!["-D", data, "-p", &port_text, "-k", sockets, "-h", "127.0.0.1,127.0.0.2", "-F"];
    settings.iter().for_each(|setting| args.extend(["-c", setting]));
    let log: &Path = &dir.path().join("log");
    let process = Process::start(&postgres_binary("postgres"), &args, log, true);
    let postgres = Postgres { process: process.ending_with(Signal::SIGQUIT), dir, port };
    eventually(Duration::from_secs(20), "Postgres answers", || async {
        postgres.process.assert_runs();
        connect(postgres.port, "postgres").await.is_ok()
    })
    .await;
    postgres
}

impl Postgres {
    /// Where its Unix socket is.
    pub fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    /// Sends `signal` to the postmaster.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }
}

/// A client of whatever listens on `port`. Use `simple_query`: a pooler may stand in between.
pub async fn connect(
    port: u16,
    database: &str,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(port).user("postgres").dbname(database);
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// The only value of the only row.
pub async fn value(client: &tokio_postgres::Client, query: &str) -> String {
    let rows = client.simple_query(query).await.unwrap_or_else(|error| panic!("{query}: {error}"));
    rows.iter()
        .find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
        .unwrap_or_else(|| panic!("{query}: no value"))
}
