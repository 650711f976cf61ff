//! Quorums of standbys: whom commits wait for, and what that allows after the primary is lost.
//!
//! A commit that waited for `k` of the members `M` is on at least `k` of them, so that any
//! `|M| - k + 1` of them include one that holds it. `docs/decisions/0006-*.md` has the argument.

use std::{collections::BTreeSet, fmt, str::FromStr};

use super::settings::SyncName;

/// `needed` of `members`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    needed: usize,
    members: BTreeSet<String>,
}

impl Quorum {
    /// `None` when that is no quorum: nobody needed, more needed than there are, or a name that
    /// cannot be written down.
    pub fn new(needed: usize, members: BTreeSet<String>) -> Option<Self> {
        let sound = (1..=members.len()).contains(&needed) && members.iter().all(|m| is_plain(m));
        sound.then_some(Self { needed, members })
    }

    pub fn needed(&self) -> usize {
        self.needed
    }

    pub fn members(&self) -> &BTreeSet<String> {
        &self.members
    }

    pub fn contains(&self, node: &str) -> bool {
        self.members.contains(node)
    }

    /// How many members have to be seen so that one of them holds any given commit.
    pub fn to_be_seen(&self) -> usize {
        self.members.len() - self.needed + 1
    }
}

/// Whether a node's name can stand in a claim and in `synchronous_standby_names`.
pub fn is_plain(name: &str) -> bool {
    let forbidden = |c: char| c.is_whitespace() || c.is_control() || ",\"'\\()".contains(c);
    !name.is_empty() && !name.contains(forbidden)
}

/// `<resource>-quorum`: at least `quorum.needed()` of its members hold each acknowledged commit.
///
/// The primary keeps it on its own node; it survives a power loss of all nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuorumClaim {
    pub quorum: Quorum,
    /// The primary's timeline. A member that has not replayed up to it says nothing about the end of
    /// its WAL yet.
    pub timeline: u32,
}

impl fmt::Display for QuorumClaim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members: Vec<_> = self.quorum.members.iter().map(String::as_str).collect();
        let Quorum { needed, .. } = self.quorum;
        write!(f, "{needed} of {} on timeline {}", members.join(","), self.timeline)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no claim such as `1 of pg02,pg03 on timeline 5`")]
pub struct NotAClaim(pub String);

impl FromStr for QuorumClaim {
    type Err = NotAClaim;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = || {
            let (needed, rest) = text.split_once(" of ")?;
            let (members, timeline) = rest.split_once(" on timeline ")?;
            let names: Vec<_> = members.split(',').map(str::to_owned).collect();
            let members: BTreeSet<_> = names.iter().cloned().collect();
            let quorum = Quorum::new(needed.parse().ok()?, members)?;
            let claim = Self { quorum, timeline: timeline.parse().ok()? };
            // A name twice, `+1` or `01`: nobody but the agent writes claims, and it writes them so.
            (claim.to_string() == text).then_some(claim)
        };
        read().ok_or_else(|| NotAClaim(text.to_owned()))
    }
}

/// The claim that holds while the primary goes over from waiting for `from` to waiting for `to`,
/// given that `held` holds now. `None`: no member may be elected meanwhile.
///
/// It promises no more than `held` does, and no more than commits under `from` and under `to` keep.
pub fn joint(held: Option<&Quorum>, from: Option<&SyncName>, to: &SyncName) -> Option<Quorum> {
    let held = held?;
    let kept = |members: &BTreeSet<String>| {
        held.needed.min(strength(from, members)).min(strength(Some(to), members))
    };
    // Fewer members are easier to see.
    if kept(&held.members) == held.needed {
        return Some(held.clone());
    }
    let mut members = held.members.clone();
    if let SyncName::Quorum(target) = to {
        members.extend(target.members.iter().cloned());
    }
    Quorum::new(kept(&members), members)
}

