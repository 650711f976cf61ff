//! The proof that a standby holds every acknowledged commit, by asking the others where they are now.
//!
//! Nothing that was written down earlier counts as a position: a stale figure could win.

use std::{collections::BTreeMap, time::Duration};

use nix::sys::signal::Signal;
use slog::{info, warn};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout_at},
};

use super::context::{Agent, Failure};
use crate::{
    edge::{
        agent_sql::{Local, Remote, State},
        command::Run,
    },
    error::chain,
    model::agent::{
        cib::{Cib, Node},
        claim::{DataStatus, Score, Status},
        code::OcfCode,
        election::{OwnFiles, Right, StartScore, right, shutdown_refusal, start_score},
        lsn::Position,
        quorum_election::{Answers, Candidate, Election, TooFewSeen, Verdict, best_of},
        settings::Settings,
    },
};

/// Once enough have answered, the others get this much longer: one of them may be further ahead.
const LATECOMERS: Duration = Duration::from_millis(200);

/// Between two answers of one node that must agree: a server that still replays moves on.
const STANDS_STILL: Duration = Duration::from_millis(40);

/// How long to wait before asking again when too few have answered.
const AGAIN: Duration = Duration::from_millis(300);

/// A server that runs as a standby.
const A_STANDBY: OwnFiles = OwnFiles { standby_signal: true, fresh_backup: false };

/// Proves that this standby may be promoted, and gets what it lacks from whoever holds more.
///
/// Returns what this node has received by then. Costs nothing where its claim is complete.
///
/// # Errors
/// When it may lack acknowledged commits, with who is missing; its score says so afterwards.
pub(super) async fn hold<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    local: &Local,
    cib: &Cib,
    state: &State,
) -> Result<Position, Failure> {
    let received = agent.received(state.position, state.checkpoint_timeline);
    let deadline = Instant::now() + agent.share(3, Duration::from_secs(15));
    let mut cib = cib.clone();
    loop {
        // Asked anew in each round: a claim may have ended meanwhile.
        let verdict = match right(&cib, &agent.node, agent.names()) {
            Right::Complete => return Ok(received),
            Right::Nothing { complete } => {
                let complete = if complete.is_empty() {
                    "no known node".to_owned()
                } else {
                    complete.join(", ")
                };
                let why = format!(
                    "{} does not hold every acknowledged commit, {complete} may; start one of those",
                    agent.node
                );
                return Err(refuse(agent, Score::NEVER, why).await);
            }
            Right::Election(election) => ask(agent, &cib, &election, received, deadline).await,
            Right::BestEffort => ask_all(agent, &cib, received, deadline).await,
        };
        match verdict {
            Verdict::Elected => return Ok(received),
            Verdict::Behind { leader, position } => {
                return catch_up(agent, local, cib.node(&leader), position).await;
            }
            Verdict::TooFewSeen(missing) if Instant::now() >= deadline => {
                return Err(refuse(agent, Score::NEVER, too_few(agent, &missing)).await);
            }
            Verdict::TooFewSeen(_) => {}
        }
        sleep(AGAIN).await;
        cib = agent.attributes.query().await?;
    }
}

