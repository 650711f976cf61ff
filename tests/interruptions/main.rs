//! The interruption matrix: a failover, and everything that it needs, is interrupted at every step and
//! in the middle of each, in every way.
//!
//! The programs are real, etcd, Postgres and PgBouncer included; only Pacemaker is replaced. After each
//! interruption clients write again within the expiry, no acknowledged commit is lost, nothing is left
//! paused, constrained or locked, `pgcm status` says what happened, and the next failover works.
//! `PGCM_CELLS="kill@moving freeze"` chooses. With `BROKEN`, the program has a guard taken out, and the
//! matrix passes only if every chosen interruption shows that.
#![allow(clippy::unwrap_used, reason = "tests")]

mod aftermath;
mod cell;
mod coordinator;
mod director;
mod expiry;
mod matrix;
mod newcomer;
mod relay;
mod snare;
mod stage;
mod stalls;
#[path = "../support/mod.rs"]
mod support;
mod unprinted;
mod wire;
mod writers;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Instant,
};

use matrix::Cell;
use stage::Stage;

/// Stages that are interrupted at the same time: mostly they wait. PGCM_LANES names another number, for
/// a machine that others use, too.
const LANES: usize = 4;

/// How often an interruption is tried on a machine that stands still meanwhile.
const TRIES: usize = 3;

#[derive(Default)]
struct Work {
    /// With how often each was tried.
    todo: VecDeque<(Cell, usize)>,
    failed: Vec<String>,
}

async fn lane(work: Arc<Mutex<Work>>) {
    let mut stage: Option<Stage> = None;
    loop {
        let Some((cell, tried)) = work.lock().unwrap().todo.pop_front() else { return };
        let at = match stage.as_mut() {
            Some(stage) => stage,
            None => stage.insert(Stage::start(cell::LIMITS).await),
        };
        let (began, stalls) = (Instant::now(), stalls::so_far());
        let outcome = cell::run(cell, at).await;
        let took = began.elapsed().as_secs_f64();
        match outcome {
            Ok(()) => println!("ok      {took:4.1} s  {}", cell.name()),
            Err(why) if stalls::so_far() - stalls > stalls::STALLED && tried + 1 < TRIES => {
                let why = why.lines().next().unwrap_or_default();
                println!("again   {took:4.1} s  {}: the machine stood still; {why}", cell.name());
                work.lock().unwrap().todo.push_back((cell, tried + 1));
                stage = None;
            }
            Err(why) => {
                println!("FAILED  {took:4.1} s  {}: {why}\n{}", cell.name(), at.logs());
                work.lock().unwrap().failed.push(cell.name());
                // Whatever is left there is not the next one's fault.
                stage = None;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn any_interruption_leaves_clients_served_and_nothing_behind() {
    let words = std::env::var("PGCM_CELLS").unwrap_or_default();
    let todo: VecDeque<_> = matrix::cells(&words).into_iter().map(|cell| (cell, 0)).collect();
    assert!(!todo.is_empty(), "no interruption is called any of: {words}");
    stalls::watch();
    let (count, began) = (todo.len(), Instant::now());
    let work = Arc::new(Mutex::new(Work { todo, failed: Vec::new() }));
    let mut lanes = tokio::task::JoinSet::new();
    let named = std::env::var("PGCM_LANES").ok().and_then(|lanes| lanes.parse().ok());
    for _ in 0..named.unwrap_or(LANES).min(count) {
        lanes.spawn(lane(work.clone()));
    }
    while let Some(ended) = lanes.join_next().await {
        ended.expect("a stage stands");
    }
    let failed = work.lock().unwrap().failed.clone();
    println!("{count} interruptions in {:.0} s, failed: {failed:?}", began.elapsed().as_secs_f64());
    match std::env::var("BROKEN").ok().filter(|broken| !broken.is_empty()) {
        Some(broken) => assert_eq!(failed.len(), count, "not all show that {broken} was taken out"),
        None => assert!(failed.is_empty(), "{failed:?}"),
    }
}
