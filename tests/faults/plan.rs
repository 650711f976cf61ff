//! What a seed stands for: which fault strikes which node, when, and for how long.

use std::{fmt, ops::Range, time::Duration};

use crate::random::Random;

/// What can be done to one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    KillPostmaster,
    KillBackend,
    KillWalreceiver,
    KillPacemakerd,
    KillCorosync,
    KillContainer,
    /// SIGSTOP for every process of the node's Postgres, later SIGCONT.
    StopPostgres,
    StopCorosync,
    /// The whole container stands still, as a virtual machine that is migrated.
    PauseContainer,
    /// The node reaches none of the other machines, and they do not reach it.
    Partition,
    /// The node hears nothing, but is heard.
    DropIncoming,
    /// The node is not heard, but hears.
    DropOutgoing,
    CutEtcd,
    CutCorosync,
    CutReplication,
    DiskFull,
}

/// The node that a fault strikes, by what it is when the round begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    Primary,
    Sync,
    Other,
}

const ANY: &[Target] = &[Target::Primary, Target::Primary, Target::Sync, Target::Other];
const STANDBYS: &[Target] = &[Target::Sync, Target::Other];
const PRIMARY: &[Target] = &[Target::Primary];

/// Longer than Corosync's token timeout, which is 3.65 s for three nodes.
const LONG: Range<u64> = 5_000..20_000;
/// How long what was killed is left to itself before a machine that is off is started again.
const AFTER_A_KILL: Range<u64> = 4_000..15_000;

impl Fault {
    pub(crate) const ALL: [Self; 16] = [
        Self::KillPostmaster,
        Self::KillBackend,
        Self::KillWalreceiver,
        Self::KillPacemakerd,
        Self::KillCorosync,
        Self::KillContainer,
        Self::StopPostgres,
        Self::StopCorosync,
        Self::PauseContainer,
        Self::Partition,
        Self::DropIncoming,
        Self::DropOutgoing,
        Self::CutEtcd,
        Self::CutCorosync,
        Self::CutReplication,
        Self::DiskFull,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::KillPostmaster => "kill-postmaster",
            Self::KillBackend => "kill-backend",
            Self::KillWalreceiver => "kill-walreceiver",
            Self::KillPacemakerd => "kill-pacemakerd",
            Self::KillCorosync => "kill-corosync",
            Self::KillContainer => "kill-container",
            Self::StopPostgres => "stop-postgres",
            Self::StopCorosync => "stop-corosync",
            Self::PauseContainer => "pause-container",
            Self::Partition => "partition",
            Self::DropIncoming => "drop-incoming",
            Self::DropOutgoing => "drop-outgoing",
            Self::CutEtcd => "cut-etcd",
            Self::CutCorosync => "cut-corosync",
            Self::CutReplication => "cut-replication",
            Self::DiskFull => "disk-full",
        }
    }

    fn targets(self) -> &'static [Target] {
        match self {
            Self::KillWalreceiver | Self::CutReplication => STANDBYS,
            Self::KillBackend => PRIMARY,
            _ => ANY,
        }
    }

    fn holds(self) -> Range<u64> {
        match self {
            Self::KillPostmaster
            | Self::KillBackend
            | Self::KillWalreceiver
            | Self::KillPacemakerd
            | Self::KillCorosync
            | Self::KillContainer => AFTER_A_KILL,
            _ => LONG,
        }
    }
}

/// One fault on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Strike {
    pub(crate) fault: Fault,
    pub(crate) target: Target,
    /// From the fault to its healing.
    pub(crate) hold: Duration,
}

impl Strike {
    fn draw(fault: Fault, random: &mut Random) -> Self {
        let target = random.pick(fault.targets());
        Self { fault, target, hold: random.time(&fault.holds()) }
    }
}

impl fmt::Display for Strike {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = match self.target {
            Target::Primary => "the primary",
            Target::Sync => "the sync standby",
            Target::Other => "the other standby",
        };
        write!(f, "{} on {target} for {:.1} s", self.fault.name(), self.hold.as_secs_f64())
    }
}

/// What happens in one round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    One(Strike),
    /// The strike comes `after` the start of `pgcm failover`.
    DuringSwitchover {
        after: Duration,
        strike: Strike,
    },
    /// The second strike comes while the cluster still heals from the first.
    TwoInARow {
        first: Strike,
        pause: Duration,
        second: Strike,
    },
    /// The sync standby is cut off from the primary; as soon as commits flow without it the primary
    /// dies. The standby lacks those commits: promoting it would lose them.
    StaleStandby {
        after: Duration,
        hold: Duration,
    },
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::One(strike) => write!(f, "{strike}"),
            Self::DuringSwitchover { after, strike } => {
                write!(f, "{strike}, {} ms into a switchover", after.as_millis())
            }
            Self::TwoInARow { first, pause, second } => {
                write!(f, "{first}, {} ms later {second}", pause.as_millis())
            }
            Self::StaleStandby { after, .. } => write!(
                f,
                "replication to the sync standby cut; {} ms after commits flow again the primary dies",
                after.as_millis()
            ),
        }
    }
}

