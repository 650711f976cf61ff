//! The logger: key=value on a terminal, JSON otherwise, always to stderr.
//!
//! What cannot be written (a full disk, a terminal that hung up, a journal that went away or hangs) is dropped: a
//! line of the log must neither end nor hold up what it tells of.

use std::{
    io::{self, IsTerminal},
    sync::Mutex,
};

use slog::{Drain, Level, LevelFilter, Logger, o};

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// key=value when stderr is a terminal, JSON otherwise.
    Auto,
    Text,
    Json,
}

/// Builds the logger of records of `level` and above. `to` is stderr, and must not keep who writes waiting.
pub fn logger(to: impl io::Write + Send + 'static, format: Format, level: Level) -> Logger {
    let text = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Text => true,
        Format::Json => false,
    };
    if text {
        let decorator = slog_term::PlainDecorator::new(to);
        let drain = slog_term::FullFormat::new(decorator).build().ignore_res();
        Logger::root(Mutex::new(LevelFilter::new(drain, level)).ignore_res(), o!())
    } else {
        let drain = slog_json::Json::default(to).ignore_res();
        Logger::root(Mutex::new(LevelFilter::new(drain, level)).ignore_res(), o!())
    }
}

/// A logger that drops everything, for tests.
pub fn discard() -> Logger {
    Logger::root(slog::Discard, o!())
}
