//! stdout and stderr of this process.
//!
//! Whoever reads them may have gone (`pgcm history | head`, a terminal that hung up), or the disk behind them may
//! be full. Neither may end what runs: `print!` and `eprintln!` panic then. Or the reader stands still (a journal that
//! hangs, a terminal after Ctrl-S): what runs must not wait for it, while clients are held.

use std::{
    fmt::Display,
    io::{self, Write},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// So many pieces wait for the reader of stderr; more are dropped.
const BACKLOG: usize = 4096;
/// Bounds the wait for the reader when the process ends.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// Between two looks whether there is room again.
const ROOM: Duration = Duration::from_millis(10);

/// Writes all of `text` to stdout, after what stderr was told before: both may be one terminal.
pub fn out(text: impl Display) -> io::Result<()> {
    stderr().last_words();
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
    static STDERR: OnceLock<Patient> = OnceLock::new();
    STDERR.get_or_init(|| Patient::before(io::stderr())).again()
}

enum Piece {
    Text(Vec<u8>),
    /// Answered once all that came before is written.
    Mark(SyncSender<()>),
}

/// Never waits for the reader, and never fails. Whole lines are passed on, or, once too many wait, dropped and counted.
pub struct Patient {
    pieces: SyncSender<Piece>,
    dropped: Arc<AtomicUsize>,
    line: Vec<u8>,
}

impl Patient {
    /// Starts the thread that writes to `to`.
    fn before(to: impl Write + Send + 'static) -> Self {
        let (pieces, waiting) = sync_channel(BACKLOG);
        let dropped = Arc::<AtomicUsize>::default();
        let count = Arc::clone(&dropped);
        thread::spawn(move || write_all(to, &waiting, &count));
        Self { pieces, dropped, line: Vec::new() }
    }

    fn again(&self) -> Self {
        Self { pieces: self.pieces.clone(), dropped: Arc::clone(&self.dropped), line: Vec::new() }
    }

    fn queue(&self, text: Vec<u8>) {
        if self.pieces.try_send(Piece::Text(text)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Passes on `text`, which need not end a line.
    pub fn show(&self, text: &str) {
        self.queue(text.as_bytes().to_vec());
    }

    /// Waits for a moment until all that was passed on is written: before the process ends.
    pub fn last_words(&self) {
        let until = Instant::now() + LAST_WORDS;
        let (done, written) = sync_channel(1);
        let mut mark = Piece::Mark(done);
        while let Err(TrySendError::Full(back)) = self.pieces.try_send(mark) {
            if Instant::now() >= until {
                return;
            }
            mark = back;
            thread::sleep(ROOM);
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
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

fn write_all(mut to: impl Write, waiting: &Receiver<Piece>, dropped: &AtomicUsize) {
    for piece in waiting {
        match piece {
            Piece::Text(text) => {
                let _ = to.write_all(&text);
            }
            Piece::Mark(done) => {
                let _ = done.try_send(());
            }
        }
        let missed = dropped.swap(0, Ordering::Relaxed);
        if missed > 0 {
            let _ =
                writeln!(to, "pgcm: {missed} lines were dropped here, which nobody read in time");
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
        let mut patient = Patient::before(Still);
        for number in 0..2 * BACKLOG {
            writeln!(patient, "line {number}").expect("it never fails");
        }
        patient.last_words();
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }

    #[test]
    fn what_was_dropped_is_told() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut patient = Patient::before(writer);
        // More than the pipe and the backlog take.
        let long = "x".repeat(1000);
        for _ in 0..2 * BACKLOG {
            writeln!(patient, "{long}").expect("it never fails");
        }
        drop(patient);
        let mut text = String::new();
        io::Read::read_to_string(&mut reader, &mut text).expect("readable");
        let (told, written): (Vec<&str>, Vec<&str>) =
            text.lines().partition(|line| line.starts_with("pgcm: "));
        let count =
            |line: &&str| line.split(' ').nth(1).and_then(|count| count.parse::<usize>().ok());
        let dropped: usize = told.iter().filter_map(count).sum();
        assert!(dropped > 0);
        assert_eq!(written.len() + dropped, 2 * BACKLOG);
    }

    #[test]
    fn lines_are_passed_on_whole_and_in_order() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let mut patient = Patient::before(writer);
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
