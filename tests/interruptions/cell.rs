//! Carries out one interruption.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    aftermath::{is_true, judge, look_after, next_works},
    coordinator::Coordinator,
    expiry::Publication,
    matrix::{Cell, Place, RESTART, Way, Who},
    relay::When,
    snare::Snare,
    stage::{HOSTS, Limits, Stage},
    writers::Writers,
};
use nix::sys::signal::Signal;

pub(crate) const LIMITS: Limits =
    Limits { expiry: "4500ms", lease: "2s", moves: "2500ms", resumes: "1s" };
pub(crate) const EXPIRY: Duration = Duration::from_millis(4500);
/// Longer than the lease, and short of the expiry by what a busy machine needs for the rest of a move:
/// whoever does not know that the lock is lost would go on.
const FREEZE: Duration = Duration::from_millis(2300);
/// What clients may wait beyond the expiry, or until a primary that comes later than that is followed: the machine
/// has more to do.
pub(crate) const SLACK: Duration = Duration::from_secs(2);
/// Within its own limits a failover ends by then.
const ENDS: Duration = Duration::from_secs(30);
pub(crate) const SOON: Duration = Duration::from_secs(15);
/// Between Ctrl-C and Ctrl-C.
const IMPATIENCE: Duration = Duration::from_millis(100);
/// How long the primary is on its way beyond the expiry of the pause.
const OUTLASTS: Duration = Duration::from_secs(1);
/// How often a failover is begun that ends before it is interrupted.
const TRIES: u32 = 3;
/// What a coordinator without its lock may still ask: who is primary, and to let clients go.
const HARMLESS: [&str; 6] = ["health", "check", "blockers", "settle", "follow", "resume"];

/// Interrupts a failover on `stage` and says what is not as it must be.
///
/// # Errors
/// What went wrong, with the coordinator's log.
pub(crate) async fn run(cell: Cell, stage: &mut Stage) -> Result<(), String> {
    stage.becomes_whole(SOON).await.map_err(|why| format!("before anything was done: {why}"))?;
    let primary = stage.director.primary().expect("it is whole");
    let writers = Writers::start(&stage.ports(), &format!("{}-{}", cell.name(), stage_time()));
    writers.all_commit(SOON).await?;

    let publication = Publication::of_another_than(primary, stage.etcd.clone());
    let mut snare = arm(cell.point.first(), stage, primary);
    let mut coordinator = stage.coordinator();
    let mut let_go = None;
    let outcome = async {
        let mut tries = 1;
        while !reach(cell, stage, snare.as_deref(), &mut coordinator).await? {
            if tries == TRIES {
                return Err(format!("{tries} times it ended before it was interrupted"));
            }
            tries += 1;
            stage.becomes_whole(SOON).await?;
            coordinator = stage.coordinator();
        }
        if cell.point.stopped.is_some() {
            snare = stop(cell, stage, primary, snare.as_deref(), &coordinator).await?;
        }
        let ended = strike(cell, stage, primary, snare.as_deref(), &mut coordinator).await?;
        look_after(cell, stage, &writers, &coordinator).await?;
        // What another failover publishes is none of this one's.
        if cell.way != Way::Overtaken {
            let_go = publication.too_late_for(&coordinator);
        }
        is_true(&ended, cell, primary, stage)?;
        next_works(stage).await
    };
    let outcome = outcome.await;
    stage.mend();
    stage.director.let_go();
    let seen = judge(cell, stage, writers, let_go).await;
    outcome.and(seen).map_err(|why| format!("{why}\n{}", coordinator.log()))
}

/// Tells apart the rows of two runs of the same cell.
fn stage_time() -> u64 {
    pgcm::edge::clock::unix_ms()
}

fn arm(place: Place, stage: &Stage, primary: &str) -> Option<Arc<Snare>> {
    match place {
        Place::Call(who, call, when) => Some(stage.net.hold(&who.agent(primary), call, when)),
        Place::Moving => Some(stage.director.hold()),
        Place::Begins | Place::Locked => None,
    }
}

