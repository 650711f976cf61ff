//! What `make faults` was told, by its environment.

use std::{env, path::PathBuf, str::FromStr, time::Duration};

use crate::plan::Kind;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Sync,
    Quorum,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Sync => "sync",
            Self::Quorum => "quorum",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    /// One to begin with; of several, each is one round.
    pub(crate) seeds: Vec<u32>,
    pub(crate) mode: Mode,
    pub(crate) kinds: Vec<Kind>,
    /// No round begins after this time.
    pub(crate) length: Option<Duration>,
    /// Losses are what the campaign is to find: pgcm was built with a fault of its own.
    pub(crate) broken: bool,
    /// Where the results go.
    pub(crate) directory: PathBuf,
}

impl Options {
    /// # Errors
    /// The variable that makes no sense, and what it takes.
    pub(crate) fn from_environment() -> Result<Self, String> {
        let faults = env::var("FAULTS").unwrap_or_default();
        let mode = match env::var("PGCM_MODE").unwrap_or_default().as_str() {
            "" | "sync" => Mode::Sync,
            "quorum" => Mode::Quorum,
            other => return Err(format!("PGCM_MODE takes sync or quorum, not '{other}'")),
        };
        let length = given::<humantime::Duration>("LENGTH", "a duration such as 30m")?;
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/target/faults");
        Ok(Self {
            rounds: given("ROUNDS", "a number")?.unwrap_or(60),
            seeds: seeds()?,
            mode,
            kinds: Kind::named(&faults.split_whitespace().collect::<Vec<_>>())?,
            length: length.map(Into::into),
            broken: env::var("BROKEN").is_ok_and(|broken| !broken.is_empty()),
            directory: PathBuf::from(directory),
        })
    }
}

fn seeds() -> Result<Vec<u32>, String> {
    let text = env::var("SEED").unwrap_or_default();
    let number = |word: &str| {
        word.parse().map_err(|_| format!("SEED takes numbers below 4294967296, not '{word}'"))
    };
    let seeds = text.split_whitespace().map(number).collect::<Result<Vec<u32>, _>>()?;
    Ok(if seeds.is_empty() { vec![1] } else { seeds })
}

fn given<T: FromStr>(name: &str, takes: &str) -> Result<Option<T>, String> {
    match env::var(name) {
        Ok(text) if !text.is_empty() => {
            text.parse().map(Some).map_err(|_| format!("{name} takes {takes}, not '{text}'"))
        }
        _ => Ok(None),
    }
}
