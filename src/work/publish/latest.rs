//! What the last look showed, for everybody who asks: health, roles, the API.

use crate::model::{
    attempt::Attempt,
    cluster::ClusterView,
    crm_mon::PacemakerView,
    primary::{Hold, LocalFacts, Refused},
};

/// The last look at the world. An error is the reason, in one line.
#[derive(Debug, Clone)]
pub struct Latest {
    /// When, RFC 3339 in UTC; empty before the first look.
    pub seen_at: String,
    pub pacemaker: Result<PacemakerView, String>,
    pub local: Result<LocalFacts, String>,
    pub stored: Result<Stored, String>,
    pub outcome: Outcome,
}

/// What etcd had.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The published view; `None` when there is none, or none that can be read.
    pub view: Option<ClusterView>,
    /// The failover lock.
    pub lock: Option<Lock>,
}

/// The failover lock as it is held now.
#[derive(Debug, Clone)]
pub struct Lock {
    /// `None` when the value cannot be read.
    pub attempt: Option<Attempt>,
}

/// What a look led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// There was no look yet.
    NotYet,
    /// Published.
    Written,
    /// What is published is right.
    Unchanged,
    /// This node has nothing to publish.
    Held(Hold),
    /// What is published must not be replaced by what this node sees.
    Refused(Refused),
    /// Somebody else wrote at the same time; the next look decides anew.
    Outrun,
    /// Pacemaker or etcd gave no answer.
    Failed(String),
}

impl Outcome {
    /// Short stable name, for metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NotYet => "none",
            Self::Written => "written",
            Self::Unchanged => "unchanged",
            Self::Held(_) => "held",
            Self::Refused(_) => "refused",
            Self::Outrun => "outrun",
            Self::Failed(_) => "failed",
        }
    }
}

impl Latest {
    pub(super) fn not_yet() -> Self {
        let reason = || "not looked at yet".to_owned();
        Self {
            seen_at: String::new(),
            pacemaker: Err(reason()),
            local: Err(reason()),
            stored: Err(reason()),
            outcome: Outcome::NotYet,
        }
    }
}
