//! An admin console without a PgBouncer: as many of them as no machine could run for real.
//!
//! It knows what pgcm asks, in PgBouncer 1.24's words. `tests/pgbouncer.rs` has the real one.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    task::JoinHandle,
};

const SSL_REQUEST: i32 = 80_877_103;
/// No message of a console client is longer.
const LONGEST: usize = 64 * 1024;

/// A console of a PgBouncer whose clients, all together, are `waiting`.
pub struct FakeConsole {
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

struct State {
    file: PathBuf,
    /// Name and host, as of the last RELOAD.
    databases: Vec<(String, String)>,
    waiting: usize,
    paused: bool,
}

impl FakeConsole {
    /// Listens at `socket`; RELOAD reads the section `[databases]` of `file`.
    pub fn start(socket: &Path, file: PathBuf, waiting: usize) -> Self {
        let listener = UnixListener::bind(socket).expect("a socket");
        let state = State { file, databases: Vec::new(), waiting, paused: false };
        let state = Arc::new(Mutex::new(state));
        let task = tokio::spawn(serve(listener, Arc::clone(&state)));
        Self { state, task }
    }

    /// How many databases it has, if all of them are at `host`.
    pub fn databases_at(&self, host: &str) -> usize {
        let state = lock(&self.state);
        if state.databases.iter().all(|(_, at)| at == host) { state.databases.len() } else { 0 }
    }

    pub fn is_paused(&self) -> bool {
        lock(&self.state).paused
    }
}

impl Drop for FakeConsole {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("no panic while it is held")
}

async fn serve(listener: UnixListener, state: Arc<Mutex<State>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            // Clients leave as they like.
            let _ = session(stream, &state).await;
        });
    }
}

async fn session(mut stream: UnixStream, state: &Mutex<State>) -> io::Result<()> {
    loop {
        let startup = read_body(&mut stream).await?;
        if startup.get(..4) != Some(SSL_REQUEST.to_be_bytes().as_slice()) {
            break;
        }
        stream.write_all(b"N").await?;
    }
    let mut welcome = message(b'R', &0_i32.to_be_bytes());
    welcome.extend(ready());
    stream.write_all(&welcome).await?;
    loop {
        let kind = stream.read_u8().await?;
        let body = read_body(&mut stream).await?;
        if kind != b'Q' {
            return Ok(());
        }
        let command = String::from_utf8_lossy(&body);
        let mut reply = answer(command.trim_end_matches('\0'), state);
        reply.extend(ready());
        stream.write_all(&reply).await?;
    }
}

async fn read_body(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = usize::try_from(stream.read_i32().await?).unwrap_or(0);
    if !(4..LONGEST).contains(&length) {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).await?;
    Ok(body)
}

fn answer(command: &str, state: &Mutex<State>) -> Vec<u8> {
    let mut state = lock(state);
    match command {
        "PAUSE" if state.paused => error("already suspended/paused"),
        "RESUME" if !state.paused => error("pooler is not paused/suspended, it is not paused"),
        "PAUSE" | "RESUME" => {
            state.paused = command == "PAUSE";
            done(command)
        }
        "RELOAD" => {
            state.databases = read_databases(&state.file);
            done(command)
        }
        "SHOW STATE" => {
            let active = if state.paused { "no" } else { "yes" };
            rows(&["key", "value"], &[vec!["active".to_owned(), active.to_owned()]])
        }
        "SHOW VERSION" => rows(&["version"], &[vec!["PgBouncer 1.24.1".to_owned()]]),
        "SHOW CONFIG" => {
            let pair = |key: &str, value: &str| vec![key.to_owned(), value.to_owned()];
            let pairs = [pair("query_wait_timeout", "120"), pair("server_login_retry", "1")];
            rows(&["key", "value"], &pairs)
        }
        "SHOW DATABASES" => rows(
            &["name", "host", "port", "paused", "disabled"],
            &each(&state.databases, |(name, host)| {
                [name, host, "5432", "0", "0"].map(str::to_owned).to_vec()
            }),
        ),
        "SHOW POOLS" => {
            let waiting = if state.paused { state.waiting } else { 0 };
            let share = (waiting / state.databases.len().max(1)).to_string();
            rows(
                &["database", "user", "cl_waiting", "sv_active", "pool_mode"],
                &each(&state.databases, |(name, _)| {
                    [name, "app", &share, "0", "transaction"].map(str::to_owned).to_vec()
                }),
            )
        }
        other => error(&format!("invalid command '{other}'")),
    }
}

fn each(
    databases: &[(String, String)],
    row: impl Fn((&str, &str)) -> Vec<String>,
) -> Vec<Vec<String>> {
    databases.iter().map(|(name, host)| row((name, host))).collect()
}

/// Names and hosts of a section `[databases]`.
fn read_databases(file: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let section = text.lines().skip_while(|line| line.trim() != "[databases]").skip(1);
    let lines = section.take_while(|line| !line.starts_with('['));
    let pair = |line: &str| {
        let (name, settings) = line.split_once('=')?;
        let host = settings.split_whitespace().find_map(|word| word.strip_prefix("host="))?;
        Some((name.trim().to_owned(), host.to_owned()))
    };
    lines.filter_map(pair).collect()
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = i32::try_from(body.len() + 4).expect("a short message");
    let mut message = vec![kind];
    message.extend(length.to_be_bytes());
    message.extend(body);
    message
}

fn ready() -> Vec<u8> {
    message(b'Z', b"I")
}

fn done(tag: &str) -> Vec<u8> {
    message(b'C', format!("{tag}\0").as_bytes())
}

fn error(text: &str) -> Vec<u8> {
    message(b'E', format!("SERROR\0C08P01\0M{text}\0\0").as_bytes())
}

fn rows(columns: &[&str], values: &[Vec<String>]) -> Vec<u8> {
    const TEXT: i32 = 25;
    let count = i16::try_from(columns.len()).expect("few columns").to_be_bytes();
    let mut head = count.to_vec();
    for column in columns {
        head.extend(format!("{column}\0").bytes());
        // Table and column: none. Then type, size, modifier, and text as the format.
        head.extend(0_i32.to_be_bytes());
        head.extend(0_i16.to_be_bytes());
        head.extend(TEXT.to_be_bytes());
        head.extend((-1_i16).to_be_bytes());
        head.extend((-1_i32).to_be_bytes());
        head.extend(0_i16.to_be_bytes());
    }
    let mut reply = message(b'T', &head);
    for row in values {
        let mut body = count.to_vec();
        for value in row {
            body.extend(i32::try_from(value.len()).expect("a short value").to_be_bytes());
            body.extend(value.bytes());
        }
        reply.extend(message(b'D', &body));
    }
    reply.extend(done("SHOW"));
    reply
}
