use proptest::prelude::*;

use super::*;
use crate::model::agent::cib::tests::{cib, node};

fn nodes(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn slot(name: &str, restart: u64) -> Slot {
    Slot { name: name.to_owned(), physical: true, restart: Some(Lsn(restart)), ..Slot::default() }
}

fn drop_step(name: &str, why: Why) -> Step {
    Step::Drop { slot: name.to_owned(), why }
}

fn create(name: &str, reserve: bool) -> Step {
    Step::Create { slot: name.to_owned(), reserve }
}

/// Where pg01's last checkpoint begins.
const REDO: u64 = 3;

/// pg01's plan in a cluster of pg01, pg02 and pg03.
fn planned(in_recovery: bool, slots: &[Slot], replayed: u64, held: &[(&str, u64)]) -> Vec<Step> {
    let nodes = nodes(&["pg01", "pg02", "pg03"]);
    let held = held.iter().map(|(node, at)| ((*node).to_owned(), Lsn(*at))).collect();
    let replayed = Lsn(replayed);
    plan(View {
        own: "pg01",
        nodes: &nodes,
        enabled: true,
        in_recovery,
        slots,
        replayed,
        redo: Lsn(REDO),
        held: &held,
    })
}

#[test]
fn names_are_those_that_postgres_accepts() {
    for (node, expected) in [
        ("pg01", "pgcm_pg01"),
        ("pg-01.example.com", "pgcm_pg_2d01_2eexample_2ecom"),
        ("PG01", "pgcm__50_4701"),
        ("pg_01", "pgcm_pg_5f01"),
    ] {
        assert_eq!(slot_name(node).as_deref(), Ok(expected));
    }
    let error = slot_name(&"n".repeat(59)).expect_err("too long").to_string();
    assert!(error.contains("shorter name") && error.contains("63"), "{error}");
}

#[test]
fn a_primary_makes_slots_that_keep_nothing_until_they_are_used() {
    let steps = planned(false, &[slot("pgcm_pg03", 5)], 0, &[]);
    assert_eq!(steps, [create("pgcm_pg02", false)]);
}

#[test]
fn a_primary_replaces_a_lost_slot_and_says_whose_it_was() {
    let lost = Slot { lost: true, restart: None, ..slot("pgcm_pg02", 0) };
    let steps = planned(false, &[lost, slot("pgcm_pg03", 5)], 0, &[]);
    let why = Why::Lost { node: "pg02".to_owned() };
    assert_eq!(steps, [drop_step("pgcm_pg02", why), create("pgcm_pg02", false)]);
}

#[test]
fn a_standby_reserves_wal_only_for_nodes_that_answer() {
    let steps = planned(true, &[], 9, &[("pg02", 5)]);
    assert_eq!(steps, [create("pgcm_pg02", true)]);
}

#[test]
fn a_standby_replaces_slots_that_keep_nothing_once_their_node_answers() {
    let lost = Slot { lost: true, restart: None, ..slot("pgcm_pg02", 0) };
    let unused = Slot { restart: None, ..slot("pgcm_pg03", 0) };
    let slots = [lost, unused];
    assert_eq!(planned(true, &slots, 9, &[]), []);
    let steps = planned(true, &slots, 9, &[("pg02", 5), ("pg03", 5)]);
    let replaced = |name| [drop_step(name, Why::Useless), create(name, true)];
    assert_eq!(steps, [replaced("pgcm_pg02"), replaced("pgcm_pg03")].concat());
}

#[test]
fn a_slot_that_keeps_rows_on_a_standby_goes_once_a_new_one_keeps_enough_wal() {
    let left = Slot { keeps_rows: true, ..slot("pgcm_pg02", 1) };
    let slots = [left, slot("pgcm_pg03", REDO)];
    assert_eq!(planned(true, &slots, REDO, &[]), []);
    assert_eq!(planned(true, &slots, REDO, &[("pg02", REDO - 1)]), []);
    let replaced = [drop_step("pgcm_pg02", Why::KeepsRows), create("pgcm_pg02", true)];
    assert_eq!(planned(true, &slots, REDO, &[("pg02", REDO)]), replaced);
    // On the primary the standby's own feedback moves it.
    assert_eq!(planned(false, &slots, 0, &[("pg02", REDO)]), []);
}

#[test]
fn slots_move_by_whole_segments_and_only_then_is_anybody_asked() {
    let nodes = nodes(&["pg01", "pg02", "pg03"]);
    let held = BTreeMap::new();
    let slots = [slot("pgcm_pg02", 0), slot("pgcm_pg03", SEGMENT)];
    let view = View {
        own: "pg01",
        nodes: &nodes,
        enabled: true,
        in_recovery: true,
        slots: &slots,
        replayed: Lsn(SEGMENT + 7),
        redo: Lsn(REDO),
        held: &held,
    };
    assert_eq!(to_ask(view), ["pg02"]);
    assert_eq!(to_ask(View { in_recovery: false, ..view }), [""; 0]);
    let both = [("pg02", 4 * SEGMENT), ("pg03", 4 * SEGMENT)];
    let steps = planned(true, &slots, SEGMENT + 7, &both);
    assert_eq!(steps, [Step::Advance { slot: "pgcm_pg02".to_owned(), to: Lsn(SEGMENT + 7) }]);
}

#[test]
fn slots_of_nodes_that_left_and_of_this_node_itself_go() {
    for in_recovery in [false, true] {
        let slots = [
            slot("pgcm_pg01", 1),
            slot("pgcm_pg02", 1),
            slot("pgcm_pg03", 1),
            slot("pgcm_pg04", 1),
        ];
        let steps = planned(in_recovery, &slots, 9, &[]);
        let expected = [drop_step("pgcm_pg01", Why::Own), drop_step("pgcm_pg04", Why::NodeLeft)];
        assert_eq!(steps, expected);
    }
}

#[test]
fn a_cluster_that_does_not_know_this_node_is_not_acted_upon() {
    let (nodes, held) = (nodes(&["pg02"]), BTreeMap::new());
    let slots = [slot("pgcm_pg03", 1)];
    for enabled in [false, true] {
        let view = View {
            own: "pg01",
            nodes: &nodes,
            enabled,
            in_recovery: false,
            slots: &slots,
            replayed: Lsn(0),
            redo: Lsn(REDO),
            held: &held,
        };
        assert_eq!(plan(view), []);
    }
}

#[test]
fn without_slots_only_those_of_this_clusters_nodes_go() {
    let (nodes, held) = (nodes(&["pg01", "pg02"]), BTreeMap::new());
    let slots = [slot("pgcm_pg02", 1), slot("pgcm_reports", 1), slot("backup", 1)];
    let view = View {
        own: "pg01",
        nodes: &nodes,
        enabled: false,
        in_recovery: true,
        slots: &slots,
        replayed: Lsn(0),
        redo: Lsn(REDO),
        held: &held,
    };
    assert_eq!(plan(view), [drop_step("pgcm_pg02", Why::Off)]);
}

#[test]
fn a_stale_failover_slot_goes_only_once_the_primary_has_one() {
    let own = |name: &str| Slot { physical: false, failover: true, ..slot(name, 1) };
    let slots = [
        own("cdc"),
        own("unknown_there"),
        Slot { synced: true, ..own("copied") },
        Slot { active: true, ..own("in_use") },
        Slot { failover: false, ..own("local") },
        slot("physical", 1),
    ];
    let there = nodes(&["cdc", "copied", "in_use", "local", "physical"]);
    assert_eq!(stale_failover_slots(&slots, &there), ["cdc"]);
    assert!(has_stale_candidates(&slots) && !has_stale_candidates(&slots[2..]));
}

#[test]
fn logical_consumers_wait_for_those_who_stream_or_may_be_promoted() {
    let names = Names::of("Postgresql");
    let cib = cib(vec![
        node("pg01", &[("score", "1000")], None),
        node("pg02", &[("score", "100")], None),
        node("pg03", &[("score", "-INFINITY")], None),
        node("pg04", &[("score", "-INFINITY")], None),
        node("pg05", &[("score", "100")], None),
    ]);
    let row = |name: &str| Row {
        name: name.to_owned(),
        streaming: true,
        is_sync: false,
        flushed: Lsn(0),
    };
    let slots = [
        slot("pgcm_pg02", 1),
        Slot { active: true, ..slot("pgcm_pg03", 1) },
        slot("pgcm_pg04", 1),
        Slot { lost: true, ..slot("pgcm_pg05", 1) },
    ];
    // pg02 reconnects just now, pg04 is gone, and pg05's slot could hold them up for ever.
    let ahead = ahead_of_logical("pg01", &cib, &names, &[row("pg03")], &slots);
    assert_eq!(ahead, ["pgcm_pg02", "pgcm_pg03"]);
}

/// Slots of this cluster, of a node that left, of others, in any state.
fn any_slot() -> impl Strategy<Value = Slot> {
    let name = prop::sample::select(vec![
        "pgcm_pg01",
        "pgcm_pg02",
        "pgcm_pg03",
        "pgcm_pg04",
        "backup",
        "pgcm",
        "cdc",
    ]);
    let flags = any::<[bool; 5]>();
    let restart = prop::option::of(0..8 * SEGMENT);
    (name, flags, restart).prop_map(
        |(name, [physical, active, temporary, lost, keeps_rows], restart)| Slot {
            name: name.to_owned(),
            physical,
            active,
            temporary,
            lost,
            restart: restart.map(Lsn),
            keeps_rows,
            failover: !physical,
            synced: false,
        },
    )
}

proptest! {
    #[test]
    fn no_two_nodes_share_a_slot(one in "\\PC{1,12}", other in "\\PC{1,12}") {
        if let (Ok(first), Ok(second)) = (slot_name(&one), slot_name(&other)) {
            prop_assert_eq!(one == other, first == second);
            let legal = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            prop_assert!(first.chars().all(legal));
        }
    }

    #[test]
    fn no_slot_passes_what_its_node_holds_or_goes_back(
        slots in prop::collection::vec(any_slot(), 0..6),
        replayed in 0..8 * SEGMENT,
        held in prop::collection::btree_map("pg0[1-4]", (0..8 * SEGMENT).prop_map(Lsn), 0..4),
        in_recovery: bool,
    ) {
        let nodes = nodes(&["pg01", "pg02", "pg03"]);
        let replayed = Lsn(replayed);
        let view = View {
            own: "pg01",
            nodes: &nodes,
            enabled: true,
            in_recovery,
            slots: &slots,
            replayed,
            redo: Lsn(REDO),
            held: &held,
        };
        for step in plan(view) {
            if let Step::Advance { slot, to } = step {
                let node = slot.trim_start_matches(PREFIX);
                prop_assert!(in_recovery && to <= held[node] && to <= replayed);
                let found = slots.iter().find(|known| known.name == slot).expect("there");
                prop_assert!(found.restart.is_some_and(|at| at < to) && !found.active);
            }
        }
    }

    #[test]
    fn nothing_of_others_and_nothing_in_use_is_dropped(
        slots in prop::collection::vec(any_slot(), 0..6),
        held in prop::collection::btree_map("pg0[1-4]", (0..8 * SEGMENT).prop_map(Lsn), 0..4),
        redo in (0..8 * SEGMENT).prop_map(Lsn),
        in_recovery: bool,
        enabled: bool,
    ) {
        let nodes = nodes(&["pg01", "pg02", "pg03"]);
        let view = View {
            own: "pg01",
            nodes: &nodes,
            enabled,
            in_recovery,
            slots: &slots,
            replayed: Lsn(8 * SEGMENT),
            redo,
            held: &held,
        };
        for step in plan(view) {
            if let Step::Drop { slot, why } = step {
                let found = slots.iter().find(|known| known.name == slot).expect("there");
                prop_assert!(slot.starts_with(PREFIX) && found.physical && !found.active);
                let keeps_wal_for_member = ["pgcm_pg02", "pgcm_pg03"].contains(&slot.as_str())
                    && found.restart.is_some() && !found.lost;
                let replaceable = |node: &str| held.get(node).is_some_and(|at| *at >= redo);
                let node = slot.trim_start_matches(PREFIX);
                prop_assert!(match why {
                    Why::Off => !enabled,
                    Why::KeepsRows => in_recovery && found.keeps_rows && replaceable(node),
                    _ => !keeps_wal_for_member,
                }, "{slot} {why:?}");
            }
        }
    }
}