/// Waits until the failover is where it is to be struck; false when it ended before.
async fn reach(
    cell: Cell,
    stage: &Stage,
    snare: Option<&Snare>,
    coordinator: &mut Coordinator,
) -> Result<bool, String> {
    let begins = coordinator.logs("failover.step.begin", cell.point.step);
    let there = async {
        match (cell.point.first(), snare) {
            (Place::Locked, _) => {
                while !stage.is_locked().await {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
            (_, Some(snare)) => snare.catches().await,
            (_, None) => begins.await,
        }
    };
    tokio::select! {
        () = there => {
            return match cell.point.first().is_exact() && cell.point.is_on_record() {
                true => notes(cell, stage).await.map(|()| true),
                false => Ok(true),
            };
        }
        ended = coordinator.ends(SOON) => drop(ended?),
    }
    // Refused, or stopped by its own limits on a machine that is too busy.
    Ok(false)
}

/// The lock tells which step this is, while it runs.
async fn notes(cell: Cell, stage: &Stage) -> Result<(), String> {
    let until = Instant::now() + Duration::from_secs(1);
    let mut noted = None;
    while noted.as_deref() != Some(cell.point.step) {
        if Instant::now() > until {
            return Err(format!("the lock tells {noted:?}, not that this is {}", cell.point.step));
        }
        noted = stage.noted_step().await;
    }
    Ok(())
}

/// Asks the failover to stop where it is, and waits until its undo is held where it is to be struck.
async fn stop(
    cell: Cell,
    stage: &Stage,
    primary: &str,
    held: Option<&Snare>,
    coordinator: &Coordinator,
) -> Result<Option<Arc<Snare>>, String> {
    let snare = arm(cell.point.place, stage, primary);
    let undone = coordinator.logs("failover.undo.begin", cell.point.step);
    coordinator.signal(Signal::SIGTERM);
    let caught = async {
        undone.await;
        held.into_iter().for_each(Snare::release);
        if let Some(snare) = &snare {
            snare.catches().await;
        }
    };
    let caught = tokio::time::timeout(SOON, caught).await;
    caught.map(|()| snare).map_err(|_| "asked to stop, it undoes nothing".to_owned())
}

async fn strike(
    cell: Cell,
    stage: &mut Stage,
    primary: &str,
    snare: Option<&Snare>,
    coordinator: &mut Coordinator,
) -> Result<(i32, String), String> {
    let release = || {
        if let Some(snare) = snare {
            snare.release();
        }
    };
    match cell.way {
        Way::Kill => {
            coordinator.signal(Signal::SIGKILL);
            // The last word of the dead would hide what becomes of clients without it.
            if let Place::Call(who, "resume", When::Before) = cell.point.place {
                stage.net.cut([who.agent(primary).as_str()]);
            }
        }
        Way::Terminate => coordinator.signal(Signal::SIGTERM),
        Way::Interrupt => {
            coordinator.signal(Signal::SIGINT);
            tokio::time::sleep(IMPATIENCE).await;
            coordinator.signal(Signal::SIGINT);
        }
        Way::HangUp => coordinator.signal(Signal::SIGHUP),
        Way::Freeze => return freeze(cell, stage, release, coordinator).await,
        Way::CutFromEtcd => stage.wire.cut(),
        Way::CutFromOne => {
            let who = match cell.point.place {
                Place::Call(who, ..) => who,
                Place::Moving => Who::Primary,
                Place::Begins | Place::Locked => Who::App,
            };
            stage.net.cut([who.agent(primary).as_str()]);
        }
        Way::CutFromAll => stage.net.cut(stage.agents.iter().map(|agent| agent.name.as_str())),
        Way::Overtaken => {
            coordinator.signal(Signal::SIGKILL);
            stage.becomes_whole(EXPIRY + SLACK + SOON).await?;
            match cell.point.place {
                Place::Call(_, "resume" | "unmigrate", _) => hinder(stage, release).await?,
                _ => overtake(stage, release).await?,
            }
        }
        Way::Outlast => {
            coordinator.signal(Signal::SIGKILL);
            tokio::time::sleep(EXPIRY + OUTLASTS).await;
        }
        _ => strike_part(cell.way, stage, primary, release).await,
    }
    release();
    coordinator.ends(ENDS).await
}

/// Lets the coordinator stand still for longer than its lease; then it may only let clients go.
async fn freeze(
    cell: Cell,
    stage: &Stage,
    release: impl Fn(),
    coordinator: &mut Coordinator,
) -> Result<(i32, String), String> {
    coordinator.signal(Signal::SIGSTOP);
    release();
    tokio::time::sleep(FREEZE).await;
    let before = stage.net.calls().len();
    coordinator.signal(Signal::SIGCONT);
    let ended = coordinator.ends(ENDS).await?;
    let after = stage.net.calls().split_off(before);
    let acts = |call: &&String| !HARMLESS.iter().any(|harmless| call.ends_with(harmless));
    match after.iter().find(acts).filter(|_| cell.point.is_locked()) {
        Some(call) => Err(format!("without the lock it asked for `{call}`: {after:?}")),
        None => Ok(ended),
    }
}

/// Strikes something that the failover needs.
async fn strike_part(way: Way, stage: &mut Stage, primary: &str, release: impl Fn()) {
    match way {
        Way::FreezeAgent(who) => {
            let place = stage.place(&who.agent(primary));
            stage.signal_agent(place, Signal::SIGSTOP);
            release();
            tokio::time::sleep(FREEZE).await;
            stage.signal_agent(place, Signal::SIGCONT);
        }
        Way::RestartAgent(who) => {
            let place = stage.place(&who.agent(primary));
            release();
            stage.stop_agent(place, ENDS).await;
            tokio::time::sleep(RESTART).await;
            stage.start_agent(place);
        }
        Way::CutAgentFromEtcd(who) => {
            let place = stage.place(&who.agent(primary));
            stage.agents[place].wire.cut();
            release();
            tokio::time::sleep(FREEZE).await;
            stage.agents[place].wire.mend();
        }
        Way::FreezePgbouncer => {
            stage.pgbouncers[0].signal(Signal::SIGSTOP);
            release();
            tokio::time::sleep(FREEZE).await;
            stage.pgbouncers[0].signal(Signal::SIGCONT);
        }
        Way::KillEtcd => {
            stage.server.stop();
            release();
            stage.server.start().await;
        }
        Way::FreezeEtcd => {
            stage.server.signal(Signal::SIGSTOP);
            release();
            tokio::time::sleep(FREEZE).await;
            stage.server.signal(Signal::SIGCONT);
        }
        _ => {
            let agent = match way {
                Way::KillAgent(who) => Some(who),
                Way::KillAppHost => Some(Who::App),
                _ => None,
            };
            let agent = agent.map(|who| stage.place(&who.agent(primary)));
            agent.into_iter().for_each(|place| stage.kill_agent(place));
            if way.kills_pgbouncer() {
                stage.pgbouncers[0].stop();
            }
            release();
            tokio::time::sleep(RESTART).await;
            if way.kills_pgbouncer() {
                stage.pgbouncers[0].start().await;
            }
            agent.into_iter().for_each(|place| stage.start_agent(place));
        }
    }
}

/// Another failover is done before the held call of the dead one arrives.
async fn overtake(stage: &Stage, release: impl Fn()) -> Result<(), String> {
    next_works(stage).await?;
    stage.becomes_whole(SOON).await?;
    let primary = stage.director.primary();
    release();
    stays(|| begins_nothing(stage, primary)).await
}

async fn begins_nothing(stage: &Stage, primary: Option<&str>) -> Result<(), String> {
    let (paused, now) = (stage.paused().await, stage.director.primary());
    if paused.is_empty() && now == primary {
        return Ok(());
    }
    Err(format!("{paused:?} hold their clients, {primary:?} was the primary and {now:?} is"))
}

/// The held call of the dead one, which ends what it had begun, arrives while another failover holds all clients
/// and moves the primary.
async fn hinder(stage: &Stage, release: impl Fn()) -> Result<(), String> {
    let moving = stage.director.hold();
    let mut other = Coordinator::start(stage.failover());
    let caught = tokio::time::timeout(SOON, moving.catches()).await;
    caught.map_err(|_| format!("another failover does not get far: {}", other.log()))?;
    release();
    let held = stays(|| ends_nothing(stage)).await;
    moving.release();
    let (status, printed) = other.ends(ENDS).await?;
    held?;
    if status == 0 {
        Ok(())
    } else {
        Err(format!("the other failover ended with {status}: {printed}"))
    }
}

async fn ends_nothing(stage: &Stage) -> Result<(), String> {
    let (paused, has_constraint) = (stage.paused().await, stage.director.has_constraint());
    if paused == HOSTS && has_constraint {
        return Ok(());
    }
    Err(format!("only {paused:?} hold their clients, the constraint is there: {has_constraint}"))
}

/// Looks for a while whether a call of a dead attempt takes effect.
async fn stays<F: Future<Output = Result<(), String>>>(
    is_so: impl Fn() -> F,
) -> Result<(), String> {
    let until = Instant::now() + Duration::from_millis(600);
    while Instant::now() < until {
        let seen = is_so().await;
        seen.map_err(|what| format!("a call of the attempt before took effect: {what}"))?;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
