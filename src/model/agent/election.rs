//! Who may be promoted when no primary is left to say so, and what a promotion does to others.

use super::{
    cib::{Cib, Names, Node},
    claim::{DataStatus, Score, Status},
    lsn::Position,
    quorum::QuorumClaim,
    quorum_election::Election,
};

/// What a node's start found on its own disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnFiles {
    /// `standby.signal` was there before the agent wrote it.
    pub standby_signal: bool,
    /// The files are a base backup that was never started.
    pub fresh_backup: bool,
}

/// The promotion score of a node that starts, and whether it must claim the newest data first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StartScore {
    pub score: Score,
    pub claim_latest: bool,
}

/// Scores node `own` at its start.
///
/// With a primary at hand it is the primary that grants scores. Without one the claims that survived
/// in the CIB decide, and in a cluster that never had a primary the node that is no copy of another.
pub fn start_score(cib: &Cib, own: &str, names: &Names, files: OwnFiles) -> StartScore {
    let plain = |score| StartScore { score, claim_latest: false };
    if cib.primary_other_than(own, names).is_some() {
        return plain(Score::NEVER);
    }
    match cib.node(own).and_then(|node| node.data_status(names)) {
        // After a crash the role has been offered to another, who needs no recovery: taking it back
        // would end that promotion, and may end in the same crash.
        Some(DataStatus::Latest) if !cib.promotable_other_than(own, names).is_empty() => {
            return plain(Score::RESERVE);
        }
        Some(DataStatus::Latest) => return plain(Score::PRIMARY),
        Some(DataStatus::Sync) => return plain(Score::SYNC),
        _ => {}
    }
    let virgin = cib.nodes.values().all(|node| !node.permanent.contains_key(&names.data_status));
    if virgin && !files.standby_signal && !files.fresh_backup {
        return StartScore { score: Score::PRIMARY, claim_latest: true };
    }
    plain(Score::NEVER)
}

/// By what a node may be promoted, as the claims that survive everything say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    /// It holds every acknowledged commit: it was the last primary, or its synchronous standby, or nobody
    /// claims anything.
    Complete,
    /// It is one of a quorum, and has to be elected among them.
    Election(Election),
    /// Asynchronous: the best of those that can be asked.
    BestEffort,
    /// It may lack commits that others are known to hold.
    Nothing { complete: Vec<String> },
}

/// Tells by what node `own` may be promoted.
///
/// Scores are not asked: one that was set in a race with another promotion is harmless by this.
pub fn right(cib: &Cib, own: &str, names: &Names) -> Right {
    let data = cib.node(own).and_then(|node| node.data_status(names));
    if data.is_some_and(DataStatus::is_complete) {
        return Right::Complete;
    }
    let others = || cib.nodes.values().filter(|node| node.name != own);
    // The claim holds by itself, whatever else was revoked of the node that it is written on.
    let claims = others().filter_map(|node| node.quorum_claim(names));
    if let Some(claim) =
        claims.filter(|claim| claim.quorum.contains(own)).max_by_key(|claim| claim.timeline)
    {
        let latest = |node: &&Node| node.data_status(names) == Some(DataStatus::Latest);
        let holder = others().find(latest).map(|node| node.name.clone());
        return Right::Election(Election { claim, holder });
    }
    if data == Some(DataStatus::Async) {
        return Right::BestEffort;
    }
    let complete = |node: &&Node| {
        node.data_status(names).is_some_and(DataStatus::is_complete)
            || node.permanent.contains_key(&names.quorum)
    };
    match others().filter(complete).map(|node| node.name.clone()).collect::<Vec<_>>() {
        // Of a quorum that nobody vouches for no member is known to hold everything.
        complete if complete.is_empty() && data != Some(DataStatus::Quorum) => Right::Complete,
        complete => Right::Nothing { complete },
    }
}

/// Whether the standbys of a primary that died at node `own` can do without it: one of them holds
/// everything, or enough of a quorum run.
pub fn standbys_go_ahead(cib: &Cib, own: &str, names: &Names) -> bool {
    let next = cib.promotable_other_than(own, names);
    if next.iter().any(|node| node.data_status(names) == Some(DataStatus::Sync)) {
        return true;
    }
    let claim = cib.node(own).and_then(|node| node.quorum_claim(names));
    let runs = |node: &Node| {
        node.online && node.status(names).is_some_and(|status| status != Status::Stopped)
    };
    claim.is_some_and(|QuorumClaim { quorum, .. }| {
        let running = cib.nodes.values().filter(|node| quorum.contains(&node.name) && runs(node));
        next.iter().any(|node| quorum.contains(&node.name))
            && running.count() >= quorum.to_be_seen()
    })
}

/// Why the score of node `own` forbids its promotion; `None` if it does not.
pub fn score_refusal(cib: &Cib, own: &str, names: &Names) -> Option<String> {
    let score = cib.node(own).and_then(|node| node.score(names));
    score.is_some_and(|score| !score.allows_promotion()).then(|| {
        format!(
            "the promotion score of {own} is -INFINITY: the last primary did not vouch for its data"
        )
    })
}

