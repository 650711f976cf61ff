//! Whether a stopped or lonely node may follow the primary as it is.

use super::{
    control_data::ControlData,
    history::History,
    lsn::{Lsn, Position},
};

/// What the primary says of itself over a replication connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Primary {
    pub system: String,
    pub position: Position,
    /// The history of the primary's timeline; empty on timeline 1.
    pub history: History,
}

/// What is known of the WAL on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Local {
    pub timeline: u32,
    /// Where the last record begins, or `None` when it could not be found.
    pub last_record: Option<Lsn>,
    /// A standby's WAL came from a primary, so that the primary refuses to go on from a wrong place;
    /// a former primary wrote WAL of its own.
    pub was_standby: bool,
}

/// Whether this node may follow the primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing on this node has to be undone.
    Follow,
    /// This node wrote, or received, what the primary never had.
    Diverged { why: String },
    /// The data belongs to another cluster.
    Foreign { why: String },
}

/// Judges by ancestry whether `local` is a part of the primary's past.
///
/// The last record begins before the position at which the primary's history left our timeline
/// exactly if the record belongs to that history: branches start where a record ends.
pub fn verdict(control: &ControlData, local: Local, primary: &Primary) -> Verdict {
    if control.system != primary.system {
        return Verdict::Foreign {
            why: format!(
                "this data directory belongs to system {}, the primary to {}",
                control.system, primary.system
            ),
        };
    }
    if let Some(why) = data_beyond(control, primary) {
        return Verdict::Diverged { why };
    }
    let Some(end) = branch_point(local.timeline, primary) else {
        return Verdict::Diverged {
            why: format!(
                "this node is on timeline {}, which is no part of the history of the primary's timeline {}",
                local.timeline, primary.position.timeline
            ),
        };
    };
    match local.last_record {
        Some(last) if last < end => Verdict::Follow,
        Some(last) => Verdict::Diverged {
            why: format!(
                "this node wrote timeline {} up to {last}, the primary left it at {end}",
                local.timeline
            ),
        },
        // The primary itself refuses to stream from a place that it never had.
        None if local.was_standby => Verdict::Follow,
        None => Verdict::Diverged {
            why: format!(
                "the end of the WAL that this node wrote on timeline {} cannot be found",
                local.timeline
            ),
        },
    }
}

/// How the data files of a standby show records that the primary never had, whatever its WAL shows: a
/// server with such files ends at every start, since it cannot recover along the primary's history.
fn data_beyond(control: &ControlData, primary: &Primary) -> Option<String> {
    if !control.was_standby() {
        return None;
    }
    let (checkpoint, needed) = (control.checkpoint, control.minimum_recovery);
    let left = |timeline| branch_point(timeline, primary);
    // A checkpoint's record begins where it is said to be; what recovery must reach is where one ends.
    let timeline = control.checkpoint_timeline;
    if left(timeline).is_none_or(|end| checkpoint >= end) {
        return Some(format!(
            "its last checkpoint, at {checkpoint} on timeline {timeline}, is no part of the primary's \
             history"
        ));
    }
    let timeline = control.minimum_recovery_timeline;
    let outside = needed != Lsn(0) && left(timeline).is_none_or(|end| needed > end);
    outside.then(|| {
        format!(
            "its data files need timeline {timeline} up to {needed}, which the primary does not have"
        )
    })
}

/// Where the primary left `timeline`: its current position if it is still there.
fn branch_point(timeline: u32, primary: &Primary) -> Option<Lsn> {
    if timeline == primary.position.timeline {
        return Some(primary.position.lsn);
    }
    primary.history.left(timeline)
}

#[cfg(test)]
mod tests {
    use super::{super::control_data::tests::STOPPED_PRIMARY, *};
    use proptest::prelude::*;

    fn control() -> ControlData {
        ControlData::parse(STOPPED_PRIMARY).expect("valid")
    }

