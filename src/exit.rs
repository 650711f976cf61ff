//! Exit codes: a contract with scripts.

/// How a command ended. The same table stands in `--help` and in the README.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Wrong usage or configuration.
    Usage = 2,
    /// Something outside did not answer.
    Unreachable = 3,
    /// Checks failed; nothing was touched.
    Refused = 4,
    /// The failover lock is held elsewhere.
    Locked = 5,
    /// Stopped; everything was put back.
    PutBack = 6,
    /// Stopped; needs hands.
    NeedsHands = 7,
}

impl Exit {
    /// The table for `--help`.
    pub const TABLE: &'static str = "\
Exit codes:
  0  done
  2  wrong usage or configuration
  3  something outside did not answer
  4  checks failed, nothing touched
  5  lock held elsewhere
  6  stopped, everything put back
  7  stopped, needs hands
with-lock: 1 after an error, 5, or the command's own. status --check: 0 yes, 4 no, 3 not known.";
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}
