//! Whatever happens, and wherever a plan is cut off: whoever may be elected holds what was acknowledged.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    super::{
        cib::{
            Cib, Names,
            tests::{cib, node},
        },
        lsn::Lsn,
        parameters::ReplicationMode,
        quorum::tests::quorum,
        sync_plan::{Row, plan},
    },
    *,
};

const STANDBYS: [&str; 4] = ["pg02", "pg03", "pg04", "pg05"];

#[derive(Debug, Clone, Copy)]
struct Standby {
    streams: bool,
    /// All WAL up to here is on its disk.
    flushed: u64,
}

/// A primary, its standbys, the CIB, and the newest commit that was acknowledged.
#[derive(Debug)]
struct World {
    cib: Cib,
    mode: ReplicationMode,
    quorum_standbys: usize,
    strict: bool,
    standbys: BTreeMap<&'static str, Standby>,
    waits_for: SyncName,
    /// Settings that some process of the server may not have left behind yet.
    in_force: Vec<SyncName>,
    written: u64,
    acknowledged: u64,
}

impl World {
    /// A primary right after its promotion: nobody else may be promoted.
    fn new(mode: ReplicationMode) -> Self {
        let mut nodes = vec![node("pg01", &[], None)];
        nodes.extend(STANDBYS.map(|name| node(name, &[], None)));
        Self {
            cib: cib(nodes),
            mode,
            quorum_standbys: 1,
            strict: false,
            standbys: STANDBYS.map(|name| (name, Standby { streams: false, flushed: 0 })).into(),
            waits_for: SyncName::None,
            in_force: vec![SyncName::None],
            written: 0,
            acknowledged: 0,
        }
    }

    fn plan(&self) -> Vec<Step> {
        let names = Names::of("Postgresql");
        let rows: Vec<_> = self
            .standbys
            .iter()
            .filter(|(_, standby)| standby.streams)
            .map(|(&name, standby)| Row {
                name: name.to_owned(),
                streaming: true,
                is_sync: true,
                flushed: Lsn(standby.flushed),
            })
            .collect();
        plan(View {
            own: "pg01",
            cib: &self.cib,
            names: &names,
            mode: self.mode,
            quorum_standbys: self.quorum_standbys,
            strict: self.strict,
            timeline: Some(3),
            waits_for: Some(&self.waits_for),
            rows: &rows,
        })
    }

    /// Acknowledges whatever any setting that is in force lets through.
    fn acknowledge(&mut self) {
        let flushed = |name: &String| {
            let standby = self.standbys[name.as_str()];
            if standby.streams { standby.flushed } else { 0 }
        };
        let newest = self.in_force.iter().map(|name| match name {
            SyncName::None => self.written,
            SyncName::Block => 0,
            SyncName::Node(node) => flushed(node),
            SyncName::Quorum(quorum) => {
                let mut all: Vec<_> = quorum.members().iter().map(flushed).collect();
                all.sort_unstable_by(|a, b| b.cmp(a));
                all[quorum.needed() - 1]
            }
        });
        self.acknowledged = self.acknowledged.max(newest.max().unwrap_or(0));
    }

    /// Carries one step out; false when it fails, which ends the plan.
    fn carry_out(&mut self, step: &Step) -> bool {
        let names = Names::of("Postgresql");
        let flushed = |name: &String| self.standbys[name.as_str()];
        let caught_up = |standby: Standby| standby.streams && standby.flushed >= self.written;
        match step {
            Step::Score { node, score } => {
                let node = self.cib.nodes.get_mut(node).expect("known");
                node.transient.insert(names.score, score.to_string());
            }
            Step::Status { node, status } => {
                let node = self.cib.nodes.get_mut(node).expect("known");
                node.transient.insert(names.status, status.as_str().to_owned());
            }
            Step::DataStatus(values) => {
                for (node, status) in values {
                    let node = self.cib.nodes.get_mut(node).expect("known");
                    node.permanent.insert(names.data_status.clone(), status.as_str().to_owned());
                }
            }
            Step::Claim(claim) => {
                let own = self.cib.nodes.get_mut("pg01").expect("known");
                match claim {
                    Some(claim) => own.permanent.insert(names.quorum, claim.to_string()),
                    None => own.permanent.remove(&names.quorum),
                };
            }
            Step::WaitFor(name) => {
                self.waits_for = name.clone();
                self.in_force.push(name.clone());
            }
            Step::AwaitSync(node) => {
                self.in_force = vec![self.waits_for.clone()];
                return caught_up(flushed(node));
            }
            Step::AwaitQuorum(quorum) => {
                self.in_force = vec![self.waits_for.clone()];
                let enough = quorum.members().iter().filter(|name| caught_up(flushed(name)));
                return enough.count() >= quorum.needed();
            }
            Step::ConfirmUnpromotable(nodes) => {
                let score = |name: &String| self.cib.nodes[name].score(&names);
                assert!(!nodes.iter().any(|name| score(name).is_some_and(Score::allows_promotion)));
            }
        }
        true
    }

