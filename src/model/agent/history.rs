//! Timeline histories: which timeline branched off which, and where.

use super::lsn::Lsn;

/// The ancestors of one timeline.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History {
    /// Each ancestor with the position at which its child branched off, oldest first.
    ancestors: Vec<(u32, Lsn)>,
}

impl History {
    /// Reads the content of a `.history` file; lines that say nothing are skipped.
    ///
    /// `None` when a line cannot be understood: half a history proves nothing.
    pub fn parse(text: &str) -> Option<Self> {
        let mut ancestors = Vec::new();
        for line in text.lines().map(str::trim) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let mut words = line.split_whitespace();
            let timeline = words.next()?.parse().ok()?;
            ancestors.push((timeline, words.next()?.parse().ok()?));
        }
        Some(Self { ancestors })
    }

    /// Where the line of descent left `timeline`; `None` when it never was on it.
    pub fn left(&self, timeline: u32) -> Option<Lsn> {
        self.ancestors.iter().rev().find(|(id, _)| *id == timeline).map(|&(_, lsn)| lsn)
    }

    /// Where the line of descent left its last ancestor: where this timeline began.
    pub fn began(&self) -> Option<Lsn> {
        self.ancestors.last().map(|&(_, lsn)| lsn)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_tells_where_each_ancestor_was_left() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore 2000\n";
        let history = History::parse(text).expect("a history");
        assert_eq!(history.left(1), Some(Lsn(0x300_0148)));
        assert_eq!(history.left(2), Some(Lsn(0x500_0000)));
        assert_eq!(history.left(3), None);
        assert_eq!(history.began(), Some(Lsn(0x500_0000)));
    }

    #[test]
    fn a_history_cut_short_is_none() {
        assert_eq!(History::parse("1\t0/30"), History::parse("1 0/30 x"));
        assert_eq!(History::parse("1\n"), None);
        assert_eq!(History::parse("one 0/1"), None);
    }
}
