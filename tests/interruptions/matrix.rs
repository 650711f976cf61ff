//! The table: where a failover is interrupted, and how.

use std::time::Duration;

use crate::relay::When::{self, After, Before};

/// Agents by what they are when the failover begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// The proxy of the application's host.
    App,
    /// The proxy on the primary's node.
    PrimaryProxy,
    /// The supervise of the primary.
    Primary,
    /// The supervise of the node that is to become primary.
    Target,
}

impl Who {
    /// `host/kind`, while `primary` is the primary.
    pub(crate) fn agent(self, primary: &str) -> String {
        let target = if primary == "pg01" { "pg02" } else { "pg01" };
        match self {
            Self::App => "app01/proxy".to_owned(),
            Self::PrimaryProxy => format!("{primary}/proxy"),
            Self::Primary => format!("{primary}/supervise"),
            Self::Target => format!("{target}/supervise"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// A step has just begun.
    Begins,
    /// The lock is in etcd.
    Locked,
    /// A call is held on its way to an agent, or its answer on the way back.
    Call(Who, &'static str, When),
    /// The old primary is down, the new one not promoted.
    Moving,
}

/// Where a failover is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Point {
    pub(crate) name: &'static str,
    /// Step of the failover that this is in.
    pub(crate) step: &'static str,
    pub(crate) place: Place,
    /// It was asked to stop before, there, and is being undone.
    pub(crate) stopped: Option<Place>,
}

const fn at(name: &'static str, step: &'static str, place: Place) -> Point {
    Point { name, step, place, stopped: None }
}

const fn undo(name: &'static str, step: &'static str, stopped: Place, place: Place) -> Point {
    Point { name, step, place, stopped: Some(stopped) }
}

const PAUSED_ALL: Place = Place::Call(Who::PrimaryProxy, "pause", After);

/// Every step, and what is in the middle of it; then what undoes them.
pub(crate) const POINTS: [Point; 21] = [
    at("check", "checks", Place::Call(Who::App, "check", Before)),
    at("locked", "lock", Place::Locked),
    at("prepare", "prepare", Place::Call(Who::Primary, "prepare", Before)),
    at("prepared", "prepare", Place::Call(Who::Primary, "prepare", After)),
    at("pause", "pause", Place::Call(Who::App, "pause", Before)),
    at("paused-some", "pause", Place::Call(Who::App, "pause", After)),
    at("paused-all", "pause", PAUSED_ALL),
    at("migrate", "migrate", Place::Call(Who::Primary, "migrate", Before)),
    at("moving", "migrate", Place::Moving),
    at("migrated", "migrate", Place::Call(Who::Primary, "migrate", After)),
    at("follow", "follow", Place::Call(Who::App, "follow", Before)),
    at("followed", "follow", Place::Call(Who::App, "follow", After)),
    at("let-go", "follow", Place::Call(Who::App, "resume", Before)),
    at("resumed", "follow", Place::Call(Who::App, "resume", After)),
    at("resume", "resume", Place::Begins),
    at("unmigrate", "unmigrate", Place::Call(Who::Primary, "unmigrate", Before)),
    at("unmigrated", "unmigrate", Place::Call(Who::Primary, "unmigrate", After)),
    at("verify", "verify", Place::Begins),
    undo("undo-pause", "pause", PAUSED_ALL, Place::Call(Who::App, "resume", Before)),
    undo("undo-move", "migrate", Place::Moving, Place::Call(Who::Primary, "unmigrate", Before)),
    undo("undone-move", "migrate", Place::Moving, Place::Call(Who::Primary, "unmigrate", After)),
];

impl Place {
    /// Whether the failover stands still there.
    pub(crate) fn is_exact(self) -> bool {
        matches!(self, Self::Call(..) | Self::Moving)
    }
}

impl Point {
    /// Where the failover is held first.
    pub(crate) fn first(self) -> Place {
        self.stopped.unwrap_or(self.place)
    }

    /// Whether the attempt has written down that it begins.
    pub(crate) fn is_on_record(self) -> bool {
        !["check", "locked"].contains(&self.name)
    }

    /// Whether the coordinator holds the lock.
    pub(crate) fn is_locked(self) -> bool {
        self.name != "check" && self.name != "verify"
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// The coordinator is gone at once.
    Kill,
    /// It is asked to stop.
    Terminate,
    /// Ctrl-C, and again out of impatience.
    Interrupt,
    /// Its terminal is gone.
    HangUp,
    /// It stands still for longer than its lease.
    Freeze,
    CutFromEtcd,
    CutFromOne,
    CutFromAll,
    /// It is gone, another failover is done, and only then a call of the first arrives.
    Overtaken,
    /// It is gone, and the pause expires while the primary is still on its way.
    Outlast,
    /// An agent is killed, and started again as its service manager would.
    KillAgent(Who),
    /// An agent is stopped in good order, and started again.
    RestartAgent(Who),
    /// An agent does not reach etcd for a while.
    CutAgentFromEtcd(Who),
    /// An agent stands still for a while.
    FreezeAgent(Who),
    /// The application's PgBouncer is killed and started again.
    KillPgbouncer,
    /// It stands still for a while.
    FreezePgbouncer,
    /// Both at once, as a machine that reboots: nothing is left of the pause.
    KillAppHost,
    KillEtcd,
    FreezeEtcd,
}

const WAYS: [(&str, Way); 24] = [
    ("kill", Way::Kill),
    ("terminate", Way::Terminate),
    ("interrupt", Way::Interrupt),
    ("hang-up", Way::HangUp),
    ("freeze", Way::Freeze),
    ("cut-from-etcd", Way::CutFromEtcd),
    ("cut-from-one", Way::CutFromOne),
    ("cut-from-all", Way::CutFromAll),
    ("overtake", Way::Overtaken),
    ("outlast", Way::Outlast),
    ("kill-app-proxy", Way::KillAgent(Who::App)),
    ("kill-primary-supervise", Way::KillAgent(Who::Primary)),
    ("kill-target-supervise", Way::KillAgent(Who::Target)),
    ("freeze-app-proxy", Way::FreezeAgent(Who::App)),
    ("freeze-primary-supervise", Way::FreezeAgent(Who::Primary)),
    ("freeze-target-supervise", Way::FreezeAgent(Who::Target)),
    ("restart-app-proxy", Way::RestartAgent(Who::App)),
    ("cut-app-proxy-from-etcd", Way::CutAgentFromEtcd(Who::App)),
    ("cut-target-supervise-from-etcd", Way::CutAgentFromEtcd(Who::Target)),
    ("kill-pgbouncer", Way::KillPgbouncer),
    ("freeze-pgbouncer", Way::FreezePgbouncer),
    ("kill-app-host", Way::KillAppHost),
    ("kill-etcd", Way::KillEtcd),
    ("freeze-etcd", Way::FreezeEtcd),
];

impl Way {
    fn applies_at(self, point: Point) -> bool {
        match self {
            // On its way is a call that would hold clients, move the primary, or end either.
            Self::Overtaken => {
                matches!(point.place, Place::Call(_, call, Before) if !["check", "prepare", "follow"].contains(&call))
            }
            Self::Outlast => point.place == Place::Moving,
            _ => true,
        }
    }

    /// Whether the coordinator ends without a word.
    pub(crate) fn kills_coordinator(self) -> bool {
        matches!(self, Self::Kill | Self::Overtaken | Self::Outlast)
    }

    /// Whether the application's PgBouncer dies, and its clients' connections with it.
    pub(crate) fn kills_pgbouncer(self) -> bool {
        matches!(self, Self::KillPgbouncer | Self::KillAppHost)
    }
}

/// One interruption.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) way: Way,
    pub(crate) way_name: &'static str,
    pub(crate) point: Point,
}

impl Cell {
    /// `way@point`.
    pub(crate) fn name(self) -> String {
        format!("{}@{}", self.way_name, self.point.name)
    }
}

/// All interruptions whose names contain one of `words`; all, when there are no words.
pub(crate) fn cells(words: &str) -> Vec<Cell> {
    let mut cells = Vec::new();
    for point in POINTS {
        for (way_name, way) in WAYS {
            let cell = Cell { way, way_name, point };
            let named =
                words.is_empty() || words.split_whitespace().any(|w| cell.name().contains(w));
            if way.applies_at(point) && named {
                cells.push(cell);
            }
        }
    }
    cells
}

/// How long a machine takes to start again what was killed on it.
pub(crate) const RESTART: Duration = Duration::from_millis(300);

#[test]
fn every_way_and_every_point_is_had() {
    let all = cells("");
    for (name, way) in WAYS {
        assert!(all.iter().any(|cell| cell.way == way), "{name}");
    }
    for point in POINTS {
        assert!(all.iter().filter(|cell| cell.point == point).count() >= 6, "{}", point.name);
    }
    assert_eq!(cells("kill@moving").len(), 1);
}