/// Lets a standby that no primary vouches for become a candidate where its claim allows it: one that is
/// synchronous at once, a member of a quorum as soon as an election can succeed, since a promotion that must
/// fail would only be counted against this node.
pub(super) async fn candidacy<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    cib: &Cib,
    state: &State,
) -> Result<(), Failure> {
    let own = cib.node(&agent.node);
    if own.and_then(|own| own.score(agent.names())).is_some_and(Score::allows_promotion) {
        return Ok(());
    }
    let data = own.and_then(|own| own.data_status(agent.names()));
    if data.is_some_and(DataStatus::is_complete) {
        return reclaim(agent, cib, state).await;
    }
    let Right::Election(election) = right(cib, &agent.node, agent.names()) else { return Ok(()) };
    if !state.exhausted {
        return Ok(());
    }
    let received = agent.received(state.position, state.checkpoint_timeline);
    let deadline = Instant::now() + agent.share(4, Duration::from_secs(3));
    let score = match ask(agent, cib, &election, received, deadline).await {
        Verdict::Elected => Score::SYNC,
        Verdict::Behind { .. } => Score::BEHIND,
        Verdict::TooFewSeen(missing) => {
            warn!(agent.log, "no primary, and too few of the quorum are seen to elect one";
                "event" => "agent.election.wait", "why" => too_few(agent, &missing));
            return Ok(());
        }
    };
    info!(agent.log, "enough of the quorum are seen, this node may be promoted";
        "event" => "agent.election.candidate", "score" => %score);
    agent.attributes.set_score(&agent.node, score).await?;
    Ok(())
}

/// Takes back the score that goes with a claim to every acknowledged commit.
///
/// The primary may have died after it wrote the claim and before the score. And when a node joins while a score is set, Pacemaker's
/// attribute daemon there can be left with the one before, which it writes for all nodes once it becomes
/// their writer (seen with 3.0.0): nobody would be promoted until the old primary is back.
async fn reclaim<R: Run + Clone>(
    agent: &Agent<R>,
    cib: &Cib,
    state: &State,
) -> Result<(), Failure> {
    let received = agent.received(state.position, state.checkpoint_timeline);
    if shutdown_refusal(cib, &agent.node, agent.names(), received).is_none() {
        let StartScore { score, .. } = start_score(cib, &agent.node, agent.names(), A_STANDBY);
        info!(agent.log, "no primary, and this node's score does not go with what it holds";
            "event" => "agent.election.reclaim", "score" => %score);
        agent.attributes.set_score(&agent.node, score).await?;
    }
    Ok(())
}

/// One round of an election: asks everybody who matters, at once, and judges.
async fn ask<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    cib: &Cib,
    election: &Election,
    received: Position,
    deadline: Instant,
) -> Verdict {
    let candidate = Candidate { own: agent.node.clone(), received };
    let matters = |node: &&Node| node.name != agent.node && election.asks(&node.name);
    let enough =
        |answers: &Answers| !matches!(election.judge(&candidate, answers), Verdict::TooFewSeen(_));
    let nodes = cib.nodes.values().filter(matters).collect();
    let answers = survey(agent, nodes, deadline, enough).await;
    info!(agent.log, "asked the other nodes for their positions"; "event" => "agent.election.ask",
        "claim" => %election.claim, "received" => %received, "answers" => ?answers);
    election.judge(&candidate, &answers)
}

/// Without a quorum: asks every other node, and judges by those that answer.
async fn ask_all<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    cib: &Cib,
    received: Position,
    deadline: Instant,
) -> Verdict {
    let candidate = Candidate { own: agent.node.clone(), received };
    let others = cib.nodes.values().filter(|node| node.name != agent.node).collect();
    let answers = survey(agent, others, deadline, |_| false).await;
    best_of(&candidate, &answers)
}

/// Where each of `nodes` is. Ends by `deadline`, and soon after `enough` have answered.
async fn survey<R: Run + Clone + 'static>(
    agent: &Agent<R>,
    nodes: Vec<&Node>,
    deadline: Instant,
    enough: impl Fn(&Answers) -> bool,
) -> Answers {
    let limit = deadline.saturating_duration_since(Instant::now()) / 2;
    let limit = limit.clamp(Duration::from_millis(500), Duration::from_secs(3));
    let mut answers: Answers = BTreeMap::new();
    let mut asked = JoinSet::new();
    for node in nodes {
        match reachable(agent, node) {
            Ok(address) => {
                let remote = agent.remote(address, limit);
                let name = node.name.clone();
                asked.spawn(async move { (name, position(&remote).await) });
                answers.insert(node.name.clone(), Err("did not answer in time".to_owned()));
            }
            Err(why) => {
                answers.insert(node.name.clone(), Err(why));
            }
        }
    }
    let mut until = Instant::now() + limit;
    let mut closing = false;
    loop {
        if !closing && enough(&answers) {
            closing = true;
            until = until.min(Instant::now() + LATECOMERS);
        }
        match timeout_at(until, asked.join_next()).await {
            Ok(Some(Ok((name, answer)))) => {
                answers.insert(name, answer);
            }
            Ok(Some(Err(_))) => {}
            Ok(None) | Err(_) => return answers,
        }
    }
}

