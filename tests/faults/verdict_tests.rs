use proptest::prelude::*;

use super::*;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// A commit of `writer` that `node` acknowledged on `timeline` between the two times, in ms.
fn write(writer: &str, number: u64, node: &str, timeline: u32, time: (u64, u64)) -> Write {
    Write {
        key: (writer.to_owned(), number),
        pooled: true,
        begun: ms(time.0),
        ended: ms(time.1),
        acknowledged: Some(Acknowledgement { node: node.to_owned(), timeline, saw: number - 1 }),
    }
}

fn unknown(writer: &str, number: u64, time: (u64, u64)) -> Write {
    Write { acknowledged: None, ..write(writer, number, "", 0, time) }
}

fn all_of(writes: &[Write]) -> HashSet<Key> {
    writes.iter().map(|write| write.key.clone()).collect()
}

fn verdict(writes: &[Write], stored: &HashSet<Key>) -> Verdict {
    judge(writes, stored, ms(0), ms(1000))
}

#[test]
fn a_failover_that_keeps_everything_is_clean() {
    let writes = [
        write("a", 1, "pg01", 4, (0, 10)),
        unknown("a", 2, (10, 300)),
        write("a", 3, "pg02", 5, (300, 310)),
        write("b", 1, "pg02", 5, (305, 320)),
    ];
    let with = verdict(&writes, &all_of(&writes));
    assert!(with.is_clean(), "{with:?}");
    // What was not acknowledged may be missing.
    let without = verdict(&writes, &all_of(&[&writes[..1], &writes[2..]].concat()));
    assert!(without.is_clean(), "{without:?}");
}

#[test]
fn an_acknowledged_row_that_is_missing_is_lost() {
    let writes = [write("a", 1, "pg01", 4, (0, 10)), write("a", 2, "pg01", 4, (10, 20))];
    let verdict = verdict(&writes, &all_of(&writes[..1]));
    assert_eq!(verdict.lost, [("a".to_owned(), 2)]);
    assert!(!verdict.is_clean());
}

#[test]
fn a_row_that_nobody_wrote_is_seen() {
    let writes = [write("a", 1, "pg01", 4, (0, 10))];
    let mut stored = all_of(&writes);
    stored.insert(("a".to_owned(), 7));
    assert_eq!(verdict(&writes, &stored).unheard_of, [("a".to_owned(), 7)]);
}

#[test]
fn a_server_that_forgot_the_clients_last_row_is_seen() {
    let mut writes = vec![write("a", 1, "pg01", 4, (0, 10)), write("a", 2, "pg02", 5, (20, 30))];
    writes[1].acknowledged.as_mut().unwrap().saw = 0;
    assert_eq!(verdict(&writes, &all_of(&writes)).went_back, [("a".to_owned(), 2)]);
    // An attempt that failed need not be visible.
    writes[0].acknowledged = None;
    assert!(verdict(&writes, &all_of(&writes)).went_back.is_empty());
}

#[test]
fn an_old_primary_that_takes_writes_beside_the_new_one_is_a_split() {
    let writes = [
        write("a", 1, "pg01", 4, (0, 10)),
        write("b", 1, "pg02", 5, (20, 30)),
        write("c", 1, "pg01", 4, (40, 50)),
    ];
    let split = verdict(&writes, &all_of(&writes)).split;
    assert_eq!(split.len(), 1);
    assert_eq!((split[0].node.as_str(), split[0].timeline), ("pg01", 4));
    assert_eq!((split[0].other.as_str(), split[0].other_timeline), ("pg02", 5));
}

#[test]
fn a_write_that_was_begun_before_the_new_primary_is_no_split() {
    // The old primary stood still and delivers an answer late; whether the row is there is another
    // question.
    let writes = [write("b", 1, "pg02", 5, (20, 30)), write("c", 1, "pg01", 4, (15, 50))];
    assert!(verdict(&writes, &all_of(&writes)).split.is_empty());
}

