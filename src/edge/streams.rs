//! stdout and stderr of this process.
//!
//! Whoever reads them may have gone (`pgcm history | head`, a terminal that hung up), or the disk behind them may
//! be full. Neither may end what runs: `print!` and `eprintln!` panic then. Or the reader stands still (a journal that
//! hangs, a terminal after Ctrl-S): what runs must not wait for it, while clients are held.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::{
        OnceLock,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

/// So many pieces wait for the reader of stderr; more are dropped.
const BACKLOG: usize = 4096;
/// Bounds the wait for the reader when the process ends.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Writes all of `text` to stdout.
pub fn out(text: impl Display) -> io::Result<()> {
    let text = text.to_string();
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
}

/// Writes `line` to stderr, if that can be done: there is nobody else to tell.
pub fn aside(line: impl Display) {
    stderr().queue(format!("{line}\n").into_bytes());
}

/// What is written to stderr by a thread of its own.
pub fn stderr() -> Patient {
    static STDERR: OnceLock<SyncSender<Piece>> = OnceLock::new();
    let pieces = STDERR.get_or_init(|| written_by_a_thread(io::stderr()));
    Patient { pieces: pieces.clone(), line: Vec::new() }
}

enum Piece {
    Text(Vec<u8>),
    /// Answered once all that came before is written.
    Mark(SyncSender<()>),
}

/// Never waits for the reader, and never fails. Whole lines are passed on, or, once too many wait, dropped.
pub struct Patient {
    pieces: SyncSender<Piece>,
    line: Vec<u8>,
}

impl Patient {
    fn queue(&self, text: Vec<u8>) {
        let _ = self.pieces.try_send(Piece::Text(text));
    }

    /// Passes on `text`, which need not end a line.
    pub fn show(&self, text: &str) {
        self.queue(text.as_bytes().to_vec());
    }

    /// Waits for a moment until all that was passed on is written: before the process ends.
    pub fn last_words(&self) {
        let (done, written) = sync_channel(1);
        if self.pieces.try_send(Piece::Mark(done)).is_ok() {
            let _ = written.recv_timeout(LAST_WORDS);
        }
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        if self.line.ends_with(b"\n") {
            let line = std::mem::take(&mut self.line);
            self.queue(line);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn written_by_a_thread(to: impl Write + Send + 'static) -> SyncSender<Piece> {
    let (pieces, waiting) = sync_channel(BACKLOG);
    thread::spawn(move || write_all(to, &waiting));
    pieces
}

fn write_all(mut to: impl Write, waiting: &Receiver<Piece>) {
    for piece in waiting {
        match piece {
            Piece::Text(text) => {
                let _ = to.write_all(&text);
            }
            Piece::Mark(done) => {
                let _ = done.try_send(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A reader that stands still.
    struct Still;

    impl Write for Still {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            loop {
                thread::park();
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stands_still_keeps_nobody() {
        let began = Instant::now();
        let mut patient = Patient { pieces: written_by_a_thread(Still), line: Vec::new() };
        for number in 0..2 * BACKLOG {
            writeln!(patient, "line {number}").expect("it never fails");
        }
        patient.last_words();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn lines_are_passed_on_whole_and_in_order() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut patient = Patient { pieces: written_by_a_thread(writer), line: Vec::new() };
        patient.write_all(b"{\"half\": ").expect("it never fails");
        patient.show("between\n");
        patient.write_all(b"1}\n").expect("it never fails");
        patient.last_words();
        drop(patient);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).expect("readable");
        assert_eq!(text, "between\n{\"half\": 1}\n");
    }
}
