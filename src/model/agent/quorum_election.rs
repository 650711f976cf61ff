//! Who is elected among the members of a quorum once the primary is gone.

use std::{collections::BTreeMap, fmt};

use super::{lsn::Position, quorum::QuorumClaim};

/// What was heard from each node that was asked for its position: now, or why not.
pub type Answers = BTreeMap<String, Result<Position, String>>;

/// One node's case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    pub own: String,
    /// How far it has received.
    pub received: Position,
}

/// An election among a quorum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Election {
    pub claim: QuorumClaim,
    /// The last primary, where it is known: it holds everything, so that it can stand for all.
    pub holder: Option<String>,
}

/// What an election says to one candidate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It holds every acknowledged commit.
    Elected,
    /// It has to receive what `leader` holds first.
    Behind {
        leader: String,
        position: Position,
    },
    TooFewSeen(TooFewSeen),
}

/// Why nobody can be elected yet, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TooFewSeen {
    pub election: Election,
    /// The members that did not answer, and why not.
    pub missing: Vec<(String, String)>,
}

impl fmt::Display for TooFewSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Election { claim, holder } = &self.election;
        let missing: Vec<_> =
            self.missing.iter().map(|(name, why)| format!("{name} ({why})")).collect();
        write!(
            f,
            "commits waited for {claim}: to know who holds them all, {} of these must be seen, and there \
             is no answer from {}. Start one of them, or {}",
            claim.quorum.to_be_seen(),
            missing.join(", "),
            holder.as_deref().unwrap_or("the last primary"),
        )
    }
}

impl Election {
    /// Whether it matters where `node` is.
    pub fn asks(&self, node: &str) -> bool {
        self.claim.quorum.contains(node) || self.holder.as_deref() == Some(node)
    }

    /// Judges by what was heard just now.
    pub fn judge(&self, candidate: &Candidate, answers: &Answers) -> Verdict {
        let Self { claim, holder } = self;
        // Whoever is still replaying an older timeline cannot tell yet where its WAL ends.
        let heard = |name: &str| {
            answers.get(name)?.as_ref().ok().filter(|at| at.timeline >= claim.timeline).copied()
        };
        let members = || claim.quorum.members().iter().filter(|name| **name != candidate.own);
        let seen: Vec<_> =
            members().filter_map(|name| Some((name.as_str(), heard(name)?))).collect();
        let last_primary = holder.as_deref().and_then(|name| Some((name, heard(name)?)));
        let itself = usize::from(claim.quorum.contains(&candidate.own));
        if seen.len() + itself < claim.quorum.to_be_seen() && last_primary.is_none() {
            let why = |name: &String| match answers.get(name) {
                Some(Ok(at)) => format!("has replayed up to timeline {} only", at.timeline),
                Some(Err(why)) => why.clone(),
                None => "is no node of the cluster".to_owned(),
            };
            let missing = members().filter(|name| heard(name).is_none());
            let missing = missing.map(|name| (name.clone(), why(name))).collect();
            return Verdict::TooFewSeen(TooFewSeen { election: self.clone(), missing });
        }
        most_advanced(candidate, seen.into_iter().chain(last_primary))
    }
}

/// Judges without a quorum: as good as those who answered know.
pub fn best_of(candidate: &Candidate, answers: &Answers) -> Verdict {
    let heard = answers.iter().filter_map(|(name, at)| Some((name.as_str(), *at.as_ref().ok()?)));
    most_advanced(candidate, heard)
}

