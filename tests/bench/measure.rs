//! Failovers under load.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::{
    commits::{REACH_MS, bars, longest_gap},
    docker::{
        cluster::Cluster,
        load::{Load, Seen},
    },
    floor::Floor,
    options::LoadProfile,
    results::{Group, Run, StepTime},
};

/// The clients work this long before and after the failover: more than the picture shows.
const AROUND: Duration = Duration::from_millis(REACH_MS as u64 + 500);
const WHOLE_LIMIT: Duration = Duration::from_secs(90);

/// `rounds` failovers under one load, the floor after each.
pub(crate) async fn group(
    cluster: &Cluster,
    floor: &Floor<'_>,
    load: LoadProfile,
    rounds: usize,
) -> Group {
    let (mut runs, mut floors) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        cluster.becomes_whole(WHOLE_LIMIT).await;
        let run = failover(cluster, load).await;
        cluster.becomes_whole(WHOLE_LIMIT).await;
        let below = floor.measure().await;
        println!(
            "{} clients, run {round} of {rounds}: longest wait {:.0} ms, floor {:.0} ms, {} errors, \
             {} of {} commits lost",
            load.clients,
            run.longest_wait_ms,
            below.sum_ms(),
            run.errors.len(),
            run.lost,
            run.commits,
        );
        runs.push(run);
        floors.push(below);
    }
    Group { clients: load.clients, pace_ms: millis(load.pace), runs, floors }
}

async fn failover(cluster: &Cluster, profile: LoadProfile) -> Run {
    let load = Load::start_paced(cluster, profile.clients, profile.pace).await;
    load.every_client_commits(Duration::from_secs(60)).await;
    let began = Instant::now();
    tokio::time::sleep(AROUND).await;
    let moved = cluster.exec("app01", &["pgcm", "failover", "--output", "json"]).await;
    tokio::time::sleep(AROUND).await;
    let seen = load.stop().await;
    let lost = seen.lost(cluster).await;
    let failed = (moved.status != 0).then(|| moved.text());
    let report = match failed {
        Some(_) => Value::Null,
        None => serde_json::from_str(&moved.done()).unwrap(),
    };
    Run { failed, ..run(&report, seen, lost, began) }
}

fn run(report: &Value, seen: Seen, lost: usize, began: Instant) -> Run {
    let mut commits: Vec<f64> = seen
        .commits()
        .into_iter()
        .filter_map(|at| at.checked_duration_since(began))
        .map(millis)
        .collect();
    commits.sort_by(f64::total_cmp);
    let gap = longest_gap(&commits).unwrap();
    let name = |which: &str| report[which]["name"].as_str().unwrap_or("?").to_owned();
    let steps = report["steps"].as_array().cloned().unwrap_or_default();
    let step = |step: &Value| StepTime {
        step: step["step"].as_str().unwrap().to_owned(),
        ms: step["duration_ms"].as_f64().unwrap(),
    };
    Run {
        from: name("old_primary"),
        to: name("new_primary"),
        failed: None,
        longest_wait_ms: millis(seen.longest_wait),
        client_longest_wait_ms: seen.longest_waits.iter().copied().map(millis).collect(),
        longest_login_ms: millis(seen.longest_login),
        no_commit_ms: gap.length_ms,
        clients_held_ms: report["clients_held_ms"].as_f64().unwrap_or_default(),
        commits: commits.len(),
        logins: seen.logins,
        lost,
        steps: steps.iter().map(step).collect(),
        commits_per_bar: bars(&commits, gap.from_ms),
        errors: seen.errors,
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
