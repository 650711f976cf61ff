//! What `postmaster.pid` says.

/// What the postmaster last said of itself, in the eighth line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Stopping,
    /// Accepts connections, not in recovery.
    Ready,
    /// Accepts read-only connections, in recovery.
    Standby,
}

/// The content of `postmaster.pid`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PidFile {
    pub pid: u32,
    /// `None` while the file is not complete.
    pub phase: Option<Phase>,
}

impl PidFile {
    /// Reads the file's text; `None` when it does not begin with a process id.
    pub fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines().map(str::trim);
        // A standalone backend writes its id negated.
        let pid = lines.next()?.trim_start_matches('-').parse().ok().filter(|&pid| pid > 1)?;
        let phase = match lines.nth(6) {
            Some("starting") => Some(Phase::Starting),
            Some("stopping") => Some(Phase::Stopping),
            Some("ready") => Some(Phase::Ready),
            Some("standby") => Some(Phase::Standby),
            _ => None,
        };
        Some(Self { pid, phase })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_is_in_the_eighth_line() {
        let text =
            |phase| format!("4711\n/var/lib/pg\n1795205000\n5432\n/tmp\n*\n  1234  56\n{phase}\n");
        for (word, phase) in [
            ("starting", Some(Phase::Starting)),
            ("ready   ", Some(Phase::Ready)),
            ("standby ", Some(Phase::Standby)),
            ("stopping", Some(Phase::Stopping)),
            ("", None),
        ] {
            assert_eq!(PidFile::parse(&text(word)), Some(PidFile { pid: 4711, phase }), "{word}");
        }
    }

    #[test]
    fn a_file_without_a_usable_pid_is_none() {
        for text in ["", "\n", "x\n", "0\n", "1\n"] {
            assert_eq!(PidFile::parse(text), None, "{text:?}");
        }
        assert_eq!(PidFile::parse("-12\n/data\n"), Some(PidFile { pid: 12, phase: None }));
    }
}
