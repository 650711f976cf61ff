//! The words in node attributes: statuses, data statuses and promotion scores.

use std::fmt;

/// `<resource>-status`: what a node is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    Primary,
    Sync,
    /// One of several standbys of which some are waited for.
    Quorum,
    Potential,
    Async,
    Alone,
    Stopped,
}

impl Status {
    const ALL: [Self; 7] = [
        Self::Primary,
        Self::Sync,
        Self::Quorum,
        Self::Potential,
        Self::Async,
        Self::Alone,
        Self::Stopped,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "PRI",
            Self::Sync => "HS:sync",
            Self::Quorum => "HS:quorum",
            Self::Potential => "HS:potential",
            Self::Async => "HS:async",
            Self::Alone => "HS:alone",
            Self::Stopped => "STOP",
        }
    }

    /// Reads an attribute's value; words that are not ours are `None`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }
}

/// `<resource>-data-status`: what a node's data is worth. It survives a power loss of all nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataStatus {
    /// The primary's own: every acknowledged commit.
    Latest,
    /// The synchronous standby's: every acknowledged commit as well.
    Sync,
    /// One of several standbys that hold every acknowledged commit together, not each of them alone.
    Quorum,
    Potential,
    Async,
    Disconnected,
}

impl DataStatus {
    const ALL: [Self; 6] =
        [Self::Latest, Self::Sync, Self::Quorum, Self::Potential, Self::Async, Self::Disconnected];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Latest => "LATEST",
            Self::Sync => "STREAMING|SYNC",
            Self::Quorum => "STREAMING|QUORUM",
            Self::Potential => "STREAMING|POTENTIAL",
            Self::Async => "STREAMING|ASYNC",
            Self::Disconnected => "DISCONNECT",
        }
    }

    /// Reads an attribute's value; words that are not ours are `None`.
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether the value claims that every acknowledged commit is on that node.
    pub fn is_complete(self) -> bool {
        matches!(self, Self::Latest | Self::Sync)
    }
}

/// A promotion score, as Pacemaker compares it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Score(i32);

impl Score {
    /// Pacemaker's infinity.
    const INFINITE: i32 = 1_000_000;

    pub const PRIMARY: Self = Self(1000);
    pub const SYNC: Self = Self(100);
    /// Another standby holds more, and this one could not get it.
    pub const BEHIND: Self = Self(10);
    /// Of a former primary that comes back while another may be promoted in its place.
    pub const RESERVE: Self = Self(50);
    pub const NEVER: Self = Self(-Self::INFINITE);

    /// Whether Pacemaker may promote a node with this score.
    pub fn allows_promotion(self) -> bool {
        self.0 >= 0
    }

    /// Reads an attribute's value.
    pub fn parse(text: &str) -> Option<Self> {
        match text.trim() {
            "INFINITY" | "+INFINITY" => Some(Self(Self::INFINITE)),
            "-INFINITY" => Some(Self::NEVER),
            number => number
                .parse()
                .ok()
                .map(|score: i32| Self(score.clamp(-Self::INFINITE, Self::INFINITE))),
        }
    }
}

impl fmt::Display for Score {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Self::INFINITE => f.write_str("INFINITY"),
            score if score == -Self::INFINITE => f.write_str("-INFINITY"),
            score => write!(f, "{score}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_read_back() {
        for status in Status::ALL {
            assert_eq!(Status::parse(status.as_str()), Some(status));
        }
        for status in DataStatus::ALL {
            assert_eq!(DataStatus::parse(status.as_str()), Some(status));
        }
        for score in [Score::PRIMARY, Score::SYNC, Score::RESERVE, Score::BEHIND, Score::NEVER] {
            assert_eq!(Score::parse(&score.to_string()), Some(score));
        }
    }

    #[test]
    fn only_a_score_of_zero_or_more_allows_promotion() {
        assert!(Score::SYNC.allows_promotion() && Score::PRIMARY > Score::SYNC);
        assert!(!Score::NEVER.allows_promotion());
        assert_eq!(Score::parse("-2000000"), Some(Score::NEVER));
        assert_eq!(Score::parse("many"), None);
    }
}