/// How many of `members` at least hold a commit that waited for `name`.
fn strength(name: Option<&SyncName>, members: &BTreeSet<String>) -> usize {
    match name {
        // No commit is acknowledged at all.
        Some(SyncName::Block) => usize::MAX,
        Some(SyncName::Quorum(quorum)) => {
            quorum.needed.saturating_sub(quorum.members.difference(members).count())
        }
        Some(SyncName::Node(node)) => usize::from(members.contains(node)),
        Some(SyncName::None) | None => 0,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn quorum(needed: usize, members: &[&str]) -> Quorum {
        let members = members.iter().map(|&name| name.to_owned()).collect();
        Quorum::new(needed, members).expect("a quorum")
    }

    #[test]
    fn a_claim_reads_back_and_nothing_else_does() {
        let claim = QuorumClaim { quorum: quorum(1, &["pg03", "pg02"]), timeline: 5 };
        assert_eq!(claim.to_string(), "1 of pg02,pg03 on timeline 5");
        assert_eq!(claim.to_string().parse(), Ok(claim));
        for text in [
            "",
            "1 of pg02,pg03",
            "0 of pg02 on timeline 5",
            "2 of pg02 on timeline 5",
            "1 of  on timeline 5",
            "1 of pg02,,pg03 on timeline 5",
            "1 of pg02,pg02 on timeline 5",
            "1 of pg03,pg02 on timeline 5",
            "+1 of pg02 on timeline 5",
            "1 of pg02 on timeline five",
            "1 of pg02 on timeline 5 ",
            "1 of pg 02 on timeline 5",
        ] {
            assert!(text.parse::<QuorumClaim>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_holds_on_the_way() {
        let any = |needed, members: &[&str]| SyncName::Quorum(quorum(needed, members));
        for (what, held, from, to, expected) in [
            ("add", quorum(1, &["a"]), any(1, &["a"]), any(1, &["a", "b"]), Some((1, "ab"))),
            (
                "remove",
                quorum(1, &["a", "b"]),
                any(1, &["a", "b"]),
                any(1, &["a"]),
                Some((1, "ab")),
            ),
            (
                "raise",
                quorum(1, &["a", "b"]),
                any(1, &["a", "b"]),
                any(2, &["a", "b"]),
                Some((1, "ab")),
            ),
            (
                "lower",
                quorum(2, &["a", "b"]),
                any(2, &["a", "b"]),
                any(1, &["a", "b"]),
                Some((1, "ab")),
            ),
            (
                "replace",
                quorum(1, &["a", "b"]),
                any(1, &["a", "b"]),
                any(1, &["a", "c"]),
                Some((1, "abc")),
            ),
            ("to nobody", quorum(1, &["a"]), any(1, &["a"]), SyncName::None, None),
            ("to a block", quorum(1, &["a"]), any(1, &["a"]), SyncName::Block, Some((1, "a"))),
            (
                "from sync",
                quorum(1, &["a"]),
                SyncName::Node("a".into()),
                any(1, &["a", "b"]),
                Some((1, "ab")),
            ),
            ("from a foreign setting", quorum(1, &["a"]), SyncName::None, any(1, &["a"]), None),
        ] {
            let found = joint(Some(&held), Some(&from), &to)
                .map(|q| (q.needed(), q.members().iter().map(String::as_str).collect::<String>()));
            let expected = expected.map(|(needed, members)| (needed, members.to_owned()));
            assert_eq!(found, expected, "{what}");
        }
    }

    fn any_quorum() -> impl Strategy<Value = Quorum> {
        (1usize..4, prop::collection::btree_set("[a-e]", 1..5))
            .prop_filter_map("no quorum", |(needed, members)| Quorum::new(needed, members))
    }

    proptest! {
        #[test]
        fn every_commit_is_on_enough_members_of_the_joint_claim(
            held in any_quorum(), from in any_quorum(), to in any_quorum(),
            holders in prop::collection::btree_set("[a-e]", 0..5),
        ) {
            let on = |q: &Quorum| q.members().intersection(&holders).count() >= q.needed();
            let (from, to) = (SyncName::Quorum(from), SyncName::Quorum(to));
            let Some(joint) = joint(Some(&held), Some(&from), &to) else { return Ok(()) };
            let waited = |name: &SyncName| matches!(name, SyncName::Quorum(q) if on(q));
            // A commit that was there before, one that waits for the old names, one for the new ones.
            if on(&held) || waited(&from) || waited(&to) {
                prop_assert!(on(&joint), "{joint:?} {holders:?}");
            }
        }
    }
}
