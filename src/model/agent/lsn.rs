//! Positions in the write-ahead log.

use std::{fmt, str::FromStr};

/// A byte position in the write-ahead log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The 16 hex digits that operators know from `<resource>-master-baseline`.
    pub fn baseline(self) -> String {
        format!("{:016X}", self.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a WAL position")]
pub struct NotAPosition(pub String);

impl FromStr for Lsn {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| u32::from_str_radix(digits, 16).map(u64::from);
        text.split_once('/')
            .and_then(|(high, low)| Some(Self((half(high).ok()? << 32) | half(low).ok()?)))
            .ok_or_else(|| NotAPosition(text.to_owned()))
    }
}

/// A WAL position on a timeline; written `3:0000000002000090` in node attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    pub timeline: u32,
    pub lsn: Lsn,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.timeline, self.lsn.baseline())
    }
}

impl FromStr for Position {
    type Err = NotAPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.split_once(':')
            .and_then(|(timeline, lsn)| {
                let lsn = Lsn(u64::from_str_radix(lsn, 16).ok()?);
                Some(Self { timeline: timeline.parse().ok()?, lsn })
            })
            .ok_or_else(|| NotAPosition(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_printed_reads_back(raw: u64, timeline: u32) {
            let lsn = Lsn(raw);
            prop_assert_eq!(lsn.to_string().parse::<Lsn>(), Ok(lsn));
            let position = Position { timeline, lsn };
            prop_assert_eq!(position.to_string().parse::<Position>(), Ok(position));
        }
    }

    #[test]
    fn a_baseline_has_sixteen_digits() {
        assert_eq!("0/2000090".parse::<Lsn>().expect("valid").baseline(), "0000000002000090");
    }

    #[test]
    fn text_that_is_no_position_is_refused() {
        for text in ["", "0", "0/", "/0", "x/1", "1/123456789", "0/1 "] {
            assert!(text.parse::<Lsn>().is_err(), "{text:?}");
        }
    }
}
