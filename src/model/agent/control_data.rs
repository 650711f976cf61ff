//! What `pg_controldata` prints.

use super::lsn::Lsn;

/// The state that the control file records.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseState {
    ShutDown,
    ShutDownInRecovery,
    ShuttingDown,
    InCrashRecovery,
    InArchiveRecovery,
    InProduction,
    StartingUp,
}

/// The facts of the control file that the agent decides on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControlData {
    pub system: String,
    pub state: DatabaseState,
    /// Where the latest checkpoint's record begins.
    pub checkpoint: Lsn,
    /// Where crash recovery would begin.
    pub redo: Lsn,
    pub checkpoint_timeline: u32,
    /// Recovery must reach this before the data is consistent; 0 outside recovery.
    pub minimum_recovery: Lsn,
    pub minimum_recovery_timeline: u32,
    /// A base backup whose start has not been replayed to its end yet.
    pub backup_unfinished: bool,
    /// Whether pages carry checksums.
    pub checksums: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("pg_controldata says nothing usable about `{0}`")]
pub struct Unreadable(pub &'static str);

impl ControlData {
    /// Reads the output of `pg_controldata` under `LC_ALL=C`.
    pub fn parse(text: &str) -> Result<Self, Unreadable> {
        let field = |name: &'static str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .ok_or(Unreadable(name))
        };
        let lsn = |name| field(name)?.parse::<Lsn>().map_err(|_| Unreadable(name));
        let number = |name| field(name)?.parse::<u32>().map_err(|_| Unreadable(name));
        Ok(Self {
            system: field("Database system identifier")?.to_owned(),
            state: state(field("Database cluster state")?)?,
            checkpoint: lsn("Latest checkpoint location")?,
            redo: lsn("Latest checkpoint's REDO location")?,
            checkpoint_timeline: number("Latest checkpoint's TimeLineID")?,
            minimum_recovery: lsn("Minimum recovery ending location")?,
            minimum_recovery_timeline: number("Min recovery ending loc's timeline")?,
            backup_unfinished: lsn("Backup start location")? != Lsn(0),
            checksums: number("Data page checksum version")? != 0,
        })
    }

    /// The timeline of the newest WAL that the control file vouches for.
    pub fn timeline(&self) -> u32 {
        self.checkpoint_timeline.max(self.minimum_recovery_timeline)
    }

    /// Where to begin reading local WAL on [`Self::timeline`] to find its end.
    pub fn read_from(&self) -> Lsn {
        if self.checkpoint_timeline == self.timeline() { self.redo } else { self.minimum_recovery }
    }

    /// Whether the last thing written was the shutdown checkpoint of a primary.
    pub fn cleanly_stopped_primary(&self) -> bool {
        self.state == DatabaseState::ShutDown
    }

    /// Whether the server ended without being told to.
    pub fn crashed(&self) -> bool {
        !matches!(self.state, DatabaseState::ShutDown | DatabaseState::ShutDownInRecovery)
    }

    /// Whether the files were last used by a standby.
    pub fn was_standby(&self) -> bool {
        matches!(self.state, DatabaseState::ShutDownInRecovery | DatabaseState::InArchiveRecovery)
    }
}

fn state(text: &str) -> Result<DatabaseState, Unreadable> {
    Ok(match text {
        "shut down" => DatabaseState::ShutDown,
        "shut down in recovery" => DatabaseState::ShutDownInRecovery,
        "shutting down" => DatabaseState::ShuttingDown,
        "in crash recovery" => DatabaseState::InCrashRecovery,
        "in archive recovery" => DatabaseState::InArchiveRecovery,
        "in production" => DatabaseState::InProduction,
        "starting up" => DatabaseState::StartingUp,
        _ => return Err(Unreadable("Database cluster state")),
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) const STOPPED_PRIMARY: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7432112233445566778
Database cluster state:               shut down
pg_control last modified:             Fri Nov 20 20:00:00 2026
Latest checkpoint location:           0/3000028
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's REDO WAL file:    000000010000000000000003
Latest checkpoint's TimeLineID:       1
Latest checkpoint's PrevTimeLineID:   1
Minimum recovery ending location:     0/0
Min recovery ending loc's timeline:   0
Backup start location:                0/0
Backup end location:                  0/0
Data page checksum version:           1
";

    #[test]
    fn a_stopped_primary_is_recognised() {
        let data = ControlData::parse(STOPPED_PRIMARY).expect("valid");
        assert_eq!(data.system, "7432112233445566778");
        assert!(data.cleanly_stopped_primary() && !data.crashed() && data.checksums);
        assert_eq!((data.timeline(), data.read_from()), (1, Lsn(0x300_0028)));
    }

    #[test]
    fn every_state_is_known_and_others_are_refused() {
        for (text, crashed) in [
            ("shut down in recovery", false),
            ("shutting down", true),
            ("in crash recovery", true),
            ("in archive recovery", true),
            ("in production", true),
            ("starting up", true),
        ] {
            let output = STOPPED_PRIMARY.replace("shut down", text);
            assert_eq!(ControlData::parse(&output).expect(text).crashed(), crashed, "{text}");
        }
        let strange = STOPPED_PRIMARY.replace("shut down", "unrecognized status code");
        assert_eq!(ControlData::parse(&strange), Err(Unreadable("Database cluster state")));
        assert_eq!(ControlData::parse(""), Err(Unreadable("Database system identifier")));
    }

    #[test]
    fn a_standby_is_read_on_the_timeline_that_it_reached() {
        let text = STOPPED_PRIMARY
            .replace("timeline:   0", "timeline:   2")
            .replace("ending location:     0/0", "ending location:     0/4000000");
        let data = ControlData::parse(&text).expect("valid");
        assert_eq!((data.timeline(), data.read_from()), (2, Lsn(0x400_0000)));
    }
}
