//! Publishing and moving, against a real etcd; crm_mon's output is replayed, Postgres' facts are given.

#![expect(clippy::unwrap_used, reason = "a test ends where something is not as it must be")]

mod support;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use pgcm::{
    edge::{
        command::{Call, CommandError, Output, Run},
        etcd::{Etcd, Put},
        pacemaker::{Pacemaker, PacemakerOptions},
        poke,
        postgres::{LocalPostgres, PostgresError},
    },
    model::{
        cluster::{ClusterView, Standby},
        primary::{Hold, LocalFacts, Refused},
    },
    telemetry::log::discard,
    work::{
        mover::{MoveError, Mover},
        publish::{CLUSTER, Latest, MASTER, Outcome, PublishOptions, Publisher},
        shutdown::Stop,
    },
};
use support::{
    etcd::{EtcdServer, start_etcd},
    eventually,
};
use tokio::sync::watch;

const POLL: Duration = Duration::from_millis(100);
const SOON: Duration = Duration::from_secs(5);
const HEALTHY: &str = include_str!("data/crm_mon/healthy/pgsql-trixie.xml");
const MINORITY: &str = include_str!("data/crm_mon/no-quorum-minority/pgsql-trixie.xml");
const STOPPED: &str = include_str!("data/crm_mon/pacemaker-stopped/pgsql-trixie.xml");

/// What the tools of Pacemaker and Postgres say in a test.
struct World {
    /// crm_mon's status and output.
    crm_mon: (i32, String),
    constraints: Vec<String>,
    facts: LocalFacts,
    /// How long a change of the CIB is under way before it counts.
    modify_takes: Duration,
    /// Every call of cibadmin.
    calls: Vec<Vec<String>>,
}

#[derive(Clone)]
struct Scene(Arc<Mutex<World>>);

impl Scene {
    fn set(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.0.lock().unwrap());
    }

    fn calls(&self, verb: &str) -> usize {
        let world = self.0.lock().unwrap();
        world.calls.iter().filter(|args| args.iter().any(|arg| arg == verb)).count()
    }
}

impl Run for Scene {
    async fn run(&self, call: Call) -> Result<Output, CommandError> {
        if call.program == "cibadmin" {
            self.set(|world| world.calls.push(call.args.clone()));
            if call.args[0] == "--modify" {
                let takes = self.0.lock().unwrap().modify_takes;
                tokio::time::sleep(takes).await;
            }
        }
        let mut world = self.0.lock().unwrap();
        let (status, stdout) = match call.program.as_str() {
            "crm_mon" => world.crm_mon.clone(),
            "cibadmin" => cibadmin(&mut world, &call.args),
            other => panic!("nobody expected {other}"),
        };
        Ok(Output { status, stdout, stderr: String::new() })
    }
}

fn cibadmin(world: &mut World, args: &[String]) -> (i32, String) {
    match args[0].as_str() {
        "--query" if args[1] == "--scope" => {
            (0, format!("<constraints>{}</constraints>", world.constraints.concat()))
        }
        "--query" if world.constraints.is_empty() => (105, String::new()),
        "--query" => (0, world.constraints.concat()),
        "--modify" => {
            world.constraints = vec![args.last().unwrap().clone()];
            (0, String::new())
        }
        _ => {
            world.constraints.clear();
            (0, String::new())
        }
    }
}

impl LocalPostgres for Scene {
    async fn facts(&self) -> Result<LocalFacts, PostgresError> {
        Ok(self.0.lock().unwrap().facts.clone())
    }
}

struct Stage {
    scene: Scene,
    pacemaker: Arc<Pacemaker<Scene>>,
    server: EtcdServer,
    etcd: Arc<Etcd>,
    latest: watch::Receiver<Arc<Latest>>,
    token: Arc<AtomicI64>,
    socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
    _switch: watch::Sender<bool>,
}

/// pg01 is promoted, healthy, and on timeline 3; its supervise runs.
async fn stage() -> Stage {
    let server = start_etcd().await;
    stage_with(server, POLL).await
}

async fn stage_with(server: EtcdServer, poll_interval: Duration) -> Stage {
    let scene = Scene(Arc::new(Mutex::new(World {
        crm_mon: (0, HEALTHY.to_owned()),
        constraints: Vec::new(),
        modify_takes: Duration::ZERO,
        calls: Vec::new(),
        facts: LocalFacts {
            in_recovery: false,
            writable: true,
            timeline: 3,
            system_identifier: "7".to_owned(),
            standbys: vec![standby("pg02", "sync"), standby("pg03", "potential")],
        },
    })));
    let etcd = server.client();
    let limit = Duration::from_secs(5);
    let options = PacemakerOptions { resource: "Postgresql".to_owned(), limit };
    let pacemaker = Arc::new(Pacemaker::new(scene.clone(), options));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("supervise.sock");
    let options = PublishOptions {
        node: "pg01".to_owned(),
        address: "172.17.0.4".parse().unwrap(),
        namespace: "/postgres".to_owned(),
        poll_interval,
        socket: socket.clone(),
    };
    let token = Arc::new(AtomicI64::new(0));
    let sink = Arc::clone(&token);
    let (publisher, latest) = Publisher::new(
        options,
        Arc::clone(&pacemaker),
        Arc::new(scene.clone()),
        Arc::clone(&etcd),
        Arc::new(move |seen| sink.store(seen, Ordering::Relaxed)),
        discard(),
    );
    let (switch, stop) = Stop::new();
    tokio::spawn(publisher.run(stop));
    Stage { scene, pacemaker, server, etcd, latest, token, socket, _dir: dir, _switch: switch }
}

