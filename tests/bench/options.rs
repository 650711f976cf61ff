//! What `make bench` was told, by its environment, and where its results go.

use std::{env, fs, path::PathBuf, time::Duration};

use crate::{
    markdown,
    results::{Growth, Results},
    svg,
};

/// How many clients commit, and how often each.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LoadProfile {
    pub(crate) clients: usize,
    /// Each client begins a commit this often: the clients must not take the cores from the cluster.
    pub(crate) pace: Duration,
}

pub(crate) const LOADS: [LoadProfile; 2] = [
    LoadProfile { clients: 8, pace: Duration::from_millis(10) },
    LoadProfile { clients: 200, pace: Duration::from_millis(250) },
];

pub(crate) struct Options {
    /// Failovers for each load.
    pub(crate) rounds: usize,
    docs: bool,
}

impl Options {
    /// # Errors
    /// The variable that makes no sense, and what it takes.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let rounds = match env::var("N") {
            Ok(text) if !text.is_empty() => match text.parse() {
                Ok(rounds) if rounds > 0 => rounds,
                _ => return Err(format!("N takes a number above 0, not '{text}'")),
            },
            _ => 20,
        };
        Ok(Self { rounds, docs: env::var("DOCS").is_ok_and(|docs| !docs.is_empty()) })
    }

    /// What the growth measurement left behind, if it was run.
    pub(crate) fn growth(&self) -> Vec<Growth> {
        match fs::read_to_string(directory().join("growth.json")) {
            Ok(text) if !text.trim().is_empty() => serde_json::from_str(&text).unwrap(),
            _ => Vec::new(),
        }
    }

    /// Prints the tables, and writes JSON and picture; on demand the page of the documentation.
    pub(crate) fn keep(&self, results: &Results) {
        fs::create_dir_all(directory()).unwrap();
        let json = directory().join("failover.json");
        fs::write(&json, serde_json::to_string_pretty(results).unwrap()).unwrap();
        let picture = svg::picture(results.first());
        fs::write(directory().join("failover.svg"), &picture).unwrap();
        println!("\n{}", markdown::tables(results));
        println!("JSON: {}", json.display());
        if self.docs {
            let docs = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs");
            fs::write(docs.join("performance.svg"), picture).unwrap();
            fs::write(docs.join("performance.md"), markdown::page(results)).unwrap();
        }
    }
}

fn directory() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/target/bench"))
}
