//! The plan's order and its fixed point.

use proptest::prelude::*;

use super::{
    super::cib::tests::{cib, node},
    *,
};

fn row(name: &str, is_sync: bool, flushed: u64) -> Row {
    Row { name: name.to_owned(), streaming: true, is_sync, flushed: Lsn(flushed) }
}

fn named(name: &str) -> SyncName {
    SyncName::Node(name.to_owned())
}

#[derive(Debug)]
struct Case {
    cib: Cib,
    mode: ReplicationMode,
    strict: bool,
    waits_for: SyncName,
    rows: Vec<Row>,
}

impl Case {
    fn plan(&self) -> Vec<Step> {
        let names = Names::of("Postgresql");
        plan(View {
            own: "pg01",
            cib: &self.cib,
            names: &names,
            mode: self.mode,
            quorum_standbys: 1,
            strict: self.strict,
            timeline: Some(1),
            waits_for: Some(&self.waits_for),
            rows: &self.rows,
        })
    }

    /// Carries the plan out on the model of the world.
    fn apply(&mut self, steps: &[Step]) {
        let names = Names::of("Postgresql");
        let mut set = |node: &str, key: &String, value: String| {
            let node = self.cib.nodes.get_mut(node).expect("a known node");
            node.transient.insert(key.clone(), value);
        };
        for step in steps {
            match step {
                Step::Score { node, score } => set(node, &names.score, score.to_string()),
                Step::Status { node, status } => {
                    set(node, &names.status, status.as_str().to_owned());
                }
                _ => {}
            }
        }
        for step in steps {
            match step {
                Step::DataStatus(values) => {
                    for (node, value) in values {
                        let node = self.cib.nodes.get_mut(node).expect("a known node");
                        let value = value.as_str().to_owned();
                        node.permanent.insert(names.data_status.clone(), value);
                    }
                }
                Step::WaitFor(name) => self.waits_for = name.clone(),
                _ => {}
            }
        }
    }
}

/// pg01 is the primary, pg02 its synchronous and pg03 its potential standby.
fn healthy() -> Case {
    Case {
        cib: cib(vec![
            node("pg01", &[("status", "PRI"), ("score", "1000")], Some("LATEST")),
            node("pg02", &[("status", "HS:sync"), ("score", "100")], Some("STREAMING|SYNC")),
            node(
                "pg03",
                &[("status", "HS:potential"), ("score", "-INFINITY")],
                Some("STREAMING|POTENTIAL"),
            ),
        ]),
        mode: ReplicationMode::Sync,
        strict: false,
        waits_for: named("pg02"),
        rows: vec![row("pg02", true, 0x500), row("pg03", false, 0x500)],
    }
}

#[test]
fn a_healthy_cluster_needs_nothing() {
    assert_eq!(healthy().plan(), []);
}

#[test]
fn a_lost_standby_is_unpromotable_before_the_primary_stops_waiting() {
    let mut case = healthy();
    case.rows.remove(0);
    assert_eq!(
        case.plan(),
        [
            Step::Score { node: "pg02".into(), score: Score::NEVER },
            Step::DataStatus(vec![("pg02".into(), DataStatus::Disconnected)]),
            Step::ConfirmUnpromotable(vec!["pg02".into()]),
            Step::WaitFor(named("pg03")),
            Step::AwaitSync("pg03".into()),
            Step::DataStatus(vec![("pg03".into(), DataStatus::Sync)]),
            Step::Score { node: "pg03".into(), score: Score::SYNC },
            Step::Status { node: "pg03".into(), status: Status::Sync },
        ]
    );
}

#[test]
fn with_both_standbys_lost_the_primary_goes_on_alone_unless_strict() {
    let mut case = healthy();
    case.rows.clear();
    assert!(case.plan().contains(&Step::WaitFor(SyncName::None)));
    case.strict = true;
    let plan = case.plan();
    assert!(!plan.iter().any(|step| matches!(step, Step::WaitFor(_))), "{plan:?}");
    let revoked = |step: &Step| matches!(step, Step::Score { node, .. } if node == "pg02");
    assert!(!plan.iter().any(revoked), "writes are blocked, so pg02 still holds them all");
}

#[test]
fn a_strict_primary_without_standbys_blocks_writes() {
    let mut case = healthy();
    case.rows.clear();
    case.strict = true;
    case.waits_for = SyncName::None;
    assert!(case.plan().contains(&Step::WaitFor(SyncName::Block)));
}

