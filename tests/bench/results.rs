//! What a bench found. Times are in milliseconds.

use serde::{Deserialize, Serialize};

use crate::statistics::{median, worst};

/// The goals of a planned failover.
pub(crate) const MEDIAN_GOAL_MS: f64 = 500.0;
pub(crate) const WORST_GOAL_MS: f64 = 1_000.0;
pub(crate) const RATIO_GOAL: f64 = 1.5;

#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Vec<Fact>,
    pub(crate) groups: Vec<Group>,
    pub(crate) growth: Vec<Growth>,
}

/// One line about the machine or a program.
#[derive(Debug, Serialize)]
pub(crate) struct Fact {
    pub(crate) what: String,
    pub(crate) value: String,
}

/// The failovers under one load, each followed by a look at the floor.
#[derive(Debug, Serialize)]
pub(crate) struct Group {
    pub(crate) clients: usize,
    pub(crate) pace_ms: f64,
    pub(crate) runs: Vec<Run>,
    pub(crate) floors: Vec<FloorRun>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Run {
    pub(crate) from: String,
    pub(crate) to: String,
    /// Why the failover did not end well.
    pub(crate) failed: Option<String>,
    /// The longest of all clients and of the new logins.
    pub(crate) longest_wait_ms: f64,
    /// The longest wait of each committing client.
    pub(crate) client_longest_wait_ms: Vec<f64>,
    pub(crate) longest_login_ms: f64,
    pub(crate) no_commit_ms: f64,
    /// What the failover itself reports.
    pub(crate) clients_held_ms: f64,
    pub(crate) commits: usize,
    pub(crate) logins: usize,
    pub(crate) errors: Vec<String>,
    pub(crate) lost: usize,
    pub(crate) steps: Vec<StepTime>,
    /// Commits per bar of the picture, its zero at the last commit before the longest gap.
    pub(crate) commits_per_bar: Vec<u32>,
}

#[derive(Debug, Serialize)]
pub(crate) struct StepTime {
    pub(crate) step: String,
    pub(crate) ms: f64,
}

/// What the parts take alone, with nothing of pgcm.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct FloorRun {
    /// Pacemaker moves the promoted role of an agent that does nothing.
    pub(crate) transition_ms: f64,
    pub(crate) shutdown_ms: f64,
    pub(crate) promotion_ms: f64,
}

impl FloorRun {
    pub(crate) fn sum_ms(&self) -> f64 {
        self.transition_ms + self.shutdown_ms + self.promotion_ms
    }
}

/// A failover with so many proxies registered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Growth {
    pub(crate) proxies: usize,
    pub(crate) checks_ms: f64,
    pub(crate) pause_ms: f64,
    pub(crate) follow_ms: f64,
    pub(crate) resume_ms: f64,
    /// From the beginning of the pause to the end of the resume.
    pub(crate) held_ms: f64,
    /// From the first check to the last.
    pub(crate) whole_ms: f64,
}

impl Results {
    /// The run that the picture shows.
    pub(crate) fn first(&self) -> &Run {
        &self.groups[0].runs[0]
    }

    /// Everything that no client may ever see. Speed is judged by whoever reads the table.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for group in &self.groups {
            for (index, run) in group.runs.iter().enumerate() {
                let name = format!("{} clients, run {}", group.clients, index + 1);
                if let Some(why) = &run.failed {
                    wrong.push(format!("{name}: the failover failed: {why}"));
                }
                if let Some(error) = run.errors.first() {
                    let count = run.errors.len();
                    wrong.push(format!("{name}: {count} errors, the first: {error}"));
                }
                if run.lost > 0 {
                    wrong.push(format!("{name}: {} commits are lost", run.lost));
                }
                if run.logins == 0 {
                    wrong.push(format!("{name}: no new login was tried"));
                }
            }
        }
        wrong
    }
}

impl Group {
    pub(crate) fn median_wait_ms(&self) -> f64 {
        median(self.runs.iter().map(|run| run.longest_wait_ms))
    }

