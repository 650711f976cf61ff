//! An interrupted `pg_rewind`: what it left, and whether it can be repeated.
//!
//! `pg_rewind` first empties what it will copy whole, the WAL that both servers share included, and
//! writes the control file last. Cut short it leaves the files of two servers under a control file
//! that says "shut down". A mark beside the data directory tells.

use super::{
    backup::Method,
    control_data::{ControlData, DatabaseState},
    lsn::Lsn,
};

/// What is written down before `pg_rewind` changes anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The boot of this machine: what was copied and not synced before a power loss is unknown.
    pub boot: String,
    pub system: String,
    /// The checkpoint and timeline in the control file, which `pg_rewind` replaces at its end.
    pub checkpoint: Lsn,
    pub timeline: u32,
    /// The timeline of the server whose files are being copied.
    pub source_timeline: u32,
}

impl Mark {
    pub fn new(boot: &str, control: &ControlData, source_timeline: u32) -> Self {
        Self {
            boot: boot.to_owned(),
            system: control.system.clone(),
            checkpoint: control.checkpoint,
            timeline: control.checkpoint_timeline,
            source_timeline,
        }
    }

    /// The whole text of the file.
    pub fn render(&self) -> String {
        let Self { boot, system, checkpoint, timeline, source_timeline } = self;
        format!(
            "# pg_rewind has begun here and has not ended. Written by ocf:pgcm:pgsql.\n\
             boot={boot}\nsystem={system}\ncheckpoint={checkpoint}\ntimeline={timeline}\n\
             source_timeline={source_timeline}\n"
        )
    }

    /// Reads back what [`Self::render`] wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let value = |name: &str| {
            text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::trim)
        };
        Some(Self {
            boot: value("boot")?.to_owned(),
            system: value("system")?.to_owned(),
            checkpoint: value("checkpoint")?.parse().ok()?,
            timeline: value("timeline")?.parse().ok()?,
            source_timeline: value("source_timeline")?.parse().ok()?,
        })
    }
}

/// What a mark that was found means for the data directory beside it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    /// `pg_rewind` was cut short and can run once more, from the same timeline.
    Repeat,
    /// It wrote everything, and was cut short while it synced that to disk.
    Finish,
    /// Another data directory is in its place: the mark says nothing about it.
    Replaced,
    /// Nothing makes these files whole again.
    Lost(&'static str),
}

/// Judges the data directory beside `mark`, found with `control` and `label` at boot `boot`.
pub fn leftover(mark: &Mark, boot: &str, control: &ControlData, label: Option<Method>) -> Leftover {
    if matches!(label, Some(Method::Streamed | Method::Exclusive)) {
        return Leftover::Replaced;
    }
    let untouched = control.checkpoint == mark.checkpoint
        && control.checkpoint_timeline == mark.timeline
        && control.system == mark.system;
    let same_boot = mark.boot == boot;
    match (untouched, label, control.state) {
        (true, ..) if same_boot => Leftover::Repeat,
        (false, Some(Method::Rewind), DatabaseState::InArchiveRecovery) if same_boot => {
            Leftover::Finish
        }
        (true, ..) | (_, Some(Method::Rewind), _) => Leftover::Lost(
            "the machine was restarted since, so that what reached the disk is unknown",
        ),
        _ => Leftover::Lost("the data directory was changed since"),
    }
}

/// Where `pg_rewind` begins to read local WAL, from what its dry run printed; `None` when there is
/// nothing to rewind.
pub fn reads_from(printed: &str) -> Option<Lsn> {
    let (_, after) = printed.rsplit_once("last common checkpoint at ")?;
    after.split_whitespace().next()?.parse().ok()
}

/// Whether the file `name` of `pg_wal`, `size` bytes long, is needed to read WAL from `from` on.
pub fn needed(name: &str, size: u64, from: Lsn) -> bool {
    if name.ends_with(".history") {
        return true;
    }
    let is_segment = name.len() == 24 && name.bytes().all(|b| b.is_ascii_hexdigit());
    let number = |range| u64::from_str_radix(name.get(range)?, 16).ok();
    match (is_segment, number(8..16), number(16..24)) {
        (true, Some(high), Some(low)) => {
            let end = low.saturating_add(1).saturating_mul(size).saturating_add(high << 32);
            size > 0 && end > from.0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{super::control_data::tests::STOPPED_PRIMARY, *};

    fn control(state: &str, checkpoint: &str) -> ControlData {
        let text = STOPPED_PRIMARY
            .replace("state:               shut down", &format!("state:               {state}"))
            .replace("checkpoint location:           0/3000028", checkpoint);
        ControlData::parse(&text).expect("valid")
    }

    #[test]
    fn what_an_interrupted_rewind_left() {
        let before = control("shut down", "checkpoint location:           0/3000028");
        let after = control("in archive recovery", "checkpoint location:           0/5000028");
        let ran = control("shut down", "checkpoint location:           0/7000028");
        let mark = Mark::new("today", &before, 2);
        let rewound = Some(Method::Rewind);
        for (name, boot, control, label, expected) in [
            ("cut short", "today", &before, None, "repeat"),
            ("cut short after the label", "today", &before, rewound, "repeat"),
            ("cut short, then a power loss", "later", &before, None, "restarted"),
            ("cut short while it synced", "today", &after, rewound, "finish"),
            ("not synced, then a power loss", "later", &after, rewound, "restarted"),
            ("replaced by a backup", "later", &after, Some(Method::Streamed), "replaced"),
            ("started by hand", "today", &ran, None, "changed"),
        ] {
            let told = match leftover(&mark, boot, control, label) {
                Leftover::Repeat => "repeat",
                Leftover::Finish => "finish",
                Leftover::Replaced => "replaced",
                Leftover::Lost(why) => why,
            };
            assert!(told.contains(expected), "{name}: {told}");
        }
    }

    #[test]
    fn a_mark_reads_back() {
        let control = control("shut down", "checkpoint location:           0/3000028");
        let mark = Mark::new("5bf194e2-e17f", &control, 7);
        assert_eq!(Mark::parse(&mark.render()), Some(mark));
        assert_eq!(Mark::parse("boot=x\nsystem=7\n"), None);
    }

    #[test]
    fn the_dry_run_says_which_wal_is_needed() {
        let printed = "pg_rewind: servers diverged at WAL location 0/3000000 on timeline 1\n\
            pg_rewind: rewinding from last common checkpoint at 0/2000080 on timeline 1\n\
            pg_rewind: Done!\n";
        let from = reads_from(printed).expect("a position");
        assert_eq!(from, Lsn(0x200_0080));
        assert_eq!(reads_from("pg_rewind: no rewind required\n"), None);
        for (name, wanted) in [
            ("000000010000000000000001", false),
            ("000000010000000000000002", true),
            ("000000010000000000000003", true),
            ("000000010000000100000000", true),
            ("00000002.history", true),
            ("archive_status", false),
            ("000000010000000000000003.00000028.backup", false),
        ] {
            assert_eq!(needed(name, 16 << 20, from), wanted, "{name}");
        }
        assert!(!needed("000000010000000000000003", 0, from), "an emptied segment helps nobody");
    }
}
