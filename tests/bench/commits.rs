//! What the instants of acknowledged commits tell: milliseconds since the measurement began.

/// Width of a bar of the picture.
pub(crate) const BAR_MS: u32 = 20;
/// How far the picture reaches on each side of its zero.
pub(crate) const REACH_MS: u32 = 2_000;

/// The longest time in which no commit got through.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Gap {
    /// When the last commit before it was acknowledged.
    pub(crate) from_ms: f64,
    pub(crate) length_ms: f64,
}

/// The longest gap between two commits; `sorted` is in the order of time.
pub(crate) fn longest_gap(sorted: &[f64]) -> Option<Gap> {
    let gaps = sorted.windows(2).map(|pair| Gap { from_ms: pair[0], length_ms: pair[1] - pair[0] });
    gaps.max_by(|one, other| one.length_ms.total_cmp(&other.length_ms))
}

/// Commits in each bar of [`BAR_MS`], from [`REACH_MS`] before `zero_ms` to as much after it.
///
/// A commit exactly at zero counts for the time before it.
#[expect(clippy::cast_possible_truncation, reason = "the bar is within the reach")]
pub(crate) fn bars(commits: &[f64], zero_ms: f64) -> Vec<u32> {
    let half = i64::from(REACH_MS / BAR_MS);
    let mut bars = vec![0; usize::try_from(2 * half).expect("a small number")];
    for commit in commits {
        let bar = ((commit - zero_ms) / f64::from(BAR_MS)).ceil() as i64 - 1 + half;
        if let Some(count) = usize::try_from(bar).ok().and_then(|bar| bars.get_mut(bar)) {
            *count += 1;
        }
    }
    bars
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_gap_is_where_nobody_got_through() {
        let gap = longest_gap(&[0.0, 10.0, 20.0, 320.0, 330.0]).unwrap();
        assert_eq!(gap, Gap { from_ms: 20.0, length_ms: 300.0 });
    }

    #[test]
    fn one_commit_has_no_gap() {
        assert_eq!(longest_gap(&[5.0]), None);
    }

    #[test]
    fn the_last_commit_before_the_gap_stands_left_of_zero() {
        let bars = bars(&[990.0, 1_000.0, 1_001.0, 1_021.0], 1_000.0);
        assert_eq!(bars.len(), 200);
        assert_eq!(bars[98..103], [0, 2, 1, 1, 0]);
    }

    #[test]
    fn commits_beyond_the_picture_are_left_out() {
        assert_eq!(bars(&[0.0, 9_000.0], 4_000.0).iter().sum::<u32>(), 0);
        assert_eq!(bars(&[2_001.0, 6_000.0], 4_000.0).iter().sum::<u32>(), 2);
    }
}
