//! A supervise's publisher on a stage: real etcd, replayed output of crm_mon, given facts of Postgres.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use pgcm::{
    edge::{
        command::{Call, CommandError, Output, Run},
        etcd::{Etcd, Put},
        pacemaker::{Pacemaker, PacemakerOptions},
        postgres::{LocalPostgres, PostgresError},
    },
    model::{
        cluster::{ClusterView, Standby},
        primary::LocalFacts,
    },
    telemetry::log::discard,
    work::{
        fence::SharedGate,
        publish::{CLUSTER, Latest, MASTER, Outcome, PublishOptions, Publisher},
        shutdown::Stop,
    },
};
use tokio::sync::watch;

use super::{
    etcd::{EtcdServer, start_etcd},
    eventually,
};

pub const POLL: Duration = Duration::from_millis(100);
pub const SOON: Duration = Duration::from_secs(5);
pub const HEALTHY: &str = include_str!("../data/crm_mon/healthy/pgsql-trixie.xml");

/// What the tools of Pacemaker and Postgres say in a test.
pub struct World {
    /// crm_mon's status and output.
    pub crm_mon: (i32, String),
    pub constraints: Vec<String>,
    pub facts: LocalFacts,
    /// How often Postgres was asked for them.
    pub asked: u32,
    /// How long a change of the CIB is under way before it counts.
    pub modify_takes: Duration,
    /// Every call of cibadmin.
    pub calls: Vec<Vec<String>>,
}

#[derive(Clone)]
pub struct Scene(pub Arc<Mutex<World>>);

impl Scene {
    pub fn set(&self, change: impl FnOnce(&mut World)) {
        change(&mut self.0.lock().unwrap());
    }

    pub fn calls(&self, verb: &str) -> usize {
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
            "crmadmin" => (0, "S_IDLE\n".to_owned()),
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
        let mut world = self.0.lock().unwrap();
        world.asked += 1;
        Ok(world.facts.clone())
    }
}

pub struct Stage {
    pub scene: Scene,
    pub pacemaker: Arc<Pacemaker<Scene>>,
    pub server: EtcdServer,
    pub etcd: Arc<Etcd>,
    pub latest: watch::Receiver<Arc<Latest>>,
    pub gate: SharedGate,
    pub socket: std::path::PathBuf,
    _dir: tempfile::TempDir,
    _switch: watch::Sender<bool>,
}

/// pg01 is promoted, healthy, and on timeline 3; its supervise runs.
pub async fn stage() -> Stage {
    let server = start_etcd().await;
    stage_with(server, POLL).await
}

pub async fn stage_with(server: EtcdServer, poll_interval: Duration) -> Stage {
    let scene = Scene(Arc::new(Mutex::new(World {
        crm_mon: (0, HEALTHY.to_owned()),
        constraints: Vec::new(),
        asked: 0,
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
    let gate = SharedGate::default();
    let (publisher, latest) = Publisher::new(
        options,
        Arc::clone(&pacemaker),
        Arc::new(scene.clone()),
        Arc::clone(&etcd),
        gate.clone(),
        discard(),
    );
    let (switch, stop) = Stop::new();
    tokio::spawn(publisher.run(stop));
    Stage { scene, pacemaker, server, etcd, latest, gate, socket, _dir: dir, _switch: switch }
}

pub fn standby(name: &str, sync_state: &str) -> Standby {
    Standby {
        name: name.to_owned(),
        address: None,
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        replay_lag_bytes: 0,
    }
}

impl Stage {
    pub async fn value(&self, key: &str) -> Option<String> {
        self.etcd.get(key).await.unwrap().map(|entry| entry.value)
    }

    pub async fn put(&self, key: &str, value: &str) {
        let put = Put { key: key.to_owned(), value: value.to_owned(), lease: 0 };
        self.etcd.put_if(&[], &[put]).await.unwrap();
    }

    pub async fn view(&self) -> ClusterView {
        serde_json::from_str(&self.value(CLUSTER).await.expect("published")).expect("a view")
    }

    pub async fn published(&self) {
        let right = || async { self.value(MASTER).await.as_deref() == Some("172.17.0.4") };
        eventually(SOON, "the primary is published", right).await;
    }

    /// Waits for a look that began after this call and ended as `wanted` says.
    pub async fn outcome(&mut self, what: &str, wanted: impl Fn(&Outcome) -> bool) {
        for _ in 0..2 {
            self.latest.changed().await.expect("the publisher runs");
        }
        let found = self.latest.wait_for(|latest| wanted(&latest.outcome));
        if tokio::time::timeout(SOON, found).await.is_err() {
            panic!("not within {SOON:?}: {what}; it was {:?}", self.latest.borrow().outcome);
        }
    }
}