    /// Fails when somebody who may be promoted could lack an acknowledged commit.
    fn check(&self) -> Result<(), TestCaseError> {
        let names = Names::of("Postgresql");
        let flushed = |name: &str| self.standbys[name].flushed;
        if let Some(claim) = self.cib.nodes["pg01"].quorum_claim(&names) {
            // The worst of all elections: those that lack most are the ones that are seen.
            let mut all: Vec<_> = claim.quorum.members().iter().map(|m| flushed(m)).collect();
            all.sort_unstable();
            let elected = all[claim.quorum.to_be_seen() - 1];
            prop_assert!(elected >= self.acknowledged, "{claim}: {self:?}");
        }
        for node in self.cib.nodes.values().filter(|node| node.name != "pg01") {
            if node.data_status(&names) == Some(DataStatus::Sync) {
                prop_assert!(flushed(&node.name) >= self.acknowledged, "{}: {self:?}", node.name);
            }
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
enum Event {
    Write(u64),
    /// A standby flushes everything, or half of what it lacks.
    Flush(usize, bool),
    Connect(usize, bool),
    Member(usize, bool),
    Leaves(usize, bool),
    Needs(usize),
    Strict(bool),
    Mode(ReplicationMode),
    /// A monitor that is killed after so many steps, with other things going on between them.
    Monitor(usize, Vec<Event>),
}

fn small_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => (1u64..4).prop_map(Event::Write),
        4 => (0usize..4, any::<bool>()).prop_map(|(who, all)| Event::Flush(who, all)),
        2 => (0usize..4, prop::bool::weighted(0.6)).prop_map(|(who, up)| Event::Connect(who, up)),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    let modes = [ReplicationMode::Quorum, ReplicationMode::Sync, ReplicationMode::Async];
    prop_oneof![
        6 => small_event(),
        1 => (0usize..4, any::<bool>()).prop_map(|(who, online)| Event::Member(who, online)),
        1 => (0usize..4, any::<bool>()).prop_map(|(who, leaves)| Event::Leaves(who, leaves)),
        1 => (1usize..4).prop_map(Event::Needs),
        1 => any::<bool>().prop_map(Event::Strict),
        1 => prop::sample::select(modes.to_vec()).prop_map(Event::Mode),
        6 => (prop_oneof![1 => 0usize..8, 1 => Just(99)], prop::collection::vec(small_event(), 8))
            .prop_map(|(killed_after, between)| Event::Monitor(killed_after, between)),
    ]
}

fn happen(world: &mut World, event: &Event) -> Result<(), TestCaseError> {
    let names = Names::of("Postgresql");
    match event {
        Event::Write(records) => world.written += records,
        Event::Flush(who, all) => {
            let written = world.written;
            let standby = world.standbys.get_mut(STANDBYS[*who]).expect("known");
            if standby.streams {
                let lacks = written - standby.flushed;
                standby.flushed += if *all { lacks } else { lacks / 2 };
            }
        }
        Event::Connect(who, up) => {
            world.standbys.get_mut(STANDBYS[*who]).expect("known").streams = *up;
        }
        Event::Member(who, online) => {
            world.cib.nodes.get_mut(STANDBYS[*who]).expect("known").online = *online;
        }
        Event::Leaves(who, leaves) => {
            let word = if *leaves { Status::Stopped } else { Status::Alone };
            let node = world.cib.nodes.get_mut(STANDBYS[*who]).expect("known");
            node.transient.insert(names.status, word.as_str().to_owned());
        }
        Event::Needs(number) => world.quorum_standbys = *number,
        Event::Strict(strict) => world.strict = *strict,
        Event::Mode(mode) => world.mode = *mode,
        Event::Monitor(killed_after, between) => {
            let mut others = between.iter().cycle();
            for step in world.plan().iter().take(*killed_after) {
                let carried_out = world.carry_out(step);
                world.check()?;
                for event in others.by_ref().take(2) {
                    happen(world, event)?;
                }
                if !carried_out {
                    break;
                }
            }
        }
    }
    world.acknowledge();
    world.check()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn whoever_may_be_elected_holds_every_acknowledged_commit(
        events in prop::collection::vec(any_event(), 1..60),
    ) {
        let mut world = World::new(ReplicationMode::Quorum);
        for event in &events {
            happen(&mut world, event)?;
        }
    }

    #[test]
    fn plans_carried_out_leave_nothing_to_do(events in prop::collection::vec(any_event(), 1..40)) {
        let mut world = World::new(ReplicationMode::Quorum);
        for event in &events {
            happen(&mut world, event)?;
        }
        for standby in world.standbys.values_mut().filter(|standby| standby.streams) {
            standby.flushed = world.written;
        }
        for step in world.plan() {
            prop_assert!(world.carry_out(&step), "{step:?}");
        }
        prop_assert_eq!(world.plan(), []);
    }
}

fn any_of(needed: usize, members: &[&str]) -> SyncName {
    SyncName::Quorum(quorum(needed, members))
}

fn claim(needed: usize, members: &[&str]) -> Step {
    Step::Claim(Some(QuorumClaim { quorum: quorum(needed, members), timeline: 3 }))
}

fn score(node: &str, score: Score) -> Step {
    Step::Score { node: node.to_owned(), score }
}

/// pg02 and pg03 stream, are named and may be elected; the other two were never there.
fn healthy() -> World {
    let mut world = World::new(ReplicationMode::Quorum);
    for name in ["pg02", "pg03"] {
        world.standbys.get_mut(name).expect("known").streams = true;
    }
    for name in ["pg04", "pg05"] {
        world.cib.nodes.remove(name);
    }
    for step in world.plan() {
        assert!(world.carry_out(&step));
    }
    world
}

#[test]
fn a_healthy_quorum_needs_nothing() {
    let world = healthy();
    assert_eq!(world.plan(), []);
    assert_eq!(world.waits_for, any_of(1, &["pg02", "pg03"]));
    let names = Names::of("Postgresql");
    assert_eq!(world.cib.nodes["pg02"].score(&names), Some(Score::SYNC));
    assert_eq!(world.cib.nodes["pg02"].status(&names), Some(Status::Quorum));
}

#[test]
fn the_claim_shrinks_only_after_those_left_have_caught_up() {
    let mut world = healthy();
    world.standbys.get_mut("pg02").expect("known").streams = false;
    assert_eq!(
        world.plan(),
        [
            score("pg02", Score::NEVER),
            Step::DataStatus(vec![("pg02".into(), DataStatus::Disconnected)]),
            Step::ConfirmUnpromotable(vec!["pg02".into()]),
            Step::WaitFor(any_of(1, &["pg03"])),
            Step::AwaitQuorum(quorum(1, &["pg03"])),
            claim(1, &["pg03"]),
        ]
    );
}

#[test]
fn a_claim_that_shrinks_too_early_is_seen_by_the_check() {
    for skipped in [
        |step: &Step| matches!(step, Step::AwaitQuorum(_)),
        |step: &Step| matches!(step, Step::AwaitQuorum(_) | Step::WaitFor(_)),
    ] {
        let mut world = healthy();
        happen(&mut world, &Event::Write(4)).expect("sound");
        happen(&mut world, &Event::Flush(0, true)).expect("sound");
        assert_eq!(world.acknowledged, 4, "pg02 has it, and pg03 has not");
        happen(&mut world, &Event::Connect(0, false)).expect("sound");
        for step in world.plan().iter().filter(|step| !skipped(step)) {
            world.check().expect("the claim has not shrunk yet");
            world.carry_out(step);
        }
        assert!(world.check().is_err(), "pg03 alone would be elected: {world:?}");
    }
}

#[test]
fn the_claim_grows_before_commits_wait_for_a_new_member() {
    let mut world = healthy();
    world.standbys.get_mut("pg02").expect("known").streams = false;
    for step in world.plan() {
        world.carry_out(&step);
    }
    world.standbys.get_mut("pg02").expect("known").streams = true;
    assert_eq!(
        world.plan()[..2],
        [claim(1, &["pg02", "pg03"]), Step::DataStatus(vec![("pg02".into(), DataStatus::Quorum)])]
    );
    assert_eq!(
        world.plan()[2..4],
        [Step::WaitFor(any_of(1, &["pg02", "pg03"])), score("pg02", Score::SYNC)]
    );
}

#[test]
fn the_claim_is_gone_before_nobody_is_waited_for() {
    let mut world = healthy();
    for standby in world.standbys.values_mut() {
        standby.streams = false;
    }
    let lost = |name: &str| (name.to_owned(), DataStatus::Disconnected);
    assert_eq!(
        world.plan(),
        [
            score("pg02", Score::NEVER),
            score("pg03", Score::NEVER),
            Step::Claim(None),
            Step::DataStatus(vec![lost("pg02"), lost("pg03")]),
            Step::ConfirmUnpromotable(vec!["pg02".into(), "pg03".into()]),
            Step::WaitFor(SyncName::None),
        ]
    );
}

#[test]
fn a_strict_quorum_keeps_waiting_and_keeps_its_members_electable() {
    let mut world = healthy();
    world.strict = true;
    for standby in world.standbys.values_mut() {
        standby.streams = false;
    }
    assert_eq!(world.plan(), []);
    world.quorum_standbys = 2;
    assert_eq!(world.plan(), [Step::WaitFor(SyncName::Block)]);
}

#[test]
fn one_more_needed_is_promised_last_and_one_less_first() {
    let mut world = healthy();
    world.quorum_standbys = 2;
    let both = ["pg02", "pg03"];
    let raised =
        [Step::WaitFor(any_of(2, &both)), Step::AwaitQuorum(quorum(2, &both)), claim(2, &both)];
    assert_eq!(world.plan(), raised);
    for step in raised {
        assert!(world.carry_out(&step));
    }
    world.quorum_standbys = 1;
    assert_eq!(world.plan(), [claim(1, &both), Step::WaitFor(any_of(1, &both))]);
}

#[test]
fn going_over_from_sync_the_standby_stays_electable_all_the_time() {
    let mut world = healthy();
    world.mode = ReplicationMode::Sync;
    for step in world.plan() {
        assert!(world.carry_out(&step));
    }
    let names = Names::of("Postgresql");
    assert_eq!(world.cib.nodes["pg01"].permanent.get(&names.quorum), None);
    world.mode = ReplicationMode::Quorum;
    let plan = world.plan();
    assert_eq!(plan[0], claim(1, &["pg02", "pg03"]));
    let both = ["pg02", "pg03"].map(|name| (name.to_owned(), DataStatus::Quorum));
    assert_eq!(plan[1], Step::DataStatus(both.into()));
    assert_eq!(plan[2], Step::WaitFor(any_of(1, &["pg02", "pg03"])));
}

#[test]
fn the_claim_of_an_earlier_reign_counts_for_nothing() {
    let mut world = healthy();
    let names = Names::of("Postgresql");
    let own = world.cib.nodes.get_mut("pg01").expect("known");
    own.permanent.insert(names.quorum, "1 of pg02,pg03 on timeline 2".to_owned());
    let plan = world.plan();
    assert!(plan.contains(&Step::Claim(None)), "{plan:?}");
    let await_at = plan.iter().position(|step| matches!(step, Step::AwaitQuorum(_)));
    let claim_at = plan.iter().position(|step| *step == claim(1, &["pg02", "pg03"]));
    assert!(await_at.is_some() && await_at < claim_at, "{plan:?}");
}