fn most_advanced<'a>(
    candidate: &Candidate,
    heard: impl Iterator<Item = (&'a str, Position)>,
) -> Verdict {
    match heard.max_by_key(|&(_, position)| position) {
        Some((leader, position)) if position > candidate.received => {
            Verdict::Behind { leader: leader.to_owned(), position }
        }
        _ => Verdict::Elected,
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{lsn::Lsn, quorum::tests::quorum},
        *,
    };
    use proptest::prelude::*;

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline, lsn: Lsn(lsn) }
    }

    fn silent() -> Result<Position, String> {
        Err("connection refused".to_owned())
    }

    fn own(lsn: u64) -> Candidate {
        Candidate { own: "pg02".to_owned(), received: at(2, lsn) }
    }

    fn answers(heard: &[(&str, Result<Position, String>)]) -> Answers {
        heard.iter().map(|(name, at)| ((*name).to_owned(), at.clone())).collect()
    }

    #[test]
    fn who_is_elected() {
        let any =
            |needed, members: &[&str]| QuorumClaim { quorum: quorum(needed, members), timeline: 2 };
        let two = any(1, &["pg02", "pg03"]);
        let behind =
            |leader: &str, lsn| Verdict::Behind { leader: leader.into(), position: at(2, lsn) };
        let ahead = || ("pg03", Ok(at(2, 0x600)));
        let equal = || ("pg03", Ok(at(2, 0x500)));
        for (situation, claim, heard, expected) in [
            ("both seen, equal", &two, vec![equal()], Verdict::Elected),
            ("both seen, the other ahead", &two, vec![ahead()], behind("pg03", 0x600)),
            ("alone in its quorum", &any(1, &["pg02"]), vec![], Verdict::Elected),
            ("all needed, so each is enough", &any(2, &["pg02", "pg03"]), vec![], Verdict::Elected),
            (
                "the last primary as a standby",
                &two,
                vec![("pg01", Ok(at(2, 0x500)))],
                Verdict::Elected,
            ),
            (
                "the last primary ahead",
                &two,
                vec![("pg01", Ok(at(2, 0x578)))],
                behind("pg01", 0x578),
            ),
            ("a stranger is ahead", &any(1, &["pg02"]), vec![ahead()], Verdict::Elected),
            ("no member, but all are seen", &any(1, &["pg03"]), vec![equal()], Verdict::Elected),
        ] {
            let election = Election { claim: claim.clone(), holder: Some("pg01".to_owned()) };
            let verdict = election.judge(&own(0x500), &answers(&heard));
            assert_eq!(verdict, expected, "{situation}");
        }
    }

    #[test]
    fn too_few_seen_names_the_missing() {
        let two = QuorumClaim { quorum: quorum(1, &["pg02", "pg03"]), timeline: 2 };
        for (heard, reason) in [
            (silent(), "connection refused"),
            (Ok(at(1, 0x900)), "has replayed up to timeline 1 only"),
        ] {
            let election = Election { claim: two.clone(), holder: None };
            let verdict = election.judge(&own(0x500), &answers(&[("pg03", heard)]));
            let missing = vec![("pg03".to_owned(), reason.to_owned())];
            let refused = TooFewSeen { election, missing };
            let text = refused.to_string();
            assert!(text.contains("2 of these") && text.contains("pg03 ("), "{text}");
            assert_eq!(verdict, Verdict::TooFewSeen(refused));
        }
    }

    proptest! {
        #[test]
        fn the_elected_holds_every_acknowledged_commit(
            needed in 1usize..4,
            flushed in prop::collection::vec(0u64..6, 1..5),
            seen in prop::collection::vec(any::<bool>(), 5),
        ) {
            let name = |index: usize| format!("pg{index}");
            let members: Vec<String> = (0..flushed.len()).map(name).collect();
            let members: Vec<&str> = members.iter().map(String::as_str).collect();
            prop_assume!(needed <= members.len());
            let claim = QuorumClaim { quorum: quorum(needed, &members), timeline: 1 };
            let mut sorted = flushed.clone();
            sorted.sort_unstable_by(|a, b| b.cmp(a));
            let acknowledged = sorted[needed - 1];
            let answers: Answers = flushed.iter().enumerate().skip(1)
                .map(|(i, &lsn)| (name(i), if seen[i] { Ok(at(1, lsn)) } else { silent() }))
                .collect();
            let candidate = Candidate { own: name(0), received: at(1, flushed[0]) };
            let election = Election { claim, holder: None };
            let reached = match election.judge(&candidate, &answers) {
                Verdict::Elected => flushed[0],
                Verdict::Behind { position, .. } => position.lsn.0,
                Verdict::TooFewSeen(_) => return Ok(()),
            };
            prop_assert!(reached >= acknowledged, "{flushed:?} {seen:?}");
        }
    }
}