#[test]
fn two_nodes_on_one_timeline_are_a_split() {
    let writes = [write("a", 1, "pg01", 5, (0, 10)), write("b", 1, "pg02", 5, (1, 9))];
    let split = verdict(&writes, &all_of(&writes)).split;
    assert_eq!(split.len(), 1, "{split:?}");
}

#[test]
fn a_timeline_is_over_as_soon_as_any_later_one_is_seen() {
    // Timeline 6 was acknowledged first of the later ones; 5 comes into view only afterwards.
    let writes = [
        write("a", 1, "pg03", 6, (20, 30)),
        write("b", 1, "pg02", 5, (40, 50)),
        write("c", 1, "pg01", 4, (60, 70)),
    ];
    assert_eq!(verdict(&writes, &all_of(&writes)).split.len(), 2);
}

#[test]
fn the_time_without_writes_ends_with_anybodys_commit() {
    let writes = [
        write("a", 1, "pg01", 4, (0, 100)),
        write("b", 1, "pg01", 4, (0, 500)),
        write("a", 2, "pg01", 4, (100, 950)),
    ];
    let verdict = verdict(&writes, &all_of(&writes));
    assert_eq!(verdict.without_writes, ms(450));
    assert_eq!(verdict.longest_wait, ms(850));
}

#[test]
fn the_ends_of_the_round_bound_the_time_without_writes() {
    assert_eq!(verdict(&[], &HashSet::new()).without_writes, ms(1000));
    let mut direct = write("a", 1, "pg01", 4, (0, 500));
    direct.pooled = false;
    let stored = all_of(std::slice::from_ref(&direct));
    assert_eq!(verdict(&[direct], &stored).without_writes, ms(1000), "past the pool");
}

/// A history without any fault of ours: primaries follow each other, each takes writes on a
/// timeline of its own until it stops.
fn honest() -> impl Strategy<Value = Vec<Write>> {
    let reign = (1_usize..4, 1_usize..20);
    prop::collection::vec(reign, 1..6).prop_map(|reigns| {
        let (mut writes, mut now) = (Vec::new(), 0);
        let mut numbers = [0_u64; 3];
        for (timeline, (node, count)) in (1_u32..).zip(reigns) {
            for index in 0..count {
                let writer = (index + node) % numbers.len();
                numbers[writer] += 1;
                let name = ["a", "b", "c"][writer];
                let node = format!("pg0{node}");
                writes.push(write(name, numbers[writer], &node, timeline, (now, now + 5)));
                now += 3;
            }
            now += 10;
        }
        writes
    })
}

proptest! {
    #[test]
    fn an_honest_history_is_clean(writes in honest()) {
        let verdict = verdict(&writes, &all_of(&writes));
        prop_assert!(verdict.is_clean(), "{verdict:?}");
    }

    #[test]
    fn each_missing_acknowledged_row_is_found(writes in honest(), which in any::<prop::sample::Index>()) {
        let gone = which.get(&writes).key.clone();
        let mut stored = all_of(&writes);
        stored.remove(&gone);
        prop_assert_eq!(verdict(&writes, &stored).lost, [gone]);
    }

    #[test]
    fn a_write_on_an_ended_timeline_is_found(writes in honest(), which in any::<prop::sample::Index>()) {
        let old = which.get(&writes).clone();
        let newest = writes.iter().max_by_key(|write| write.ended).unwrap().clone();
        let answer = old.acknowledged.clone().unwrap();
        prop_assume!(answer.timeline < newest.acknowledged.unwrap().timeline);
        let mut writes = writes;
        let late = newest.ended.as_millis() as u64 + 1;
        writes.push(write("late", 1, &answer.node, answer.timeline, (late, late + 1)));
        prop_assert_eq!(verdict(&writes, &all_of(&writes)).split.len(), 1);
    }
}