/// What a round is about; the rows of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain(Fault),
    DuringSwitchover,
    TwoInARow,
    StaleStandby,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Plain(fault) => fault.name(),
            Self::DuringSwitchover => "during-switchover",
            Self::TwoInARow => "two-in-a-row",
            Self::StaleStandby => "stale-standby",
        }
    }

    /// Every kind, as often as it should come before all have been had: the faults that hide many
    /// others come more than once.
    fn deck() -> Vec<Self> {
        let plain = Fault::ALL.into_iter().map(Self::Plain);
        let many = [Self::DuringSwitchover, Self::TwoInARow];
        let rest = many.into_iter().flat_map(|kind| [kind; 4]).chain([Self::StaleStandby]);
        plain.chain(rest).collect()
    }

    /// The kinds with these names.
    ///
    /// # Errors
    /// The name that there is not, with those that there are.
    pub(crate) fn named(names: &[&str]) -> Result<Vec<Self>, String> {
        let known = |name: &&str| Self::deck().iter().any(|kind| kind.name() == *name);
        if let Some(unknown) = names.iter().find(|name| !known(name)) {
            let mut all: Vec<_> = Self::deck().into_iter().map(Self::name).collect();
            all.dedup();
            return Err(format!("there is no fault '{unknown}', but: {}", all.join(" ")));
        }
        let mut kinds = Self::deck();
        kinds.retain(|kind| names.is_empty() || names.contains(&kind.name()));
        Ok(kinds)
    }
}

/// What the round with this seed is about, and what happens in it.
pub(crate) fn round(seed: u32) -> (Kind, Plan) {
    let mut random = Random::of(u64::from(seed));
    let kind = random.pick(&Kind::deck());
    let plan = match kind {
        Kind::Plain(fault) => Plan::One(Strike::draw(fault, &mut random)),
        Kind::DuringSwitchover => {
            let after = random.time(&(0..1_500));
            let fault = random.pick(&Fault::ALL);
            Plan::DuringSwitchover { after, strike: Strike::draw(fault, &mut random) }
        }
        Kind::TwoInARow => {
            let (first, second) = (random.pick(&Fault::ALL), random.pick(&Fault::ALL));
            Plan::TwoInARow {
                first: Strike::draw(first, &mut random),
                pause: random.time(&(0..4_000)),
                second: Strike::draw(second, &mut random),
            }
        }
        Kind::StaleStandby => Plan::StaleStandby {
            after: random.time(&(100..1_000)),
            hold: random.time(&(12_000..20_000)),
        },
    };
    (kind, plan)
}

/// The seeds of `count` rounds over `kinds`.
///
/// The first is `seed` itself, where its kind is wanted, so that every round can be run again alone.
/// No kind comes again before all have been had.
pub(crate) fn seeds(seed: u32, kinds: &[Kind], count: usize) -> Vec<u32> {
    let mut random = Random::of(u64::from(seed));
    let mut left = Vec::new();
    let mut seeds = Vec::new();
    let mut candidate = seed;
    while seeds.len() < count {
        if left.is_empty() {
            left = kinds.to_vec();
        }
        let (kind, _) = round(candidate);
        if let Some(position) = left.iter().position(|&wanted| wanted == kind) {
            left.swap_remove(position);
            seeds.push(candidate);
        }
        candidate = u32::try_from(random.next() >> 32).unwrap();
    }
    seeds
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixty_rounds_cover_every_fault() {
        let kinds = Kind::named(&[]).unwrap();
        for seed in [1, 2, 99] {
            let had: Vec<_> =
                seeds(seed, &kinds, 60).into_iter().map(|seed| round(seed).0).collect();
            for kind in &kinds {
                assert!(had.contains(kind), "{} with seed {seed}", kind.name());
            }
        }
    }

    #[test]
    fn a_printed_seed_runs_the_same_round_again() {
        let all = Kind::named(&[]).unwrap();
        for seed in seeds(5, &all, 100) {
            assert_eq!(seeds(seed, &all, 1), [seed]);
            assert_eq!(round(seed), round(seed));
        }
    }

    #[test]
    fn only_the_faults_that_were_named_come() {
        let kinds = Kind::named(&["kill-container", "two-in-a-row"]).unwrap();
        for seed in seeds(1, &kinds, 20) {
            assert!(["kill-container", "two-in-a-row"].contains(&round(seed).0.name()));
        }
        let error = Kind::named(&["kill-everything"]).unwrap_err();
        assert!(error.contains("kill-everything") && error.contains("kill-postmaster"), "{error}");
    }

    #[test]
    fn stops_and_partitions_outlast_the_token_timeout() {
        for fault in [Fault::StopCorosync, Fault::PauseContainer, Fault::Partition] {
            assert!(fault.holds().start > 3_650, "{}", fault.name());
        }
    }
}
