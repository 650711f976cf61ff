//! Moving the promoted role, against a real etcd; Pacemaker's tools are replayed.

mod support;

use std::{sync::Arc, time::Duration};

use pgcm::{
    model::location::MoveRule,
    telemetry::log::discard,
    work::{
        mover::{MoveError, Mover, PATIENCE},
        publish::CLUSTER,
    },
};
use support::{
    eventually,
    stage::{HEALTHY, SOON, Scene, Stage, stage},
};
use tokio::time::{Instant, sleep};

fn mover(stage: &Stage) -> Mover<Scene, Scene> {
    let postgres = Arc::new(stage.scene.clone());
    Mover::new(
        "pg01".to_owned(),
        Arc::clone(&stage.pacemaker),
        postgres,
        Arc::clone(&stage.etcd),
        discard(),
    )
}

#[tokio::test]
async fn a_move_ends_when_another_node_is_published_on_a_newer_timeline() {
    let stage = stage().await;
    stage.published().await;
    let mut after = stage.view().await;
    after.primary.name = "pg02".to_owned();
    after.primary.timeline = 4;
    let mover = mover(&stage);
    let lifetime = Duration::from_secs(60);
    let moving = mover.migrate("a1", None, SOON, lifetime);
    let promoting = async {
        eventually(SOON, "the request is made", || async { stage.scene.calls("--modify") == 1 })
            .await;
        stage.put(CLUSTER, &serde_json::to_string(&after).unwrap()).await;
    };
    let (moved, ()) = tokio::join!(moving, promoting);
    assert_eq!(moved.expect("moved"), after.primary);
    let constraint = stage.scene.0.lock().unwrap().constraints[0].clone();
    assert!(constraint.contains("value=\"pg02\"") && constraint.contains("date_expression"));
    assert!(mover.unmigrate("a1", || true).await.expect("removed"));
    assert!(!mover.unmigrate("a1", || true).await.expect("removed before"));
}

#[tokio::test]
async fn a_move_taken_back_while_it_is_asked_for_leaves_no_constraint() {
    let stage = stage().await;
    stage.published().await;
    stage.scene.set(|world| world.modify_takes = Duration::from_millis(500));
    let mover = mover(&stage);
    let moving = mover.migrate("a1", None, Duration::from_secs(2), SOON);
    let taking_back = async {
        let asking = || async { stage.scene.calls("--modify") == 1 };
        eventually(SOON, "cibadmin is under way", asking).await;
        assert!(stage.scene.0.lock().unwrap().constraints.is_empty(), "and has not landed");
        mover.unmigrate("a1", || true).await
    };
    let (moved, taken_back) = tokio::join!(moving, taking_back);
    moved.expect_err("nobody moves");
    assert!(taken_back.expect("removed"), "it waited for the constraint, then removed it");
    assert!(stage.scene.0.lock().unwrap().constraints.is_empty());
}

#[tokio::test]
async fn a_move_that_arrives_after_it_was_taken_back_is_refused() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    assert!(!mover.unmigrate("a1", || true).await.expect("nothing was there"));
    let error = mover.migrate("a1", None, SOON, SOON).await.expect_err("withdrawn");
    assert!(matches!(error, MoveError::Withdrawn { .. }), "{error}");
    assert_eq!(stage.scene.calls("--modify"), 0);
    let limit = Duration::from_millis(300);
    let error = mover.migrate("a2", None, limit, SOON).await.expect_err("nobody moves");
    assert!(matches!(error, MoveError::TimedOut { .. }), "{error}");
    assert_eq!(stage.scene.calls("--modify"), 1, "another attempt is free to move");
}

#[tokio::test]
async fn a_move_that_does_not_happen_says_what_was_seen() {
    let stage = stage().await;
    stage.published().await;
    let limit = Duration::from_millis(300);
    let error = mover(&stage).migrate("a1", None, limit, SOON).await.expect_err("nobody moves");
    assert!(matches!(error, MoveError::TimedOut { .. }), "{error}");
    assert!(error.to_string().contains("etcd still names pg01 on timeline 3"), "{error}");
}

