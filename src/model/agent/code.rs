//! The exit codes of the OCF 1.1 resource agent API.

/// How an action ended, in the words that Pacemaker acts upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OcfCode {
    /// Done; from a monitor: running as a standby.
    Success,
    /// The state of this node is wrong; Pacemaker recovers, here or elsewhere.
    Generic,
    /// A parameter does not fit this node; not tried here again.
    Arguments,
    /// There is no such action.
    Unimplemented,
    /// Files or rights on this node are wrong; not tried here again.
    Permission,
    /// Something is missing on this node; not tried here again.
    Installed,
    /// The resource's parameters are wrong; not tried anywhere.
    Configured,
    /// Cleanly stopped.
    NotRunning,
    /// Running as the primary.
    RunningPromoted,
}

impl OcfCode {
    /// The exit status that stands for this code.
    pub fn exit_code(self) -> u8 {
        match self {
            Self::Success => 0,
            Self::Generic => 1,
            Self::Arguments => 2,
            Self::Unimplemented => 3,
            Self::Permission => 4,
            Self::Installed => 5,
            Self::Configured => 6,
            Self::NotRunning => 7,
            Self::RunningPromoted => 8,
        }
    }
}
