//! What a server is doing, judged from its files and, when it answers, from SQL.

use super::{code::OcfCode, pid_file::Phase};

/// Which processes of the data directory live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// The postmaster lives, in this phase.
    Running(Option<Phase>),
    /// The postmaster is gone, but some of its backends are not.
    Orphans,
    Gone,
}

/// What the server said when it was asked for its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Primary,
    Standby,
    /// It did not answer in time, or is out of connection slots.
    Busy,
}

/// The server's condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Stopped,
    /// Backends without a postmaster: neither running nor stopped.
    Orphaned,
    Primary,
    Standby,
    /// On its way to be a standby, not yet accepting connections.
    StartingStandby,
    /// On its way to be a primary: crash recovery outside the agent's control.
    StartingPrimary,
    /// On its way down.
    Stopping,
}

/// Judges the condition. SQL decides where it answers; a busy server keeps the role that its files
/// show, because a busy server is not a dead one.
pub fn condition(process: Process, answer: Answer, standby_signal: bool) -> Condition {
    let phase = match process {
        Process::Gone => return Condition::Stopped,
        Process::Orphans => return Condition::Orphaned,
        Process::Running(phase) => phase,
    };
    match (answer, phase) {
        (Answer::Primary, _) => Condition::Primary,
        (Answer::Standby, _) => Condition::Standby,
        (Answer::Busy, Some(Phase::Ready)) => Condition::Primary,
        (Answer::Busy, Some(Phase::Standby)) => Condition::Standby,
        (Answer::Busy, Some(Phase::Stopping)) => Condition::Stopping,
        (Answer::Busy, Some(Phase::Starting) | None) if standby_signal => {
            Condition::StartingStandby
        }
        (Answer::Busy, Some(Phase::Starting) | None) => Condition::StartingPrimary,
    }
}

/// The code that a monitor returns for a condition.
///
/// A server that stops by itself is reported as failed, so that Pacemaker stops it properly.
pub fn monitor_code(condition: Condition) -> OcfCode {
    match condition {
        Condition::Stopped => OcfCode::NotRunning,
        Condition::Primary | Condition::StartingPrimary => OcfCode::RunningPromoted,
        Condition::Standby | Condition::StartingStandby => OcfCode::Success,
        Condition::Orphaned | Condition::Stopping => OcfCode::Generic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_server_keeps_its_role() {
        for (phase, standby_signal, code) in [
            (Some(Phase::Ready), false, OcfCode::RunningPromoted),
            (Some(Phase::Ready), true, OcfCode::RunningPromoted),
            (Some(Phase::Standby), true, OcfCode::Success),
            (Some(Phase::Starting), true, OcfCode::Success),
            (None, true, OcfCode::Success),
            (Some(Phase::Starting), false, OcfCode::RunningPromoted),
            (Some(Phase::Stopping), false, OcfCode::Generic),
        ] {
            let condition = condition(Process::Running(phase), Answer::Busy, standby_signal);
            assert_eq!(monitor_code(condition), code, "{phase:?} {standby_signal}");
        }
    }

    #[test]
    fn an_answer_outweighs_the_files() {
        let running = Process::Running(Some(Phase::Standby));
        assert_eq!(condition(running, Answer::Primary, true), Condition::Primary);
        let running = Process::Running(Some(Phase::Ready));
        assert_eq!(condition(running, Answer::Standby, false), Condition::Standby);
    }

    #[test]
    fn orphans_are_neither_running_nor_stopped() {
        let code = |process| monitor_code(condition(process, Answer::Busy, false));
        assert_eq!(code(Process::Orphans), OcfCode::Generic);
        assert_eq!(code(Process::Gone), OcfCode::NotRunning);
    }
}