    pub(crate) fn worst_wait_ms(&self) -> f64 {
        worst(self.runs.iter().map(|run| run.longest_wait_ms))
    }

    pub(crate) fn floor_ms(&self) -> f64 {
        median(self.floors.iter().map(FloorRun::sum_ms))
    }

    /// Median of the longest waits to the median of the floors.
    pub(crate) fn ratio(&self) -> f64 {
        self.median_wait_ms() / self.floor_ms()
    }

    /// Median and worst of each step, in the order of the failover.
    pub(crate) fn steps(&self) -> Vec<(String, f64, f64)> {
        let Some(first) = self.runs.first() else { return Vec::new() };
        let times = |name: &str| -> Vec<f64> {
            let steps = self.runs.iter().flat_map(|run| &run.steps);
            steps.filter(|step| step.step == name).map(|step| step.ms).collect()
        };
        let names = first.steps.iter().map(|step| step.step.clone());
        names.map(|name| (name.clone(), median(times(&name)), worst(times(&name)))).collect()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn run(longest_wait_ms: f64) -> Run {
        let step = |step: &str, ms| StepTime { step: step.to_owned(), ms };
        Run {
            from: "pg01".to_owned(),
            to: "pg02".to_owned(),
            failed: None,
            longest_wait_ms,
            client_longest_wait_ms: vec![longest_wait_ms],
            longest_login_ms: longest_wait_ms / 2.0,
            no_commit_ms: longest_wait_ms - 10.0,
            clients_held_ms: longest_wait_ms - 20.0,
            commits: 1_000,
            logins: 10,
            errors: Vec::new(),
            lost: 0,
            steps: vec![step("pause", 20.0), step("migrate", longest_wait_ms - 50.0)],
            commits_per_bar: vec![3; 200],
        }
    }

    pub(crate) fn results(waits: &[f64]) -> Results {
        let floor = FloorRun { transition_ms: 150.0, shutdown_ms: 30.0, promotion_ms: 20.0 };
        let runs: Vec<Run> = waits.iter().map(|&wait| run(wait)).collect();
        let floors = vec![floor; runs.len()];
        Results {
            machine: vec![Fact { what: "Processors".to_owned(), value: "2".to_owned() }],
            groups: vec![Group { clients: 8, pace_ms: 10.0, runs, floors }],
            growth: Vec::new(),
        }
    }

    #[test]
    fn the_ratio_is_that_of_the_medians() {
        let results = results(&[300.0, 900.0, 250.0]);
        assert!((results.groups[0].ratio() - 1.5).abs() < 1e-9);
        assert!((results.groups[0].worst_wait_ms() - 900.0).abs() < 1e-9);
    }

    #[test]
    fn steps_keep_the_order_of_the_failover() {
        let steps = results(&[300.0, 400.0]).groups[0].steps();
        assert_eq!(steps[0], ("pause".to_owned(), 20.0, 20.0));
        assert_eq!(steps[1], ("migrate".to_owned(), 300.0, 350.0));
    }

    #[test]
    fn an_error_or_a_lost_commit_of_any_run_is_wrong() {
        assert!(results(&[300.0]).wrong().is_empty());
        let mut bad = results(&[300.0, 300.0, 300.0, 300.0]);
        let runs = &mut bad.groups[0].runs;
        runs[0].errors.push("login: refused".to_owned());
        runs[1].lost = 2;
        runs[2].failed = Some("status 6".to_owned());
        runs[3].logins = 0;
        let wrong = bad.wrong().join("\n");
        for word in ["run 1: 1 errors, the first: login: refused", "run 2: 2 commits are lost"] {
            assert!(wrong.contains(word), "{word} in {wrong}");
        }
        assert!(wrong.contains("run 3: the failover failed: status 6"), "{wrong}");
        assert!(wrong.contains("run 4: no new login"), "{wrong}");
    }
}