#[tokio::test]
async fn nobody_is_called_primary_while_a_request_stands_that_takes_the_role_away() {
    let stage = stage().await;
    stage.published().await;
    stage.scene.set(|world| world.modify_takes = Duration::from_millis(300));
    let mover = mover(&stage);
    let brief = Duration::from_millis(600);
    let moving = Box::pin(mover.migrate("a1", None, brief, Duration::from_secs(60)));
    let settling = async {
        let asking = || async { stage.scene.calls("--modify") == 1 };
        eventually(SOON, "cibadmin is under way", asking).await;
        mover.settle("a1", brief).await
    };
    let (moved, settled) = tokio::join!(moving, Box::pin(settling));
    moved.expect_err("nobody moves");
    let error = settled.expect_err("pg01 is about to lose the role").to_string();
    assert!(error.contains("still asked to move the role to pg02"), "{error}");

    assert!(mover.unmigrate("a1", || true).await.expect("removed"));
    let settled = mover.settle("a1", SOON).await.expect("pg01 is still primary");
    assert_eq!(settled.name, "pg01");
    // Neither one that leads here nor one that has expired takes it away.
    let lead = |node: &str, until: &str| {
        let rule = MoveRule { clone: "msPostgresql", role: "Promoted", target: node, until };
        stage.scene.set(|world| world.constraints = vec![rule.xml()]);
    };
    for (node, until) in [("pg01", "2999-01-01T00:00:00Z"), ("pg02", "2001-01-01T00:00:00Z")] {
        lead(node, until);
        assert_eq!(mover.settle("a1", SOON).await.expect(node).name, "pg01");
    }
}

#[tokio::test]
async fn nobody_is_called_primary_whom_pacemaker_has_lost_or_who_may_be_on_the_lost_side() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    let pg01 = |state: &str| HEALTHY.replacen("online=\"true\"", state, 1);
    for (crm_mon, words) in [
        (pg01("online=\"false\""), "pg01 is promoted, but Pacemaker has lost it"),
        (HEALTHY.replacen("unclean=\"false\"", "unclean=\"true\"", 1), "Pacemaker has lost it"),
        (HEALTHY.replace("with_quorum=\"true\"", "with_quorum=\"false\""), "has no quorum"),
    ] {
        stage.scene.set(|world| world.crm_mon = (0, crm_mon));
        let error = mover.settle("a1", Duration::from_millis(300)).await.expect_err(words);
        assert!(error.to_string().contains(words), "{error}");
    }
    stage.scene.set(|world| world.crm_mon = (0, HEALTHY.to_owned()));
    assert_eq!(mover.settle("a1", SOON).await.expect("as before").name, "pg01");
}

#[tokio::test]
async fn what_arrives_after_its_attempt_asked_who_is_primary_begins_no_move() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    assert_eq!(mover.settle("a1", SOON).await.expect("settled").name, "pg01");
    let error = mover.migrate("a1", None, SOON, SOON).await.expect_err("withdrawn");
    assert!(matches!(error, MoveError::Withdrawn { .. }), "{error}");
    assert_eq!(stage.scene.calls("--modify"), 0);
}

#[tokio::test]
async fn a_target_that_does_not_qualify_touches_nothing() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    let error = mover.migrate("a1", Some("pg03"), SOON, SOON).await.expect_err("not synchronous");
    assert!(error.to_string().contains("name pg02, or nothing"), "{error}");
    stage.scene.set(|world| world.facts.standbys.clear());
    let error = mover.migrate("a1", None, SOON, SOON).await.expect_err("no standby");
    assert!(matches!(error, MoveError::NoTarget(_)), "{error}");
    assert_eq!(stage.scene.calls("--modify"), 0);
}