/// Why node `own`, having received WAL up to `received`, lacks what another node stopped with; `None`
/// if it does not.
pub fn shutdown_refusal(cib: &Cib, own: &str, names: &Names, received: Position) -> Option<String> {
    let others = cib.nodes.values().filter(|node| node.name != own);
    others.filter_map(|node| Some((node, node.shutdown_position(names)?))).find_map(
        |(node, stopped)| {
            // A stop on an older timeline belongs to an earlier election.
            let ahead = stopped.timeline == received.timeline && stopped.lsn >= received.lsn
                || stopped.timeline > received.timeline;
            ahead.then(|| {
                format!(
                    "{own} received WAL up to {} on timeline {}, but {} stopped at {} on timeline {}",
                    received.lsn, received.timeline, node.name, stopped.lsn, stopped.timeline
                )
            })
        },
    )
}

/// What has to be revoked in the CIB before node `own` may accept writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Revocation {
    /// Nodes whose data status becomes `DISCONNECT`.
    pub data_statuses: Vec<String>,
    /// Nodes, `own` included, whose claim of a quorum ends.
    pub quorums: Vec<String>,
}

/// Lists the claims of others that end when `own` becomes the primary.
pub fn revocation(cib: &Cib, own: &str, names: &Names) -> Revocation {
    let claims = |node: &&Node| {
        let data = node.data_status(names);
        data.is_some_and(DataStatus::is_complete) || data == Some(DataStatus::Async)
    };
    let others = cib.nodes.values().filter(|node| node.name != own);
    Revocation {
        data_statuses: others.filter(claims).map(|node| node.name.clone()).collect(),
        quorums: cib
            .nodes
            .values()
            .filter(|node| node.permanent.contains_key(&names.quorum))
            .map(|node| node.name.clone())
            .collect(),
    }
}

