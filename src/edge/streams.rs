//! stdout and stderr of this process.
//!
//! Whoever reads them may have gone (`pgcm history | head`, a terminal that hung up), or the disk behind them may
//! be full. Neither may end what runs: `print!` and `eprintln!` panic then.

use std::{
    fmt::Display,
    io::{self, Write},
};

/// Writes all of `text` to stdout.
pub fn out(text: impl Display) -> io::Result<()> {
    let text = text.to_string();
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// Writes `line` to stderr, if that can be done: there is nobody else to tell.
pub fn aside(line: impl Display) {
    let line = format!("{line}\n");
    let _ = io::stderr().lock().write_all(line.as_bytes());
}
