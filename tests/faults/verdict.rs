//! Judges a round by what its writers saw and what the database holds afterwards.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

/// Who wrote, and which number of its own sequence: the key of a row.
pub(crate) type Key = (String, u64);

/// One attempt to commit a row. Times count from the start of the campaign.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) key: Key,
    /// Through the pool, as applications write; others write to one node, past the pool.
    pub(crate) pooled: bool,
    pub(crate) begun: Duration,
    pub(crate) ended: Duration,
    /// `None`: no acknowledgement came, and the row may be there or not.
    pub(crate) acknowledged: Option<Acknowledgement>,
}

/// What came with the acknowledgement of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Acknowledgement {
    /// The node that committed, and its timeline.
    pub(crate) node: String,
    pub(crate) timeline: u32,
    /// The highest number of the same writer that was visible before.
    pub(crate) saw: u64,
}

/// What was wrong, and how long clients had to wait.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Acknowledged, but not there.
    pub(crate) lost: Vec<Key>,
    /// There, though nobody tried to write it.
    pub(crate) unheard_of: Vec<Key>,
    /// Acknowledged by a server that did not show the same writer's last acknowledged row.
    pub(crate) went_back: Vec<Key>,
    /// Acknowledged by a node while another one was the primary.
    pub(crate) split: Vec<Split>,
    /// The longest time without any acknowledgement through the pool.
    pub(crate) without_writes: Duration,
    /// The longest time that one client of the pool had no acknowledgement.
    pub(crate) longest_wait: Duration,
}

/// A write that was accepted beside another primary's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Split {
    pub(crate) key: Key,
    pub(crate) node: String,
    pub(crate) timeline: u32,
    pub(crate) other: String,
    pub(crate) other_timeline: u32,
}

impl Verdict {
    pub(crate) fn is_clean(&self) -> bool {
        self.lost.is_empty()
            && self.unheard_of.is_empty()
            && self.went_back.is_empty()
            && self.split.is_empty()
    }
}

/// Judges `writes`, of which the database holds `stored`; times are taken between `from` and `until`.
pub(crate) fn judge(
    writes: &[Write],
    stored: &HashSet<Key>,
    from: Duration,
    until: Duration,
) -> Verdict {
    Verdict {
        lost: lost(writes, stored),
        unheard_of: unheard_of(writes, stored),
        went_back: went_back(writes),
        split: split(writes),
        without_writes: without_writes(writes, from, until),
        longest_wait: longest_wait(writes, from, until),
    }
}

/// The acknowledged rows that are not stored.
pub(crate) fn lost(writes: &[Write], stored: &HashSet<Key>) -> Vec<Key> {
    let acknowledged = writes.iter().filter(|write| write.acknowledged.is_some());
    acknowledged.map(|write| &write.key).filter(|key| !stored.contains(*key)).cloned().collect()
}

fn unheard_of(writes: &[Write], stored: &HashSet<Key>) -> Vec<Key> {
    let tried: HashSet<&Key> = writes.iter().map(|write| &write.key).collect();
    let mut strange: Vec<_> = stored.iter().filter(|key| !tried.contains(key)).cloned().collect();
    strange.sort();
    strange
}

fn went_back(writes: &[Write]) -> Vec<Key> {
    let mut last: HashMap<&str, u64> = HashMap::new();
    let mut back = Vec::new();
    for write in in_order(writes, |write| write.begun) {
        let (Some(acknowledgement), (writer, number)) = (&write.acknowledged, &write.key) else {
            continue;
        };
        let before = last.insert(writer, *number).unwrap_or(0);
        if acknowledgement.saw < before {
            back.push(write.key.clone());
        }
    }
    back
}

/// A timeline belongs to one primary, and ends when a primary on a higher one accepts its first
/// write. What an older primary acknowledges of writes that were begun later is a split.
fn split(writes: &[Write]) -> Vec<Split> {
    let mut owners: HashMap<u32, &str> = HashMap::new();
    let mut newest: Option<(u32, &str, Duration)> = None;
    // When each timeline was first seen to accept a write, in the order of their beginning.
    let mut begins: Vec<(u32, &str, Duration)> = Vec::new();
    let mut found = Vec::new();
    for (write, acknowledgement) in acknowledged(in_order(writes, |write| write.ended)) {
        let (timeline, node) = (acknowledgement.timeline, acknowledgement.node.as_str());
        let owner = *owners.entry(timeline).or_insert(node);
        let beside = |other: &str, other_timeline| Split {
            key: write.key.clone(),
            node: node.to_owned(),
            timeline,
            other: other.to_owned(),
            other_timeline,
        };
        if owner != node {
            found.push(beside(owner, timeline));
            continue;
        }
        if newest.is_none_or(|(newest, ..)| timeline > newest) {
            newest = Some((timeline, node, write.ended));
            begins.push((timeline, node, write.ended));
        }
        let successor = begins.iter().find(|(begun, ..)| *begun > timeline);
        if let Some(&(begun, other, at)) = successor
            && write.begun > at
        {
            found.push(beside(other, begun));
        }
    }
    found
}

fn without_writes(writes: &[Write], from: Duration, until: Duration) -> Duration {
    let pooled = writes.iter().filter(|write| write.pooled && write.acknowledged.is_some());
    longest_gap(pooled.map(|write| write.ended), from, until)
}

fn longest_wait(writes: &[Write], from: Duration, until: Duration) -> Duration {
    let mut acknowledged: HashMap<&str, Vec<Duration>> = HashMap::new();
    for write in writes.iter().filter(|write| write.pooled) {
        let times = acknowledged.entry(&write.key.0).or_default();
        times.extend(write.acknowledged.as_ref().map(|_| write.ended));
    }
    let waits = acknowledged.into_values().map(|times| longest_gap(times.into_iter(), from, until));
    waits.max().unwrap_or_default()
}

/// The longest time between two neighbours of `times`, the ends of the round counted in.
fn longest_gap(times: impl Iterator<Item = Duration>, from: Duration, until: Duration) -> Duration {
    let mut times: Vec<_> = times.filter(|&time| from <= time && time <= until).collect();
    times.extend([from, until]);
    times.sort();
    times.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
}

fn in_order(writes: &[Write], by: impl Fn(&Write) -> Duration) -> Vec<&Write> {
    let mut ordered: Vec<_> = writes.iter().collect();
    ordered.sort_by_key(|write| by(write));
    ordered
}

fn acknowledged(writes: Vec<&Write>) -> impl Iterator<Item = (&Write, &Acknowledgement)> {
    writes.into_iter().filter_map(|write| Some((write, write.acknowledged.as_ref()?)))
}

#[cfg(test)]
#[path = "verdict_tests.rs"]
mod tests;