/// Whether a standby that received WAL up to `received` holds the shutdown checkpoint at `stopped`.
pub fn holds_shutdown(received: Position, stopped: Position) -> bool {
    received.timeline == stopped.timeline && received.lsn > stopped.lsn
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            cib::tests::{cib, node},
            lsn::Lsn,
        },
        *,
    };

    const OWN_DATA: OwnFiles = OwnFiles { standby_signal: false, fresh_backup: false };
    const A_COPY: OwnFiles = OwnFiles { standby_signal: true, fresh_backup: false };

    fn at(timeline: u32, lsn: u64) -> Position {
        Position { timeline, lsn: Lsn(lsn) }
    }

    #[test]
    fn a_former_primary_does_not_take_the_role_from_its_heir() {
        let names = Names::of("Postgresql");
        for (heir, expected) in [("100", Score::RESERVE), ("-INFINITY", Score::PRIMARY)] {
            let cib = cib(vec![
                node("pg01", &[("status", "HS:alone")], Some("LATEST")),
                node("pg02", &[("score", heir)], Some("STREAMING|SYNC")),
            ]);
            assert_eq!(start_score(&cib, "pg01", &names, A_COPY).score, expected, "{heir}");
        }
        assert!(Score::RESERVE < Score::SYNC && Score::RESERVE.allows_promotion());
    }

    #[test]
    fn scores_at_start() {
        let names = Names::of("Postgresql");
        let latest = Score::PRIMARY;
        for (situation, own, other_status, other_data, files, expected) in [
            ("a virgin cluster, the original", None, "STOP", None, OWN_DATA, latest),
            ("a virgin cluster, a copy", None, "STOP", None, A_COPY, Score::NEVER),
            ("all nodes restarted, last primary", Some("LATEST"), "STOP", None, A_COPY, latest),
            ("restarted sync", Some("STREAMING|SYNC"), "STOP", None, A_COPY, Score::SYNC),
            (
                "restarted potential",
                Some("STREAMING|POTENTIAL"),
                "STOP",
                None,
                A_COPY,
                Score::NEVER,
            ),
            ("a new node", None, "STOP", Some("LATEST"), OWN_DATA, Score::NEVER),
            ("lost node", Some("DISCONNECT"), "STOP", Some("LATEST"), OWN_DATA, Score::NEVER),
            ("a primary is there", Some("LATEST"), "PRI", Some("LATEST"), OWN_DATA, Score::NEVER),
        ] {
            let cib = cib(vec![
                node("pg01", &[], own),
                node("pg02", &[("status", other_status)], other_data),
            ]);
            let scored = start_score(&cib, "pg01", &names, files);
            assert_eq!(scored.score, expected, "{situation}");
            assert_eq!(scored.claim_latest, situation.contains("original"), "{situation}");
        }
    }

    #[test]
    fn promotion_needs_the_last_shutdown_checkpoint() {
        let names = Names::of("Postgresql");
        for (situation, score, stopped, refused) in [
            ("nothing known", None, None, false),
            ("received", Some("100"), Some("2:00000000000004FF"), false),
            ("missed", Some("100"), Some("2:0000000000000500"), true),
            ("a newer timeline", Some("100"), Some("3:0000000000000100"), true),
            ("an earlier election", Some("100"), Some("1:0000000000000900"), false),
            ("revoked", Some("-INFINITY"), None, true),
        ] {
            let own: Vec<_> = score.map(|score| ("score", score)).into_iter().collect();
            let other: Vec<_> = stopped.map(|lsn| ("shutdown-lsn", lsn)).into_iter().collect();
            let cib = cib(vec![node("pg01", &own, None), node("pg02", &other, None)]);
            let refusal = score_refusal(&cib, "pg01", &names)
                .or_else(|| shutdown_refusal(&cib, "pg01", &names, at(2, 0x500)));
            assert_eq!(refusal.is_some(), refused, "{situation}: {refusal:?}");
        }
    }

    #[test]
    fn a_promotion_ends_the_claims_of_others_only() {
        let names = Names::of("Postgresql");
        let cib = cib(vec![
            node("pg01", &[("score", "1000"), ("shutdown-lsn", "1:0")], Some("LATEST")),
            node("pg02", &[("score", "100")], Some("STREAMING|SYNC")),
            node("pg03", &[("score", "-INFINITY")], Some("STREAMING|POTENTIAL")),
        ]);
        let revoked = revocation(&cib, "pg02", &names);
        assert_eq!(revoked.data_statuses, ["pg01"]);
    }

    #[test]
    fn a_right_comes_from_durable_claims_alone() {
        let names = Names::of("Postgresql");
        let both = "1 of pg01,pg02 on timeline 2";
        for (situation, own, other, written, expected) in [
            ("the last primary", Some("LATEST"), Some("DISCONNECT"), None, "complete"),
            ("its synchronous standby", Some("STREAMING|SYNC"), Some("LATEST"), None, "complete"),
            ("a quorum's member", Some("STREAMING|QUORUM"), Some("LATEST"), Some(both), "election"),
            ("a member that was lost", Some("DISCONNECT"), Some("LATEST"), Some(both), "election"),
            (
                "a quorum of others",
                Some("STREAMING|QUORUM"),
                Some("LATEST"),
                Some("1 of pg02 on timeline 2"),
                "nothing",
            ),
            ("a claim that is ended", Some("STREAMING|QUORUM"), Some("LATEST"), None, "nothing"),
            (
                "a claim that cannot be read",
                Some("STREAMING|QUORUM"),
                Some("DISCONNECT"),
                Some("1 of all"),
                "nothing",
            ),
            ("asynchronous", Some("STREAMING|ASYNC"), Some("LATEST"), None, "best effort"),
            ("potential", Some("STREAMING|POTENTIAL"), Some("LATEST"), None, "nothing"),
            ("lost", Some("DISCONNECT"), Some("STREAMING|SYNC"), None, "nothing"),
            (
                "a member of nobody's quorum",
                Some("STREAMING|QUORUM"),
                Some("DISCONNECT"),
                None,
                "nothing",
            ),
            ("nobody claims anything", Some("DISCONNECT"), Some("DISCONNECT"), None, "complete"),
        ] {
            // A score says nothing: this one was set in a race.
            let mut last = node("pg03", &[], other);
            last.permanent.extend(written.map(|text| (names.quorum.clone(), text.to_owned())));
            let cib = cib(vec![node("pg01", &[("score", "1000")], own), last]);
            let word = match right(&cib, "pg01", &names) {
                Right::Complete => "complete",
                Right::Election(_) => "election",
                Right::BestEffort => "best effort",
                Right::Nothing { .. } => "nothing",
            };
            assert_eq!(word, expected, "{situation}");
        }
    }

    #[test]
    fn a_dead_primary_steps_back_only_for_standbys_that_can_go_ahead() {
        let names = Names::of("Postgresql");
        for (situation, data, claim, third, goes) in [
            ("synchronous", "STREAMING|SYNC", None, "STOP", true),
            ("potential", "STREAMING|POTENTIAL", None, "HS:potential", false),
            (
                "a quorum",
                "STREAMING|QUORUM",
                Some("1 of pg02,pg03 on timeline 2"),
                "HS:quorum",
                true,
            ),
            (
                "half a quorum",
                "STREAMING|QUORUM",
                Some("1 of pg02,pg03 on timeline 2"),
                "STOP",
                false,
            ),
            ("both needed", "STREAMING|QUORUM", Some("2 of pg02,pg03 on timeline 2"), "STOP", true),
        ] {
            let mut own = node("pg01", &[("status", "PRI")], Some("LATEST"));
            own.permanent.extend(claim.map(|text| (names.quorum.clone(), text.to_owned())));
            let cib = cib(vec![
                own,
                node("pg02", &[("status", "HS:quorum"), ("score", "100")], Some(data)),
                node("pg03", &[("status", third)], Some(data)),
            ]);
            assert_eq!(standbys_go_ahead(&cib, "pg01", &names), goes, "{situation}");
        }
    }

    #[test]
    fn the_shutdown_checkpoint_is_held_once_its_end_was_received() {
        assert!(holds_shutdown(at(1, 0x578), at(1, 0x500)));
        assert!(!holds_shutdown(at(1, 0x500), at(1, 0x500)));
        assert!(!holds_shutdown(at(2, 0x900), at(1, 0x500)));
    }
}
