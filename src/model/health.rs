//! One verdict per component of an agent.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::failed_action::FailedAction;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Healthy,
    Degraded,
    Failed,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Healthy => "healthy",
            Self::Degraded => "degraded",
            Self::Failed => "failed",
        })
    }
}

/// What an agent tells of itself, and of what failed in its sight.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    pub components: Vec<Component>,
    pub failed_actions: Vec<FailedAction>,
}

/// A part that an agent depends on: `quorum`, `postgres`, `pgbouncer`, `etcd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    pub name: String,
    pub verdict: Verdict,
    /// What was found, and for anything but healthy what to do.
    pub message: String,
}

impl Component {
    pub fn new(name: &str, verdict: Verdict, message: impl Into<String>) -> Self {
        Self { name: name.to_owned(), verdict, message: message.into() }
    }
}
