//! WAL that a standby received beyond the end of its primary's timeline.
//!
//! A primary that ends in the middle of a record may have sent the first part of it. Whoever is promoted
//! goes on where that record began. A standby that keeps the first part waits for the rest for ever.
//! And segments that a standby has made for a timeline of which it has received nothing yet.

use std::collections::BTreeMap;

use super::{
    control_data::ControlData,
    lsn::{Lsn, Position},
    rejoin::Primary,
};

/// A segment file that goes on where the primary's history left its timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Beyond {
    pub name: String,
    pub timeline: u32,
    /// Where the primary's history left the timeline.
    pub end: Lsn,
    /// How many bytes of the file come before that.
    pub keep: u64,
}

/// The segments among `files`, names with lengths, that hold an older timeline beyond its end.
///
/// None of a timeline whose successor's own segment is there: the server reads that one, and removes the
/// others itself.
pub fn beyond(files: &[(String, u64)], primary: &Primary) -> Vec<Beyond> {
    let segments =
        || files.iter().filter_map(|(name, size)| Some((name, segment(name, *size)?, *size)));
    let found = segments().filter_map(|(name, start, size)| {
        let timeline = start.timeline;
        let end = primary.history.left(timeline)?;
        if start.lsn.0 + size <= end.0 {
            return None;
        }
        let replaced = segments().any(|(_, other, size)| {
            other.timeline > timeline && other.lsn <= end && end.0 < other.lsn.0 + size
        });
        let keep = end.0.saturating_sub(start.lsn.0);
        (!replaced).then(|| Beyond { name: name.clone(), timeline, end, keep })
    });
    found.collect()
}

/// The segment files in which a timeline begins, of those timelines that `begins` knows: the part before
/// is a copy of the ancestors' WAL.
///
/// One that holds nothing of its own timeline yet is worse than useless. A server prefers it to the
/// ancestors' own segment, finds less in it than it needs, and ends, because it would have to go back to
/// an older timeline than that of the last file.
pub fn first_segments(files: &[(String, u64)], begins: &BTreeMap<u32, Lsn>) -> Vec<Beyond> {
    let first = files.iter().filter_map(|(name, size)| {
        let start = segment(name, *size)?;
        let begin = *begins.get(&start.timeline)?;
        let within = start.lsn < begin && begin.0 < start.lsn.0 + size;
        within.then(|| Beyond {
            name: name.clone(),
            timeline: start.timeline,
            end: begin,
            keep: begin.0 - start.lsn.0,
        })
    });
    first.collect()
}

/// Whether the data files of a stopped server need nothing beyond the `end` of a timeline.
pub fn may_do_without(control: &ControlData, end: Lsn) -> bool {
    !control.cleanly_stopped_primary()
        && control.checkpoint < end
        && control.redo <= end
        && control.minimum_recovery <= end
}

/// The timeline and the first position of the segment file `name` that is `size` bytes long.
fn segment(name: &str, size: u64) -> Option<Position> {
    let valid = name.len() == 24 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !valid || !size.is_power_of_two() || !((1 << 20)..=(1 << 30)).contains(&size) {
        return None;
    }
    let number = |range| u32::from_str_radix(name.get(range)?, 16).ok();
    let (high, low) = (u64::from(number(8..16)?), u64::from(number(16..24)?));
    let lsn = (high << 32).checked_add(low * size)?;
    Some(Position { timeline: number(0..8)?, lsn: Lsn(lsn) })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{control_data::tests::STOPPED_PRIMARY, history::History},
        *,
    };

    const SIZE: u64 = 16 << 20;

    fn primary(history: &str) -> Primary {
        Primary {
            system: "7".to_owned(),
            position: Position { timeline: 7, lsn: Lsn(0x700_0000) },
            history: History::parse(history).expect("a history"),
        }
    }

    #[test]
    fn only_what_goes_on_after_the_end_of_an_ancestor_lies_beyond() {
        let history = "5\t0/3000000\tx\n6\t0/525EC80\tx\n";
        for (name, files, expected) in [
            (
                "the finding",
                &["000000060000000000000005"][..],
                &[("000000060000000000000005", 0x25_EC80)][..],
            ),
            ("before the end", &["000000060000000000000004"], &[]),
            (
                "a file made in advance too",
                &["000000060000000000000005", "000000060000000000000006"],
                &[("000000060000000000000005", 0x25_EC80), ("000000060000000000000006", 0)],
            ),
            (
                "the successor's is there",
                &["000000060000000000000005", "000000070000000000000005"],
                &[],
            ),
            (
                "the successor's came later",
                &["000000060000000000000005", "000000070000000000000006"],
                &[("000000060000000000000005", 0x25_EC80)],
            ),
            ("an end at a border, before", &["000000050000000000000002"], &[]),
            (
                "an end at a border, after",
                &["000000050000000000000003"],
                &[("000000050000000000000003", 0)],
            ),
            ("the next 4 GB", &["000000060000000100000000"], &[("000000060000000100000000", 0)]),
            ("the primary's own", &["000000070000000000000009"], &[]),
            ("no ancestor", &["000000040000000000000009"], &[]),
            (
                "no segments",
                &["00000007.history", "000000060000000000000005.partial", "archive_status"],
                &[],
            ),
        ] {
            let files: Vec<_> = files.iter().map(|&file| (file.to_owned(), SIZE)).collect();
            let found = beyond(&files, &primary(history));
            let found: Vec<_> =
                found.iter().map(|found| (found.name.as_str(), found.keep)).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn a_timelines_first_segment_is_the_one_in_which_it_begins() {
        let begins = BTreeMap::from([(7, Lsn(0x7FE_9D20)), (8, Lsn(0x800_0000))]);
        for (file, keep) in [
            ("000000070000000000000007", Some(0xFE_9D20)),
            ("000000060000000000000007", None),
            ("000000070000000000000008", None),
            // It begins with its timeline: there is nothing in it that is another's.
            ("000000080000000000000008", None),
            ("00000007.history", None),
        ] {
            let found = first_segments(&[(file.to_owned(), SIZE)], &begins);
            assert_eq!(found.first().map(|found| found.keep), keep, "{file}");
        }
    }

    #[test]
    fn a_file_whose_length_is_no_segments_is_left_alone() {
        for size in [0, 512, SIZE - 1, SIZE + 1, 1 << 31] {
            let files = [("000000060000000000000005".to_owned(), size)];
            assert_eq!(beyond(&files, &primary("6 0/525EC80 x")), [], "{size}");
        }
    }

    #[test]
    fn what_the_data_files_rest_on_is_needed() {
        let stopped = ControlData::parse(STOPPED_PRIMARY).expect("valid");
        let end = Lsn(stopped.checkpoint.0 + 0x100);
        let standby = ControlData {
            state: super::super::control_data::DatabaseState::ShutDownInRecovery,
            minimum_recovery: end,
            ..stopped.clone()
        };
        assert!(may_do_without(&standby, end));
        assert!(!may_do_without(&stopped, end), "a primary's own last word");
        assert!(!may_do_without(&standby, standby.checkpoint), "a checkpoint beyond");
        let replayed = ControlData { minimum_recovery: Lsn(end.0 + 1), ..standby };
        assert!(!may_do_without(&replayed, end), "replayed beyond");
    }
}