fn standby(name: &str, sync_state: &str) -> Standby {
    Standby {
        name: name.to_owned(),
        address: None,
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        replay_lag_bytes: 0,
    }
}

impl Stage {
    async fn value(&self, key: &str) -> Option<String> {
        self.etcd.get(key).await.unwrap().map(|entry| entry.value)
    }

    async fn put(&self, key: &str, value: &str) {
        let put = Put { key: key.to_owned(), value: value.to_owned(), lease: 0 };
        self.etcd.put_if(&[], &[put]).await.unwrap();
    }

    async fn view(&self) -> ClusterView {
        serde_json::from_str(&self.value(CLUSTER).await.expect("published")).expect("a view")
    }

    async fn published(&self) {
        let right = || async { self.value(MASTER).await.as_deref() == Some("172.17.0.4") };
        eventually(SOON, "the primary is published", right).await;
    }

    /// Waits for a look that began after this call and ended as `wanted` says.
    async fn outcome(&mut self, what: &str, wanted: impl Fn(&Outcome) -> bool) {
        for _ in 0..2 {
            self.latest.changed().await.expect("the publisher runs");
        }
        let found = self.latest.wait_for(|latest| wanted(&latest.outcome));
        if tokio::time::timeout(SOON, found).await.is_err() {
            panic!("not within {SOON:?}: {what}; it was {:?}", self.latest.borrow().outcome);
        }
    }
}

#[tokio::test]
async fn the_primary_and_its_standbys_are_published() {
    let stage = stage().await;
    stage.published().await;
    let view = stage.view().await;
    assert_eq!((view.primary.name.as_str(), view.primary.timeline), ("pg01", 3));
    assert_eq!(view.synchronous_standby().map(|s| s.name.as_str()), Some("pg02"));
    assert!(view.quorum);
}

#[tokio::test]
async fn a_deleted_or_overwritten_key_heals() {
    let stage = stage().await;
    stage.published().await;
    stage.etcd.delete_if(MASTER, pgcm::edge::etcd::Expect::ModRevision(0)).await.unwrap();
    for nonsense in ["10.9.9.9", "not an address", ""] {
        stage.put(MASTER, nonsense).await;
        stage.published().await;
    }
    stage.put(CLUSTER, "{ not JSON").await;
    let healed = || async {
        stage.value(CLUSTER).await.is_some_and(|v| serde_json::from_str::<ClusterView>(&v).is_ok())
    };
    eventually(SOON, "the view is put back", healed).await;
    for key in [MASTER, CLUSTER] {
        let entry = stage.etcd.get(key).await.unwrap().expect("there");
        let expect = pgcm::edge::etcd::Expect::CreateRevision(entry.create_revision);
        stage.etcd.delete_if(key, expect).await.unwrap();
        let back = || async { stage.value(key).await.is_some() };
        eventually(SOON, "a deleted key is put back", back).await;
    }
}

#[tokio::test]
async fn a_lower_timeline_never_overwrites() {
    let mut stage = stage().await;
    stage.published().await;
    let mut newer = stage.view().await;
    newer.primary.name = "pg02".to_owned();
    newer.primary.address = "172.17.0.5".parse().unwrap();
    newer.primary.timeline = 4;
    stage.scene.set(|world| world.facts.timeline = 3);
    stage.put(CLUSTER, &serde_json::to_string(&newer).unwrap()).await;
    stage.put(MASTER, "172.17.0.5").await;
    stage
        .outcome("the look is refused", |outcome| {
            matches!(outcome, Outcome::Refused(Refused::Backwards { stored: 4, ours: 3, .. }))
        })
        .await;
    assert_eq!(stage.view().await.primary, newer.primary);
    assert_eq!(stage.value(MASTER).await.as_deref(), Some("172.17.0.5"));
}