#[test]
fn a_standby_that_is_named_but_not_proven_is_only_awaited() {
    let mut case = healthy();
    let names = Names::of("Postgresql");
    let pg02 = case.cib.nodes.get_mut("pg02").expect("there");
    pg02.transient.insert(names.score, "-INFINITY".to_owned());
    let plan = case.plan();
    let steps =
        [Step::AwaitSync("pg02".into()), Step::Score { node: "pg02".into(), score: Score::SYNC }];
    assert_eq!(plan, steps);
}

#[test]
fn asynchronous_standbys_are_promotable_while_they_stream() {
    let mut case = healthy();
    case.mode = ReplicationMode::Async;
    let plan = case.plan();
    assert!(plan.contains(&Step::WaitFor(SyncName::None)));
    assert!(plan.contains(&Step::Score { node: "pg03".into(), score: Score::SYNC }));
    assert!(!plan.contains(&Step::Score { node: "pg02".into(), score: Score::NEVER }));
}

fn any_case() -> impl Strategy<Value = Case> {
    let score = prop::option::of(prop::sample::select(vec!["-INFINITY", "100", "1000", "0"]));
    let status = prop::option::of(prop::sample::select(vec!["PRI", "HS:sync", "HS:alone", "STOP"]));
    let data = prop::option::of(prop::sample::select(vec![
        "LATEST",
        "STREAMING|SYNC",
        "STREAMING|POTENTIAL",
        "DISCONNECT",
    ]));
    let nodes = prop::collection::vec((score, status, data, any::<bool>()), 3);
    let rows = prop::collection::vec(prop::option::of((any::<bool>(), any::<bool>(), 0u64..3)), 3);
    let waits_for = prop::sample::select(vec![
        SyncName::None,
        SyncName::Block,
        named("pg02"),
        named("pg03"),
        named("gone"),
    ]);
    (nodes, rows, waits_for, any::<bool>(), any::<bool>()).prop_map(
        |(nodes, rows, waits_for, sync, strict)| {
            let name = |index: usize| format!("pg0{}", index + 1);
            let nodes =
                nodes.into_iter().enumerate().map(|(index, (score, status, data, online))| {
                    let pairs: Vec<_> = score
                        .map(|value| ("score", value))
                        .into_iter()
                        .chain(status.map(|value| ("status", value)))
                        .collect();
                    let mut node = node(&name(index), &pairs, data);
                    node.online = online || index == 0;
                    node
                });
            let rows = rows.into_iter().enumerate().skip(1).filter_map(|(index, row)| {
                let (streaming, is_sync, flushed) = row?;
                Some(Row { name: name(index), streaming, is_sync, flushed: Lsn(flushed) })
            });
            Case {
                cib: cib(nodes.collect()),
                mode: if sync { ReplicationMode::Sync } else { ReplicationMode::Async },
                strict,
                waits_for,
                rows: rows.collect(),
            }
        },
    )
}

proptest! {
    #[test]
    fn whoever_is_no_longer_waited_for_was_unpromotable_before(case in any_case()) {
        let names = Names::of("Postgresql");
        let steps = case.plan();
        let Some(at) = steps.iter().position(|step| matches!(step, Step::WaitFor(_))) else {
            return Ok(());
        };
        if case.mode == ReplicationMode::Async {
            return Ok(());
        }
        for other in case.cib.nodes.values().filter(|node| node.name != "pg01") {
            if other.score(&names).is_some_and(Score::allows_promotion) {
                let revoke = Step::Score { node: other.name.clone(), score: Score::NEVER };
                prop_assert!(steps[..at].contains(&revoke), "{steps:?}");
                let confirmed = steps[..at].iter().any(|step| {
                    matches!(step, Step::ConfirmUnpromotable(nodes) if nodes.contains(&other.name))
                });
                prop_assert!(confirmed, "{steps:?}");
            }
        }
    }

    #[test]
    fn nobody_becomes_promotable_without_proof(case in any_case()) {
        let steps = case.plan();
        for (at, step) in steps.iter().enumerate() {
            if let Step::Score { node, score } = step
                && case.mode == ReplicationMode::Sync
                && node != "pg01"
                && score.allows_promotion()
            {
                prop_assert!(steps[..at].contains(&Step::AwaitSync(node.clone())), "{steps:?}");
            }
        }
    }

    #[test]
    fn a_plan_carried_out_leaves_nothing_to_do(mut case in any_case()) {
        let steps = case.plan();
        case.apply(&steps);
        prop_assert_eq!(case.plan(), []);
    }

    #[test]
    fn at_most_one_synchronous_claim_remains(mut case in any_case()) {
        let steps = case.plan();
        case.apply(&steps);
        let names = Names::of("Postgresql");
        let complete = case.cib.nodes.values().filter(|node| {
            node.name != "pg01" && node.data_status(&names).is_some_and(DataStatus::is_complete)
        });
        prop_assert!(complete.count() <= 1);
    }
}