#[tokio::test]
async fn the_constraint_stays_until_the_new_primary_has_the_highest_score() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    let score = |value: &str| format!("master-Postgresql\" value=\"{value}\"");
    let promoted = |own: &str, other: &str| {
        // Both at once, or the one would be taken for the other.
        let text = HEALTHY.replace(&score("1000"), "@own@").replace(&score("100"), "@other@");
        let text = text.replace("@own@", &score(own)).replace("@other@", &score(other));
        stage.scene.set(|world| world.crm_mon = (0, text));
    };
    promoted("100", "1000");
    stage.scene.set(|world| world.constraints = vec!["<rsc_location/>".to_owned()]);
    let begun = Instant::now();
    let monitored = async {
        sleep(Duration::from_millis(500)).await;
        assert_eq!(stage.scene.calls("--delete"), 0, "Pacemaker would take the role back");
        promoted("1000", "-INFINITY");
    };
    let (removed, ()) = tokio::join!(mover.unmigrate("a1", || true), monitored);
    assert!(removed.expect("removed"));
    assert!(begun.elapsed() < PATIENCE, "nothing is left to wait for");

    promoted("100", "1000");
    stage.scene.set(|world| world.constraints = vec!["<rsc_location/>".to_owned()]);
    let error = mover.unmigrate("a1", || true).await.expect_err("it would be taken back");
    assert!(matches!(error, MoveError::Contested { .. }), "{error}");

    // As little is known of a Pacemaker that does not answer.
    stage.scene.set(|world| world.crm_mon = (102, String::new()));
    let error = mover.unmigrate("a1", || true).await.expect_err("it might be taken back");
    assert!(matches!(error, MoveError::Pacemaker(_)), "{error}");
    assert_eq!(stage.scene.calls("--delete"), 1, "only the one above");
    promoted("1000", "-INFINITY");
    let error = mover.unmigrate("a1", || false).await.expect_err("it may be another's by now");
    assert!(matches!(error, MoveError::Overtaken { .. }), "{error}");
    assert_eq!(stage.scene.0.lock().unwrap().constraints.len(), 1);
}

#[tokio::test]
async fn a_role_that_is_on_its_way_is_waited_for_before_the_constraint_goes() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    let nobody = HEALTHY.replace("role=\"Promoted\"", "role=\"Unpromoted\"");
    assert_ne!(nobody, HEALTHY);
    stage.scene.set(|world| world.constraints = vec!["<rsc_location/>".to_owned()]);
    stage.scene.set(|world| world.crm_mon = (0, nobody.clone()));
    let promoted = async {
        sleep(Duration::from_millis(500)).await;
        assert_eq!(stage.scene.calls("--delete"), 0, "whoever gets it may be taken back from");
        stage.scene.set(|world| world.crm_mon = (0, HEALTHY.to_owned()));
    };
    let (removed, ()) = tokio::join!(mover.unmigrate("a1", || true), promoted);
    assert!(removed.expect("removed"));
    // If nobody gets it, it is the constraint that may keep others from it.
    stage.scene.set(|world| world.constraints = vec!["<rsc_location/>".to_owned()]);
    stage.scene.set(|world| world.crm_mon = (0, nobody));
    let begun = Instant::now();
    assert!(mover.unmigrate("a1", || true).await.expect("removed"));
    assert!(begun.elapsed() >= PATIENCE, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_constraint_stays_while_the_promotion_that_it_asked_for_has_not_ended() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    stage.scene.set(|world| {
        world.constraints = vec!["<rsc_location/>".to_owned()];
        world.crm_mon.1 = HEALTHY.replace("role=\"Promoted\"", "role=\"Promoting\"");
    });
    let error = mover.unmigrate("a1", || true).await.expect_err("it is published, maybe");
    assert!(matches!(&error, MoveError::Unfinished { node } if node == "pg01"), "{error}");
    assert_eq!(stage.scene.calls("--delete"), 0);
    stage.scene.set(|world| world.crm_mon.1 = HEALTHY.to_owned());
    assert!(mover.unmigrate("a1", || true).await.expect("removed"));
}

#[tokio::test]
async fn whoever_holds_the_lock_now_keeps_its_constraint() {
    let stage = stage().await;
    stage.published().await;
    let mover = mover(&stage);
    stage.scene.set(|world| world.constraints = vec!["<rsc_location/>".to_owned()]);
    let lock = |id: &str| {
        format!(
            r#"{{"id":"{id}","holder":"h","purpose":"failover","started_at":"","step":"migrate",
                "pause_deadline_unix_ms":0}}"#
        )
    };
    // No agent has heard of it yet.
    stage.put("/failover", &lock("a2")).await;
    let error = mover.unmigrate("a1", || true).await.expect_err("it is another's");
    assert!(matches!(error, MoveError::Overtaken { .. }), "{error}");
    assert_eq!(stage.scene.calls("--delete"), 0);
    assert!(mover.unmigrate("a2", || true).await.expect("its own"));
}
