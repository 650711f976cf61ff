//! What the server wrote into its log since a moment.

use std::{
    fs,
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
};

use crate::model::agent::server_log::why_ended;

/// How much of the end of a log is read.
const TAIL_BYTES: u64 = 64 << 10;

/// Where the server logs, and how much was there at one moment.
#[derive(Debug, Clone)]
pub struct ServerLog {
    pgdata: PathBuf,
    /// Takes what the server prints before its own logging begins, or all of it.
    output: PathBuf,
    lengths: Vec<(PathBuf, u64)>,
}

impl ServerLog {
    /// Remembers how long the logs are now.
    pub fn mark(pgdata: &Path, output: &Path) -> Self {
        let log =
            Self { pgdata: pgdata.to_owned(), output: output.to_owned(), lengths: Vec::new() };
        let length = |path: PathBuf| {
            let length = fs::metadata(&path).map_or(0, |found| found.len());
            (path, length)
        };
        let lengths = log.places().into_iter().map(length).collect();
        Self { lengths, ..log }
    }

    /// The file to look into: the server's own where it has one.
    pub fn place(&self) -> PathBuf {
        self.places().swap_remove(0)
    }

    /// Why the server ended, from what it wrote since the mark; `None` where it logs elsewhere, or gives
    /// no reason.
    pub fn why_ended(&self) -> Option<String> {
        self.places().iter().find_map(|path| {
            let known = self.lengths.iter().find(|(known, _)| known == path);
            why_ended(&since(path, known.map_or(0, |(_, length)| *length)).ok()?)
        })
    }

    /// The file of the server's logging collector, as it says itself, then its plain output.
    fn places(&self) -> Vec<PathBuf> {
        let named = fs::read_to_string(self.pgdata.join("current_logfiles")).unwrap_or_default();
        let collected = named.lines().find_map(|line| line.strip_prefix("stderr "));
        let collected = collected.map(|path| self.pgdata.join(path.trim()));
        collected.into_iter().chain([self.output.clone()]).collect()
    }
}

/// The end of a file that was `length` bytes long before, or was replaced since.
fn since(path: &Path, length: u64) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Ok(String::new());
    }
    let from = if length <= found.len() { length } else { 0 };
    file.seek(SeekFrom::Start(from.max(found.len().saturating_sub(TAIL_BYTES))))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_collectors_file_is_found_and_only_its_new_lines_count() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("log")).expect("created");
        fs::write(path("current_logfiles"), "stderr log/server.log\n").expect("written");
        fs::write(path("log/server.log"), "[1] FATAL:  of old\n").expect("written");
        let log = ServerLog::mark(dir.path(), Path::new("/dev/null"));
        assert_eq!(log.place(), path("log/server.log"));
        assert_eq!(log.why_ended(), None);
        let text = fs::read_to_string(path("log/server.log")).expect("there");
        fs::write(path("log/server.log"), format!("{text}[2] FATAL:  of now\n")).expect("written");
        assert_eq!(log.why_ended().as_deref(), Some("of now"));
        // One that begins anew with this start.
        fs::write(path("current_logfiles"), "stderr log/later.log\n").expect("written");
        fs::write(path("log/later.log"), "[3] PANIC:  of later\n").expect("written");
        assert_eq!(log.why_ended().as_deref(), Some("of later"));
    }

    #[test]
    fn a_server_without_a_collector_is_heard_through_its_output() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let output = dir.path().join("output");
        let log = ServerLog::mark(dir.path(), &output);
        fs::write(&output, "[1] FATAL:  data directory has wrong ownership\n").expect("written");
        assert_eq!(log.why_ended().as_deref(), Some("data directory has wrong ownership"));
    }
}
