//! Numbers that a seed decides.

use std::{ops::Range, time::Duration};

/// SplitMix64: small, and the same on every machine and in every version.
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn of(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// One of `choices`, which must not be empty.
    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        let index = self.next() % choices.len() as u64;
        choices[usize::try_from(index).unwrap()]
    }

    /// A time within `range`, in milliseconds.
    pub(crate) fn time(&mut self, range: &Range<u64>) -> Duration {
        Duration::from_millis(range.start + self.next() % (range.end - range.start))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_always_gives_the_same_numbers() {
        // The published test vector of SplitMix64.
        let mut random = Random::of(1_234_567);
        let numbers = [random.next(), random.next(), random.next()];
        let expected =
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!(numbers, expected);
    }

    #[test]
    fn times_stay_within_their_range() {
        let mut random = Random::of(7);
        for _ in 0..1000 {
            let time = random.time(&(5..9)).as_millis();
            assert!((5..9).contains(&time), "{time}");
        }
    }
}