#[tokio::test]
async fn without_quorum_nothing_is_published() {
    let mut stage = stage().await;
    stage.published().await;
    // pg02 was the primary when the cable was cut; here this node is the one on its own.
    let minority = MINORITY.replace("\"pg02\"", "\"pgXX\"").replace("\"pg01\"", "\"pg02\"");
    stage.scene.set(|world| world.crm_mon.1 = minority.replace("\"pgXX\"", "\"pg01\""));
    stage.outcome("no quorum", |outcome| *outcome == Outcome::Held(Hold::NoQuorum)).await;
    stage.put(MASTER, "10.9.9.9").await;
    stage.outcome("still no quorum", |outcome| *outcome == Outcome::Held(Hold::NoQuorum)).await;
    assert_eq!(stage.value(MASTER).await.as_deref(), Some("10.9.9.9"));
}

#[tokio::test]
async fn two_promoted_nodes_publish_nothing() {
    let mut stage = stage().await;
    stage.published().await;
    let two = HEALTHY.replacen("role=\"Unpromoted\"", "role=\"Promoted\"", 1);
    stage.scene.set(|world| world.crm_mon.1 = two);
    let alarmed = |o: &Outcome| matches!(o, Outcome::Held(Hold::SeveralPrimaries { .. }));
    stage.outcome("two are promoted", alarmed).await;
    stage.put(MASTER, "10.9.9.9").await;
    stage.outcome("two are still promoted", alarmed).await;
    assert_eq!(stage.value(MASTER).await.as_deref(), Some("10.9.9.9"));
}

#[tokio::test]
async fn a_failing_crm_mon_is_never_no_primary() {
    let mut stage = stage().await;
    stage.published().await;
    let before = stage.view().await;
    stage.scene.set(|world| world.crm_mon = (102, STOPPED.to_owned()));
    let told = |o: &Outcome| matches!(o, Outcome::Failed(why) if why.contains("refused"));
    stage.outcome("the reason is told", told).await;
    stage.scene.set(|world| world.crm_mon = (0, HEALTHY[..2000].to_owned()));
    let cut = |o: &Outcome| matches!(o, Outcome::Failed(why) if why.contains("ends too early"));
    stage.outcome("cut XML is told", cut).await;
    assert_eq!(stage.view().await.primary, before.primary);
    assert!(stage.value(MASTER).await.is_some());
}

#[tokio::test]
async fn an_etcd_outage_is_survived() {
    let mut stage = stage().await;
    stage.published().await;
    stage.server.stop();
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
    stage.outcome("etcd is away", failed).await;
    stage.server.start().await;
    stage.scene.set(|world| world.facts.standbys.clear());
    let current = || async { stage.view().await.standbys.is_empty() };
    eventually(SOON, "what changed meanwhile is published", current).await;
}

#[tokio::test]
async fn a_poke_is_seen_long_before_the_poll() {
    let server = start_etcd().await;
    let stage = stage_with(server, Duration::from_secs(3600)).await;
    stage.published().await;
    stage.scene.set(|world| world.facts.timeline = 4);
    poke::poke(&stage.socket).expect("supervise listens");
    let newer = || async { stage.view().await.primary.timeline == 4 };
    eventually(SOON, "the new timeline is published", newer).await;
}

#[tokio::test]
async fn the_token_of_the_failover_lock_is_passed_on() {
    let stage = stage().await;
    stage.put("/failover", "{}").await;
    let created = stage.etcd.get("/failover").await.unwrap().unwrap().create_revision;
    let seen = || async { stage.token.load(Ordering::Relaxed) == created };
    eventually(SOON, "the token is seen", seen).await;
}

#[tokio::test]
async fn an_expired_constraint_of_ours_is_removed_but_not_during_a_failover() {
    let server = start_etcd().await;
    let lock = Put { key: "/failover".to_owned(), value: "{}".to_owned(), lease: 0 };
    server.client().put_if(&[], &[lock]).await.unwrap();
    let stage = stage_with(server, POLL).await;
    let old = "<rsc_location id=\"pgcm-move-msPostgresql\" rsc=\"msPostgresql\"><rule id=\"r\">\
               <date_expression id=\"d\" operation=\"lt\" end=\"2020-01-01T00:00:00Z\"/></rule></rsc_location>";
    stage.scene.set(|world| world.constraints = vec![old.to_owned()]);
    stage.published().await;
    assert_eq!(stage.scene.calls("--delete"), 0);
    let lock = stage.etcd.get("/failover").await.unwrap().unwrap();
    let mine = pgcm::edge::etcd::Expect::CreateRevision(lock.create_revision);
    stage.etcd.delete_if("/failover", mine).await.unwrap();
    let gone = || async { stage.scene.0.lock().unwrap().constraints.is_empty() };
    eventually(SOON, "the leftover is removed", gone).await;
}

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
    assert!(mover.unmigrate("a1").await.expect("removed"));
    assert!(!mover.unmigrate("a1").await.expect("removed before"));
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
        mover.unmigrate("a1").await
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
    assert!(!mover.unmigrate("a1").await.expect("nothing was there"));
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
    let settled = mover(&stage).settle(SOON).await.expect("pg01 is still primary");
    assert_eq!(settled.name, "pg01");
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
