//! What a check found, and whether it stops a planned failover.

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Told to the operator; the failover goes on.
    Warn,
    /// The failover does not begin.
    Refuse,
}

/// Checks that an operator may override by name: going on costs time, or errors that this operator
/// accepts. Never one whose override could cost a commit, leave clients on an old primary or held,
/// or ask for what cannot happen.
pub const OVERRIDABLE: [&str; 13] = [
    "agent-expected",
    "archive",
    "client-limits",
    "constraints",
    "delay",
    "disk-space",
    "health",
    "lag",
    "logical-replication",
    "logical-slots",
    "open-transactions",
    "session-pools",
    "walsenders",
];

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Short stable name, for example `open-transactions`.
    pub check: String,
    pub severity: Severity,
    /// What was found and what to do.
    pub message: String,
}

impl Finding {
    pub fn warn(check: &str, message: impl Into<String>) -> Self {
        Self { check: check.to_owned(), severity: Severity::Warn, message: message.into() }
    }

    pub fn refuse(check: &str, message: impl Into<String>) -> Self {
        Self { check: check.to_owned(), severity: Severity::Refuse, message: message.into() }
    }
}
