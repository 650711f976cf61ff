//! What the last look showed, for everybody who asks: health, roles, the API.

use crate::model::{
    attempt::Attempt,
    cluster::ClusterView,
    crm_mon::PacemakerView,
    primary::{Hold, LocalFacts, Refused},
};

const NOT_YET: &str = "not looked at yet";

/// The last look at the world. An error is the reason, in one line.
#[derive(Debug, Clone)]
pub struct Latest {
    /// When, RFC 3339 in UTC; empty before the first look.
    pub seen_at: String,
    pub pacemaker: Result<PacemakerView, String>,
    pub local: Result<LocalFacts, String>,
    /// Whether Pacemaker and Postgres say that this node is the primary.
    pub primary_here: bool,
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

    /// What somebody has to look at; nothing on a node that publishes, or that has another one do it.
    pub fn trouble(&self) -> Option<String> {
        match self {
            Self::Written | Self::Unchanged | Self::Outrun => None,
            Self::Held(Hold::OtherNode { .. }) => None,
            Self::NotYet => Some(NOT_YET.to_owned()),
            Self::Held(hold) => Some(hold.to_string()),
            Self::Refused(refused) => Some(refused.to_string()),
            Self::Failed(why) => Some(why.clone()),
        }
    }
}

impl Latest {
    /// Whether this node is the primary, as Pacemaker and its Postgres say: it goes on serving its clients while
    /// etcd is away. Not when what is published speaks against it.
    pub fn is_primary(&self) -> bool {
        self.primary_here && !matches!(self.outcome, Outcome::Refused(_))
    }

    pub(super) fn not_yet() -> Self {
        let reason = || NOT_YET.to_owned();
        Self {
            seen_at: String::new(),
            pacemaker: Err(reason()),
            local: Err(reason()),
            primary_here: false,
            stored: Err(reason()),
            outcome: Outcome::NotYet,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_primary_stays_one_unless_what_is_published_speaks_against_it() {
        let seen = |primary_here, outcome| Latest { primary_here, outcome, ..Latest::not_yet() };
        let refused = Refused::SameTimeline { node: "pg02".to_owned(), timeline: 3 };
        for (outcome, is_primary, is_well) in [
            (Outcome::Written, true, true),
            (Outcome::Unchanged, true, true),
            (Outcome::Outrun, true, true),
            (Outcome::Failed("no etcd member answered".to_owned()), true, false),
            (Outcome::Refused(refused), false, false),
        ] {
            let latest = seen(true, outcome.clone());
            assert_eq!(latest.is_primary(), is_primary, "{outcome:?}");
            assert!(!seen(false, outcome.clone()).is_primary(), "{outcome:?}");
            assert_eq!(outcome.trouble().is_none(), is_well, "{outcome:?}");
        }
        assert!(!Latest::not_yet().is_primary(), "nobody has looked");
        let other = Hold::OtherNode { node: "pg02".to_owned() };
        assert_eq!(Outcome::Held(other).trouble(), None);
        assert!(Outcome::Held(Hold::NoQuorum).trouble().is_some());
    }
}
