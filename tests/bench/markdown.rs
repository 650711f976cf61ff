//! The results as Markdown: tables for the terminal, and the page of the documentation.

use std::fmt::Write as _;

use crate::{
    results::{Group, Growth, MEDIAN_GOAL_MS, RATIO_GOAL, Results, WORST_GOAL_MS},
    statistics::{median, worst},
};

/// The page `docs/performance.md`.
pub(crate) fn page(results: &Results) -> String {
    let mut text = String::from(
        "# Performance\n\n\
         Written by `DOCS=1 make bench`; change `tests/bench/markdown.rs`, not this page. `make bench` \
         writes the same numbers, run by run, as JSON to `target/bench/failover.json`.\n\n\
         ![Commits over time around one failover](performance.svg)\n\n\
         ## What is measured\n\n\
         Clients commit one row at a time through app01's PgBouncer (transaction pooling) while \
         `pgcm failover` moves the primary; one more client logs in anew ten times a second. The \
         clients are paced, so that they do not take the processors from the cluster, which shares \
         them. A wait is the time from sending a commit (or starting a login) to its \
         acknowledgement; of each run the longest of all clients counts. Every acknowledged row is \
         looked for afterwards.\n\n\
         The floor is what the parts take without pgcm on the same idle cluster, looked at after \
         each failover: Pacemaker moves the promoted role of an agent that does nothing, by the \
         constraint that pgcm uses (from issuing it to the end of promote); a fast shutdown of a \
         throw-away Postgres after a CHECKPOINT (from the signal to the end of the process); the \
         promotion of its standby (from the signal until it takes writes). The floor is their sum.\n\n",
    );
    text.push_str(&tables(results));
    text
}

/// Everything that was found.
pub(crate) fn tables(results: &Results) -> String {
    let mut text = String::from("## Machine\n\n| what | value |\n| --- | --- |\n");
    for fact in &results.machine {
        let _ = writeln!(text, "| {} | {} |", fact.what, fact.value);
    }
    for group in &results.groups {
        group_tables(&mut text, group);
    }
    if !results.growth.is_empty() {
        growth_table(&mut text, &results.growth);
    }
    text
}

fn group_tables(text: &mut String, group: &Group) {
    let _ =
        write!(text, "\n## {} clients, each commits every {} ms\n\n", group.clients, group.pace_ms);
    verdict_table(text, group);
    runs_table(text, group);
    steps_table(text, group);
}

fn verdict_table(text: &mut String, group: &Group) {
    let errors: usize = group.runs.iter().map(|run| run.errors.len()).sum();
    let lost: usize = group.runs.iter().map(|run| run.lost).sum();
    let kept = |kept: bool| if kept { "kept" } else { "**missed**" };
    let (wait, worst, ratio) = (group.median_wait_ms(), group.worst_wait_ms(), group.ratio());
    let _ = write!(
        text,
        "| of {} failovers | found | goal | |\n| --- | ---: | ---: | --- |\n\
         | longest wait, median | {wait:.0} ms | {MEDIAN_GOAL_MS:.0} ms | {} |\n\
         | longest wait, worst | {worst:.0} ms | {WORST_GOAL_MS:.0} ms | {} |\n\
         | median longest wait / median floor | {ratio:.2} | {RATIO_GOAL} | {} |\n\
         | errors | {errors} | 0 | {} |\n| lost commits | {lost} | 0 | {} |\n\n",
        group.runs.len(),
        kept(wait <= MEDIAN_GOAL_MS),
        kept(worst <= WORST_GOAL_MS),
        kept(ratio <= RATIO_GOAL),
        kept(errors == 0),
        kept(lost == 0),
    );
}

