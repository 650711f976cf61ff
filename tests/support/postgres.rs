//! A real Postgres, listening on 127.0.0.1 and 127.0.0.2.

use std::{path::Path, time::Duration};

use nix::sys::signal::Signal;

use super::{
    eventually, free_port,
    process::{Process, directory, postgres_binary},
};

pub struct Postgres {
    _process: Process,
    dir: tempfile::TempDir,
    pub port: u16,
}

/// Makes a cluster and starts it; anybody may log in.
pub async fn start_postgres() -> Postgres {
    let (dir, port) = (directory(), free_port());
    let data = dir.path().join("data");
    let data = data.to_str().expect("UTF-8");
    let args = ["-D", data, "-A", "trust", "-U", "postgres", "--no-sync", "--no-locale"];
    let initdb = postgres_binary("initdb");
    Process::start(&initdb, &args, &dir.path().join("initdb.log"), true).finish("initdb");
    let sockets = dir.path().to_str().expect("UTF-8");
    let port_text = port.to_string();
    let args = ["-D", data, "-p", &port_text, "-k", sockets, "-h", "127.0.0.1,127.0.0.2", "-F"];
    let log: &Path = &dir.path().join("log");
    let process = Process::start(&postgres_binary("postgres"), &args, log, true);
    let postgres = Postgres { _process: process.ending_with(Signal::SIGQUIT), dir, port };
    eventually(Duration::from_secs(20), "Postgres answers", || async {
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