/// The address of a node whose Postgres says where its WAL ends.
fn reachable<'a, R: Run + Clone>(agent: &Agent<R>, node: &'a Node) -> Result<&'a str, String> {
    if !node.online {
        return Err("is offline".to_owned());
    }
    // Until the status says otherwise its start may still be reading what is on its own disk.
    if node.status(agent.names()).is_none_or(|status| status == Status::Stopped) {
        return Err("does not run yet".to_owned());
    }
    node.address(agent.names()).ok_or_else(|| "has published no address".to_owned())
}

/// A node's position, once two answers in a row agree.
async fn position<R: Run>(remote: &Remote<R>) -> Result<Position, String> {
    let deadline = Instant::now() + remote.limit;
    let mut last = None;
    loop {
        let (_, position) = remote.identify().await.map_err(|error| chain(&error).to_string())?;
        if last.replace(position) == Some(position) {
            return Ok(position);
        }
        if Instant::now() >= deadline {
            return Err(format!("is still replaying, at {}", position.lsn));
        }
        sleep(STANDS_STILL).await;
    }
}

/// Follows `leader` until everything up to `position` is here.
async fn catch_up<R: Run + Clone>(
    agent: &Agent<R>,
    local: &Local,
    leader: Option<&Node>,
    position: Position,
) -> Result<Position, Failure> {
    let name = leader.map_or("", |node| node.name.as_str());
    let address = leader.and_then(|node| node.address(agent.names())).unwrap_or_default();
    info!(agent.log, "another standby holds more, getting it from there first";
        "event" => "agent.election.catch_up", "from" => name, "up_to" => %position);
    let primary_conninfo = agent.conninfo(address);
    let settings = Settings { primary_conninfo, ..agent.postmaster.settings() };
    agent.postmaster.write_settings(&settings)?;
    if let (_, Some(pid)) = agent.postmaster.process()? {
        agent.postmaster.signal(pid, Signal::SIGHUP)?;
    }
    let deadline = Instant::now() + agent.share(2, Duration::from_secs(30));
    loop {
        let state = local.state().await?;
        let received = agent.received(state.position, state.checkpoint_timeline);
        if received >= position {
            info!(agent.log, "caught up"; "event" => "agent.election.caught_up",
                "received" => %received);
            return Ok(received);
        }
        if Instant::now() >= deadline {
            let why = format!(
                "{} received WAL up to {} on timeline {}, {name} holds it up to {} on timeline {} and \
                 does not send it; promote {name}, or see the log of Postgres on both",
                agent.node, received.lsn, received.timeline, position.lsn, position.timeline
            );
            return Err(refuse(agent, Score::BEHIND, why).await);
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Lowers this node's score, so that Pacemaker tries another one.
async fn refuse<R: Run + Clone>(agent: &Agent<R>, score: Score, why: String) -> Failure {
    let lowered = agent.attributes.set_score(&agent.node, score).await;
    agent.tolerate("promotion score", lowered);
    Failure::new(OcfCode::Generic, why)
}

fn too_few<R: Run + Clone>(agent: &Agent<R>, seen: &TooFewSeen) -> String {
    format!(
        "{seen}; or, to give up what only they may hold: crm_attribute -N {node} -n {name} -v LATEST -l \
         forever",
        node = agent.node,
        name = agent.names().data_status,
    )
}