/// One row for each run: milliseconds but for the counts.
fn runs_table(text: &mut String, group: &Group) {
    text.push_str(
        "Milliseconds; the floor of a run is transition + shutdown + promotion.\n\n\
         | run | from, to | longest wait | median client's | longest login | no commit for | commits \
         | errors | lost | floor | = transition | + shutdown | + promotion | longest wait / floor |\n\
         | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    let mut rows = Vec::new();
    for (run, floor) in group.runs.iter().zip(&group.floors) {
        let times = [
            run.longest_wait_ms,
            median(run.client_longest_wait_ms.iter().copied()),
            run.longest_login_ms,
            run.no_commit_ms,
        ];
        let floors = [floor.sum_ms(), floor.transition_ms, floor.shutdown_ms, floor.promotion_ms];
        let counts = [run.commits, run.errors.len(), run.lost];
        let place = format!("{} → {}", run.from, run.to);
        row(text, &(rows.len() + 1).to_string(), &place, times, Some(counts), floors);
        rows.push((times, floors));
    }
    let judges = [("median", median as fn(Vec<f64>) -> f64), ("worst", worst)];
    for (name, judge) in judges {
        let times = [0, 1, 2, 3].map(|i| judge(rows.iter().map(|(times, _)| times[i]).collect()));
        let floors = [0, 1, 2, 3].map(|i| judge(rows.iter().map(|(_, of)| of[i]).collect()));
        row(text, name, "", times, None, floors);
    }
}

fn row(
    text: &mut String,
    name: &str,
    place: &str,
    times: [f64; 4],
    counts: Option<[usize; 3]>,
    floors: [f64; 4],
) {
    let _ = write!(text, "| {name} | {place} |");
    for time in times {
        let _ = write!(text, " {time:.0} |");
    }
    for index in 0..3 {
        let count = counts.map(|counts| counts[index].to_string()).unwrap_or_default();
        let _ = write!(text, " {count} |");
    }
    for floor in floors {
        let _ = write!(text, " {floor:.0} |");
    }
    let ratio = counts.map(|_| format!("{:.1}", times[0] / floors[0])).unwrap_or_default();
    let _ = writeln!(text, " {ratio} |");
}

fn steps_table(text: &mut String, group: &Group) {
    text.push_str("\n| step | median ms | worst ms |\n| --- | ---: | ---: |\n");
    for (name, median, worst) in group.steps() {
        let _ = writeln!(text, "| {name} | {median:.0} | {worst:.0} |");
    }
    let held = || group.runs.iter().map(|run| run.clients_held_ms);
    let _ = writeln!(
        text,
        "| from the first request to pause to the last resume | {:.0} | {:.0} |",
        median(held()),
        worst(held())
    );
}

fn growth_table(text: &mut String, growth: &[Growth]) {
    text.push_str(
        "\n## How the steps grow with the number of proxies\n\n\
         Real `pgcm proxy` processes, all on this machine, and a real etcd. One proxy has a real \
         PgBouncer of 50 databases, for whose 50 server connections 1,000 clients wait all the time \
         with queries of 0.1 s: the pause includes the end of those that run. The other PgBouncers' \
         consoles, of as many databases and clients, are simulated, and so are the Postgres nodes' \
         agents: the move itself takes no time here. Each proxy is resumed as soon as it follows, in the step \
         `follow`; `resume` is for those with whom that failed. The middle of five failovers each.\n\n\
         | proxies | checks ms | pause ms | follow ms | resume ms | clients held ms | the whole failover ms |\n\
         | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n",
    );
    for Growth { proxies, checks_ms, pause_ms, follow_ms, resume_ms, held_ms, whole_ms } in growth {
        let _ = writeln!(
            text,
            "| {proxies} | {checks_ms:.0} | {pause_ms:.0} | {follow_ms:.0} | {resume_ms:.0} | {held_ms:.0} \
             | {whole_ms:.0} |"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::tests::results;

    #[test]
    fn a_goal_is_kept_up_to_its_limit_and_missed_beyond() {
        let good = tables(&results(&[300.0, 300.0]));
        assert!(!good.contains("missed"), "{good}");
        assert!(good.contains("| median longest wait / median floor | 1.50 | 1.5 | kept |"));
        let slow = tables(&results(&[501.0, 501.0, 1_001.0]));
        assert_eq!(slow.matches("**missed**").count(), 3, "{slow}");
        let mut lossy = results(&[300.0]);
        lossy.groups[0].runs[0].lost = 1;
        assert!(tables(&lossy).contains("| lost commits | 1 | 0 | **missed** |"));
    }

    #[test]
    fn every_run_has_a_row_and_so_have_median_and_worst() {
        let text = tables(&results(&[300.0, 500.0, 400.0]));
        assert!(
            text.contains(
                "| 2 | pg01 → pg02 | 500 | 500 | 250 | 490 | 1000 | 0 | 0 | 200 | 150 | 30 | 20 | 2.5 |"
            ),
            "{text}"
        );
        assert!(text.contains("| median |  | 400 | 400 | 200 | 390 |  |  |  | 200 |"), "{text}");
        assert!(text.contains("| worst |  | 500 |"), "{text}");
    }

    #[test]
    fn rows_of_a_table_have_as_many_cells_as_its_head() {
        let mut results = results(&[300.0, 310.0]);
        results.growth.push(Growth {
            proxies: 1,
            checks_ms: 9.0,
            pause_ms: 1.0,
            follow_ms: 2.0,
            resume_ms: 3.0,
            held_ms: 6.0,
            whole_ms: 20.0,
        });
        let mut cells = None;
        for line in page(&results).lines() {
            let found = line.starts_with('|').then(|| line.matches('|').count());
            if let (Some(before), Some(now)) = (cells, found) {
                assert_eq!(before, now, "{line}");
            }
            cells = found;
        }
    }

    #[test]
    fn without_a_growth_measurement_the_page_does_not_speak_of_one() {
        assert!(!page(&results(&[300.0])).contains("How the steps grow"));
    }
}
