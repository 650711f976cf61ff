//! What a campaign found, for people and for programs.

use std::{fmt::Write as _, time::Duration};

use serde_json::{Value, json};

use crate::verdict::Verdict;

/// How the cluster came back after a round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Recovery {
    /// Nobody helped; the time counts from the end of the fault.
    ByItself(Duration),
    /// What stayed broken until then, and what helped.
    ByHand { broken: String, repair: &'static str },
}

#[derive(Debug)]
pub(crate) struct Round {
    pub(crate) seed: u32,
    pub(crate) kind: &'static str,
    /// What was done to which node.
    pub(crate) story: String,
    pub(crate) verdict: Verdict,
    /// Acknowledged in this round.
    pub(crate) commits: usize,
    /// Acknowledged in the round before, whole until then, and gone now.
    pub(crate) lost_later: usize,
    /// Why the data could not be checked at all.
    pub(crate) unchecked: Option<String>,
    pub(crate) recovery: Recovery,
}

impl Round {
    pub(crate) fn lost(&self) -> usize {
        self.verdict.lost.len() + self.lost_later
    }

    /// Nothing lost, no split, and the data could be checked.
    pub(crate) fn is_clean(&self) -> bool {
        self.lost() == 0 && self.verdict.is_clean() && self.unchecked.is_none()
    }

    /// What did not come back by itself.
    pub(crate) fn broken(&self) -> Option<&str> {
        match &self.recovery {
            Recovery::ByItself(_) => None,
            Recovery::ByHand { broken, .. } => Some(broken),
        }
    }

    /// Clean, and the cluster became whole without hands.
    pub(crate) fn went_well(&self) -> bool {
        self.is_clean() && self.broken().is_none()
    }

    /// One line for the terminal.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "{} commits, lost {}, split {}, without writes {}, longest wait {}, ",
            self.commits,
            self.lost(),
            self.verdict.split.len(),
            seconds(self.verdict.without_writes),
            seconds(self.verdict.longest_wait),
        );
        let _ = match &self.recovery {
            Recovery::ByItself(after) => write!(line, "whole by itself after {}", seconds(*after)),
            Recovery::ByHand { broken, repair } => {
                write!(line, "NOT whole by itself ({repair} helped): {}", first_line(broken))
            }
        };
        if let Some(why) = &self.unchecked {
            let _ = write!(line, "; UNCHECKED: {why}");
        }
        if !self.verdict.is_clean() {
            let _ = write!(line, "\n  {:?}", shortened(&self.verdict));
        }
        line
    }

    fn json(&self) -> Value {
        let (by_itself, whole_after_s, broken) = match &self.recovery {
            Recovery::ByItself(after) => (true, Some(after.as_secs_f64()), None),
            Recovery::ByHand { broken, .. } => (false, None, Some(broken)),
        };
        json!({
            "seed": self.seed,
            "fault": self.kind,
            "story": self.story,
            "commits": self.commits,
            "lost": self.lost(),
            "split": self.verdict.split.len(),
            "unheard_of": self.verdict.unheard_of.len(),
            "without_writes_s": self.verdict.without_writes.as_secs_f64(),
            "longest_wait_s": self.verdict.longest_wait.as_secs_f64(),
            "by_itself": by_itself,
            "whole_after_s": whole_after_s,
            "stayed_broken": broken,
            "unchecked": self.unchecked,
        })
    }
}

/// The campaign as JSON: `head` and each round.
pub(crate) fn json(head: &Value, rounds: &[Round]) -> Value {
    json!({ "campaign": head, "rounds": rounds.iter().map(Round::json).collect::<Vec<_>>() })
}

/// The table by faults, in Markdown.
pub(crate) fn table(rounds: &[Round]) -> String {
    let mut kinds: Vec<&str> = rounds.iter().map(|round| round.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let mut table =
        "| fault | rounds | lost | split | median without writes | worst | whole by itself \
                     | median until whole |\n| --- | --: | --: | --: | --: | --: | --: | --: |\n"
            .to_owned();
    for kind in kinds {
        let of_kind: Vec<&Round> = rounds.iter().filter(|round| round.kind == kind).collect();
        table.push_str(&row(kind, &of_kind));
    }
    table.push_str(&row("**all**", &rounds.iter().collect::<Vec<_>>()));
    table
}

fn row(name: &str, rounds: &[&Round]) -> String {
    let without: Vec<_> = rounds.iter().map(|round| round.verdict.without_writes).collect();
    let healed = rounds.iter().filter_map(|round| match &round.recovery {
        Recovery::ByItself(after) => Some(*after),
        Recovery::ByHand { .. } => None,
    });
    let healed: Vec<_> = healed.collect();
    format!(
        "| {name} | {} | {} | {} | {} | {} | {} of {} | {} |\n",
        rounds.len(),
        rounds.iter().map(|round| round.lost()).sum::<usize>(),
        rounds.iter().map(|round| round.verdict.split.len()).sum::<usize>(),
        median(&without).map_or("—".to_owned(), seconds),
        without.iter().max().copied().map_or("—".to_owned(), seconds),
        healed.len(),
        rounds.len(),
        median(&healed).map_or("—".to_owned(), seconds),
    )
}

/// The middle one, or the later of the two in the middle.
pub(crate) fn median(times: &[Duration]) -> Option<Duration> {
    let mut times = times.to_vec();
    times.sort();
    times.get(times.len() / 2).copied()
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn first_line(text: &str) -> &str {
    text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default()
}

/// The first few of each finding: a round that lost something may have lost thousands.
fn shortened(verdict: &Verdict) -> Verdict {
    const FEW: usize = 3;
    let few = |keys: &[(String, u64)]| keys.iter().take(FEW).cloned().collect();
    Verdict {
        lost: few(&verdict.lost),
        unheard_of: few(&verdict.unheard_of),
        went_back: few(&verdict.went_back),
        split: verdict.split.iter().take(FEW).cloned().collect(),
        ..*verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(kind: &'static str, without_writes_ms: u64, lost: usize) -> Round {
        Round {
            seed: 7,
            kind,
            story: String::new(),
            verdict: Verdict {
                lost: (0..lost).map(|number| ("a".to_owned(), number as u64)).collect(),
                without_writes: Duration::from_millis(without_writes_ms),
                ..Verdict::default()
            },
            commits: 10,
            lost_later: 0,
            unchecked: None,
            recovery: Recovery::ByItself(Duration::from_secs(9)),
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_fault_and_one_for_all() {
        let mut rounds = vec![round("b", 500, 0), round("a", 4_000, 2), round("a", 2_000, 0)];
        rounds[1].recovery = Recovery::ByHand { broken: "x".to_owned(), repair: "a reboot" };
        rounds[2].lost_later = 1;
        let table = table(&rounds);
        let lines: Vec<&str> = table.lines().skip(2).collect();
        assert_eq!(
            lines,
            [
                "| a | 2 | 3 | 0 | 4.0 s | 4.0 s | 1 of 2 | 9.0 s |",
                "| b | 1 | 0 | 0 | 0.5 s | 0.5 s | 1 of 1 | 9.0 s |",
                "| **all** | 3 | 3 | 0 | 2.0 s | 4.0 s | 2 of 3 | 9.0 s |",
            ]
        );
    }

    #[test]
    fn a_median_needs_something_to_be_in_the_middle_of() {
        let ms = Duration::from_millis;
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[ms(3), ms(1), ms(2)]), Some(ms(2)));
        assert_eq!(median(&[ms(3), ms(1), ms(2), ms(4)]), Some(ms(3)));
    }
}
