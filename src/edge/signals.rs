//! Signals that need a look at how this process was started.

use std::{fs, io};

use tokio::signal::unix::{Signal, SignalKind, signal};

/// A terminal, or the session on it, that is gone.
pub struct Hangup(Option<Signal>);

impl Hangup {
    /// Heard from now on, unless whoever started this process had it ignore SIGHUP, as `nohup` does: to listen
    /// would undo that.
    pub fn listen() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let kind = SignalKind::hangup();
        Ok(Self(if is_ignored(&status, kind) { None } else { Some(signal(kind)?) }))
    }

    /// Returns when it is heard.
    pub async fn recv(&mut self) {
        match &mut self.0 {
            Some(signal) => drop(signal.recv().await),
            None => std::future::pending().await,
        }
    }
}

/// Whether `/proc/PID/status`, as `status`, says that its process ignores signals of `kind`.
fn is_ignored(status: &str, kind: SignalKind) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (kind.as_raw_value() - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ignored_is_one_bit_of_the_mask() {
        let nohup = "Name:\tpgcm\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000000001\n";
        assert!(is_ignored(nohup, SignalKind::hangup()));
        assert!(!is_ignored(nohup, SignalKind::interrupt()));
        let none = "SigIgn:\t0000000000001000\n";
        assert!(!is_ignored(none, SignalKind::hangup()) && !is_ignored("", SignalKind::hangup()));
    }
}