    fn primary(timeline: u32, lsn: u64, history: &str) -> Primary {
        Primary {
            system: control().system,
            position: Position { timeline, lsn: Lsn(lsn) },
            history: History::parse(history).expect("a history"),
        }
    }

    fn wrote(timeline: u32, last_record: u64) -> Local {
        Local { timeline, last_record: Some(Lsn(last_record)), was_standby: false }
    }

    #[test]
    fn who_may_follow() {
        let branched = primary(2, 0x900, "1 0/500 x");
        let twice = primary(3, 0x900, "1 0/500 x\n2 0/700 x");
        let first = primary(1, 0x900, "");
        for (name, local, primary, follows) in [
            ("a clean switchover", wrote(1, 0x480), &branched, true),
            ("one record too many", wrote(1, 0x500), &branched, false),
            ("a crash long after the branch", wrote(1, 0x800), &branched, false),
            ("two switchovers missed", wrote(1, 0x480), &twice, true),
            ("one of two missed", wrote(2, 0x6C0), &twice, true),
            ("a branch of its own", wrote(4, 0x480), &twice, false),
            ("the same timeline, behind", wrote(1, 0x8C0), &first, true),
            ("the same timeline, ahead", wrote(1, 0x900), &first, false),
        ] {
            let verdict = verdict(&control(), local, primary);
            assert_eq!(verdict == Verdict::Follow, follows, "{name}: {verdict:?}");
        }
    }

    #[test]
    fn an_unknown_end_is_trusted_only_on_a_former_standby() {
        let branched = primary(2, 0x900, "1 0/500 x");
        let local = Local { timeline: 1, last_record: None, was_standby: true };
        assert_eq!(verdict(&control(), local, &branched), Verdict::Follow);
        let local = Local { was_standby: false, ..local };
        assert!(matches!(verdict(&control(), local, &branched), Verdict::Diverged { .. }));
    }

    #[test]
    fn a_standby_whose_data_files_went_beyond_does_not_follow_whatever_its_wal_shows() {
        let branched = primary(2, 0x900, "1 0/500 x");
        let local = Local { timeline: 1, last_record: None, was_standby: true };
        let standby = |checkpoint, minimum_recovery, minimum_recovery_timeline| ControlData {
            state: super::super::control_data::DatabaseState::InArchiveRecovery,
            checkpoint: Lsn(checkpoint),
            minimum_recovery: Lsn(minimum_recovery),
            minimum_recovery_timeline,
            ..control()
        };
        for (name, control, follows) in [
            ("nothing beyond", standby(0x400, 0x480, 1), true),
            ("up to the branch", standby(0x400, 0x500, 1), true),
            ("nothing replayed since its backup", standby(0x400, 0, 0), true),
            ("on the new timeline already", standby(0x400, 0x700, 2), true),
            ("replayed beyond", standby(0x400, 0x501, 1), false),
            ("a checkpoint beyond", standby(0x500, 0x500, 1), false),
            ("more than the primary has", standby(0x400, 0x901, 2), false),
            ("a timeline that the primary never was on", standby(0x400, 0x480, 3), false),
        ] {
            let found = verdict(&control, local, &branched);
            assert_eq!(found == Verdict::Follow, follows, "{name}: {found:?}");
        }
    }

    #[test]
    fn another_cluster_is_never_followed() {
        let mut other = primary(1, 0x900, "");
        other.system = "1".to_owned();
        assert!(matches!(verdict(&control(), wrote(1, 1), &other), Verdict::Foreign { .. }));
    }

    proptest! {
        #[test]
        fn nothing_beyond_the_branch_is_ever_followed(last: u32, branch: u32) {
            let history = format!("1 0/{branch:X} x");
            let followed = verdict(
                &control(), wrote(1, last.into()), &primary(2, u64::MAX, &history)
            ) == Verdict::Follow;
            prop_assert_eq!(followed, last < branch);
        }
    }
}
