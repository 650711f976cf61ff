//! What must be so after an interruption.

use std::time::Instant;

use serde_json::Value;

use crate::{
    cell::{EXPIRY, SLACK, SOON},
    coordinator::Coordinator,
    matrix::{Cell, Way},
    stage::{HOSTS, Stage},
    writers::{self, Writers},
};

/// Traffic is back, nothing is left, it is known what happened, and the next failover works.
pub(crate) async fn look_after(
    cell: Cell,
    stage: &Stage,
    writers: &Writers,
    coordinator: &Coordinator,
) -> Result<(), String> {
    if cell.way == Way::Outlast {
        // The expiry has let them go; what they wait for is a primary.
        stage.director.promotes(SOON).await?;
        writers.all_commit(SLACK).await?;
    } else {
        writers.all_commit(EXPIRY + SLACK).await?;
    }
    stage.mend();
    stage.becomes_whole(SOON).await?;
    if cell.point.is_on_record() {
        is_told(&stage.status().await?, cell, coordinator)?;
    }
    Ok(())
}

/// What the coordinator ended with and printed is what has happened.
pub(crate) fn is_true(
    (status, printed): &(i32, String),
    cell: Cell,
    before: &str,
    stage: &Stage,
) -> Result<(), String> {
    if cell.way.kills_coordinator() {
        return if *status == -1 { Ok(()) } else { Err(format!("killed, it ended with {status}")) };
    }
    let report: Value = serde_json::from_str(printed)
        .map_err(|error| format!("it ended with {status} and no report ({error}): {printed}"))?;
    let moved = stage.director.primary() != Some(before);
    let told = report["new_primary"]["name"].as_str();
    let knows = told.is_some() && told == stage.director.primary();
    let fits = match status {
        0 => moved && knows && report["stopped"].is_null(),
        3 | 4 | 6 => !moved && report["dirty"].as_array().is_some_and(Vec::is_empty),
        7 => knows || report["dirty"].to_string().contains("is not known"),
        _ => false,
    };
    let agrees = report["exit_code"] == *status;
    if fits && agrees { Ok(()) } else { Err(format!("moved: {moved}, but it told {report}")) }
}

/// `pgcm status` says what became of the failover.
fn is_told(status: &Value, cell: Cell, coordinator: &Coordinator) -> Result<(), String> {
    let last = &status["last_failover"];
    let holder = format!("ops, process {}", coordinator.pid);
    let of_this = last["holder"] == holder || cell.way == Way::Overtaken;
    let outcome = last["outcome"].as_str().unwrap_or_default();
    let ended = ["done", "put_back", "needs_hands", "unfinished"].contains(&outcome);
    let died = matches!(cell.way, Way::Kill | Way::Outlast);
    let step = !cell.point.place.is_exact() || last["step"] == cell.point.step;
    if of_this && ended && (!died || outcome == "unfinished" && step) {
        return Ok(());
    }
    Err(format!("`pgcm status` does not say what happened to {holder}: {last}"))
}

pub(crate) async fn next_works(stage: &Stage) -> Result<(), String> {
    let before = stage.director.primary();
    let (status, stdout, stderr) = stage.run(&["failover", "--output", "json"]).await;
    let logged: Vec<&str> = stderr.lines().filter(|line| line.contains("failover.")).collect();
    if status != 0 || stage.director.primary() == before {
        let text = logged.join("\n");
        return Err(format!("the next failover ended with {status}: {stdout}\n{text}"));
    }
    let report: Value = serde_json::from_str(&stdout).map_err(|error| error.to_string())?;
    let steps = report["steps"].as_array().cloned().unwrap_or_default();
    let has_point =
        |step: &Value| crate::matrix::POINTS.iter().any(|point| step["step"] == point.step);
    match steps.iter().find(|step| !has_point(step)) {
        None => Ok(()),
        Some(step) => Err(format!("nothing is interrupted in the step {step}")),
    }
}

/// What the clients saw, and what is stored of it. In the time `let_go`, they had no primary.
pub(crate) async fn judge(
    cell: Cell,
    stage: &Stage,
    writers: Writers,
    let_go: Option<(Instant, Instant)>,
) -> Result<(), String> {
    let (longest, rows, errors) = writers.stop().await;
    let primary = stage.director.primary().ok_or("nobody is promoted")?;
    let client = stage.director.client(primary).await.map_err(|error| error.to_string())?;
    let stored = writers::stored(&client).await?;
    let lost = rows.difference(&stored).count();
    if lost > 0 {
        return Err(format!("{lost} of {} acknowledged commits are lost", rows.len()));
    }
    if longest > EXPIRY + SLACK && cell.way != Way::Outlast {
        return Err(format!("a client got nothing through for {longest:?}"));
    }
    let paused = stage.paused().await;
    if !paused.is_empty() {
        return Err(format!("{paused:?} of {HOSTS:?} are paused"));
    }
    let is_excused = |at: Instant| let_go.is_some_and(|(from, to)| from <= at && at <= to);
    match errors.into_iter().find(|(_, at)| !is_excused(*at)) {
        Some((error, _)) if !cell.way.kills_pgbouncer() => Err(format!("a client saw {error}")),
        _ => Ok(()),
    }
}
