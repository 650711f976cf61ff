//! Agents that keep a cluster in memory: real gRPC, real etcd, no Postgres behind.
//!
//! The failover's own behaviour is at stake here, under faults that real agents cannot be told to
//! have at an exact instant. What real agents do has tests of its own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use pgcm::{
    edge::{
        clock,
        etcd::{Etcd, Put},
        peer::{BUSY, REASON, pb},
    },
    model::{
        cluster::{ClusterView, Primary, Standby},
        registration::{AgentKind, Registration},
    },
};
use tonic::{Request, Response, Status, metadata::MetadataValue, transport::server::TcpIncoming};

/// What goes wrong with a call, from then on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error, nothing done.
    Fail,
    /// No answer, nothing done.
    Hang,
    /// Done, but no answer.
    DoneButHangs,
    /// Done, and answered with an error.
    DoneButFails,
    /// Only for a pause: waits for a transaction that does not end before the limit does.
    Busy,
    /// Done and answered, but only after half a second, as a real move would.
    Slow,
}

pub struct FakeCluster {
    etcd: Arc<Etcd>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    primary: String,
    /// `agent call`, in the order of their arrival.
    calls: Vec<String>,
    /// By `call`, or by `agent call`.
    faults: HashMap<String, Fault>,
    /// By agent: what its checks find.
    findings: HashMap<String, pb::Finding>,
    /// By agent: the logical failover slots that it tells of.
    slots: HashMap<String, Vec<String>>,
    /// Host to the expiry of its pause.
    paused: HashMap<String, Instant>,
    followed: HashMap<String, String>,
    /// By agent, where it is not as the others: its version, what it calls itself, and whom it takes
    /// for the primary.
    versions: HashMap<String, String>,
    kinds: HashMap<String, String>,
    constraint: bool,
}

const NODES: [&str; 2] = ["pg01", "pg02"];
const CHANGES: [&str; 8] =
    ["terminate", "pause", "resume", "follow", "prepare", "migrate", "settle", "unmigrate"];

impl FakeCluster {
    /// pg01 (primary) and pg02 with supervise and proxy, app01 with a proxy; all registered.
    pub async fn start(etcd: Arc<Etcd>) -> Arc<Self> {
        let state = State { primary: "pg01".to_owned(), ..State::default() };
        let cluster = Arc::new(Self { etcd, state: Mutex::new(state) });
        cluster.publish().await;
        for (host, kind) in [
            ("pg01", AgentKind::Supervise),
            ("pg01", AgentKind::Proxy),
            ("pg02", AgentKind::Supervise),
            ("pg02", AgentKind::Proxy),
            ("app01", AgentKind::Proxy),
        ] {
            let api = serve(cluster.clone(), host, kind).await;
            let version = env!("CARGO_PKG_VERSION").to_owned();
            let registration = Registration { host: host.to_owned(), kind, api, version };
            let value = serde_json::to_string(&registration).expect("JSON");
            cluster.put(&registration.key(), value).await;
        }
        cluster
    }

    pub fn fault(&self, call: &str, fault: Fault) {
        self.lock().faults.insert(call.to_owned(), fault);
    }

    /// From now on the checks of `agent` refuse.
    pub fn refuse(&self, agent: &str, check: &str) {
        let finding = pb::Finding {
            check: check.to_owned(),
            severity: pb::finding::Severity::Refuse.into(),
            message: "told to refuse".to_owned(),
        };
        self.lock().findings.insert(agent.to_owned(), finding);
    }

    /// From now on `agent` tells of these logical failover slots.
    pub fn has_slots(&self, agent: &str, slots: &[&str]) {
        let slots = slots.iter().map(|&slot| slot.to_owned()).collect();
        self.lock().slots.insert(agent.to_owned(), slots);
    }

    /// From now on `agent` says that it is of another version.
    pub fn is_of_version(&self, agent: &str, version: &str) {
        self.lock().versions.insert(agent.to_owned(), version.to_owned());
    }

    /// From now on `agent` calls itself something else.
    pub fn calls_itself(&self, agent: &str, kind: &str) {
        self.lock().kinds.insert(agent.to_owned(), kind.to_owned());
    }

    pub fn allow(&self) {
        self.lock().findings.clear();
    }

    pub fn heal(&self) {
        let mut state = self.lock();
        state.faults.clear();
        state.versions.clear();
        state.kinds.clear();
    }

    pub fn calls(&self) -> Vec<String> {
        self.lock().calls.clone()
    }

    /// Calls that change something.
    pub fn changes(&self) -> Vec<String> {
        let changing = |call: &String| CHANGES.iter().any(|name| call.ends_with(name));
        self.calls().into_iter().filter(changing).collect()
    }

    /// Where `call` stands among all; panics when it was not made.
    pub fn place(&self, call: &str) -> usize {
        let calls = self.calls();
        calls.iter().position(|made| made == call).unwrap_or_else(|| panic!("{call} in {calls:?}"))
    }

    pub fn last_place(&self, call: &str) -> usize {
        let calls = self.calls();
        calls.iter().rposition(|made| made == call).unwrap_or_else(|| panic!("{call} in {calls:?}"))
    }

    pub fn paused(&self) -> Vec<String> {
        let now = Instant::now();
        let state = self.lock();
        state.paused.iter().filter(|(_, end)| **end > now).map(|(host, _)| host.clone()).collect()
    }

    pub fn has_constraint(&self) -> bool {
        self.lock().constraint
    }

    pub fn primary(&self) -> String {
        self.lock().primary.clone()
    }

    /// As a failover that nobody planned would.
    pub async fn move_primary(&self, to: &str) {
        to.clone_into(&mut self.lock().primary);
        self.publish().await;
    }

    /// Writes `/master`, as a real supervise does beside `/cluster`.
    pub async fn publish_address(&self) {
        self.put("/master", self.primary_now().address.to_string()).await;
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no panic while it is held")
    }

    async fn publish(&self) {
        let view = self.view();
        let put = |key: &str, value| Put { key: key.to_owned(), value, lease: 0 };
        let master = put("/master", view.primary.address.to_string());
        let cluster = put("/cluster", serde_json::to_string(&view).expect("JSON"));
        self.etcd.put_if(&[], &[master, cluster]).await.expect("etcd takes it");
    }

    async fn put(&self, key: &str, value: String) {
        let put = Put { key: key.to_owned(), value, lease: 0 };
        self.etcd.put_if(&[], &[put]).await.expect("etcd takes it");
    }

    fn view(&self) -> ClusterView {
        let primary = self.primary();
        let standbys = NODES.iter().filter(|node| **node != primary).map(|node| Standby {
            name: (*node).to_owned(),
            address: address(node).parse().ok(),
            state: "streaming".to_owned(),
            sync_state: "sync".to_owned(),
            replay_lag_bytes: 0,
        });
        ClusterView {
            standbys: standbys.collect(),
            primary: self.primary_now(),
            offline: Vec::new(),
            quorum: true,
            system_identifier: "7".to_owned(),
            observed_at: clock::now_rfc3339(),
        }
    }

    fn primary_now(&self) -> Primary {
        let name = self.primary();
        let address = address(&name).parse().expect("an address");
        Primary { name, address, timeline: 1 }
    }
}

/// The address of a Postgres node: the test's own Postgres listens on both.
pub fn address(node: &str) -> &'static str {
    if node == "pg01" { "127.0.0.1" } else { "127.0.0.2" }
}

async fn serve(cluster: Arc<FakeCluster>, host: &'static str, kind: AgentKind) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let api = listener.local_addr().expect("bound");
    let agent = FakeAgent { cluster, host, kind };
    let server = tonic::transport::Server::builder()
        .add_service(pb::agent_server::AgentServer::new(agent))
        .serve_with_incoming(TcpIncoming::from(listener));
    tokio::spawn(server);
    api
}

struct FakeAgent {
    cluster: Arc<FakeCluster>,
    host: &'static str,
    kind: AgentKind,
}

impl FakeAgent {
    fn name(&self) -> String {
        format!("{}/{}", self.host, self.kind)
    }

    /// Notes the call, then does `effect` or not, and answers or not, as its fault says.
    async fn answer<T, F>(
        &self,
        call: &str,
        effect: impl FnOnce() -> F,
    ) -> Result<Response<T>, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let name = format!("{} {call}", self.name());
        let fault = {
            let mut state = self.cluster.lock();
            state.calls.push(name.clone());
            state.faults.get(&name).or_else(|| state.faults.get(call)).copied()
        };
        let told = || Status::failed_precondition("told to fail");
        match fault {
            None => effect().await.map(Response::new),
            Some(Fault::Busy) if call == "pause" => {
                // As real agents do: they wait for the transactions first.
                let until = Instant::now() + Duration::from_millis(700);
                while Instant::now() < until {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    if !self.cluster.lock().faults.contains_key(call) {
                        return effect().await.map(Response::new);
                    }
                }
                let mut busy = Status::aborted("PID 4711 (app) is in a transaction");
                busy.metadata_mut().insert(REASON, MetadataValue::from_static(BUSY));
                Err(busy)
            }
            Some(Fault::Busy) => Err(told()),
            Some(Fault::Fail) if call == "pause" => {
                let mut busy = Status::aborted("PID 4711 (app) is in a transaction");
                busy.metadata_mut().insert(REASON, MetadataValue::from_static(BUSY));
                Err(busy)
            }
            Some(Fault::Fail) => Err(told()),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Slow) => {
                tokio::time::sleep(Duration::from_millis(500)).await;
                effect().await.map(Response::new)
            }
            Some(Fault::DoneButFails) => {
                effect().await?;
                Err(told())
            }
            Some(Fault::DoneButHangs) => {
                effect().await?;
                std::future::pending().await
            }
        }
    }

    fn moved(&self) -> pb::MigrateResponse {
        let primary = self.cluster.primary_now();
        pb::MigrateResponse {
            primary: primary.name,
            address: primary.address.to_string(),
            timeline: primary.timeline,
        }
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl pb::agent_server::Agent for FakeAgent {
    async fn health(&self, _: Request<pb::HealthRequest>) -> Answer<pb::HealthResponse> {
        let proxy = self.kind == AgentKind::Proxy;
        self.answer("health", || async {
            let (state, name) = (self.cluster.lock(), self.name());
            let version = state.versions.get(&name).map_or(env!("CARGO_PKG_VERSION"), |v| v);
            Ok(pb::HealthResponse {
                components: Vec::new(),
                version: version.to_owned(),
                host: self.host.to_owned(),
                kind: state.kinds.get(&name).cloned().unwrap_or(self.kind.to_string()),
                pauses: proxy,
                follows: proxy,
                failed_actions: Vec::new(),
            })
        })
        .await
    }

    async fn check(&self, request: Request<pb::CheckRequest>) -> Answer<pb::CheckResponse> {
        let target = request.into_inner().target;
        self.answer("check", || async move {
            assert_eq!(target, self.cluster.view().standbys[0].name, "whom the move is to be to");
            let (state, name) = (self.cluster.lock(), self.name());
            let failover_slots = state.slots.get(&name).cloned().unwrap_or_default();
            let findings = state.findings.get(&name).cloned().into_iter().collect();
            Ok(pb::CheckResponse { findings, failover_slots })
        })
        .await
    }

    async fn pause(&self, request: Request<pb::PauseRequest>) -> Answer<pb::PauseResponse> {
        let request = request.into_inner();
        self.answer("pause", || async move {
            let end = Instant::now() + Duration::from_millis(request.expiry_ms);
            self.cluster.lock().paused.insert(self.host.to_owned(), end);
            Ok(pb::PauseResponse { paused: 1 })
        })
        .await
    }

    async fn resume(&self, _: Request<pb::ResumeRequest>) -> Answer<pb::ResumeResponse> {
        self.answer("resume", || async {
            self.cluster.lock().paused.remove(self.host);
            Ok(pb::ResumeResponse {})
        })
        .await
    }

    async fn follow(&self, request: Request<pb::FollowRequest>) -> Answer<pb::FollowResponse> {
        let address = request.into_inner().address;
        self.answer("follow", || async move {
            self.cluster.lock().followed.insert(self.host.to_owned(), address);
            Ok(pb::FollowResponse {})
        })
        .await
    }

    async fn blockers(&self, _: Request<pb::BlockersRequest>) -> Answer<pb::BlockersResponse> {
        self.answer("blockers", || async {
            Ok(pb::BlockersResponse { backends: vec![pb::Backend { pid: 4711, port: 5000 }] })
        })
        .await
    }

    async fn terminate(
        &self,
        request: Request<pb::TerminateRequest>,
    ) -> Answer<pb::TerminateResponse> {
        let pb::TerminateRequest { backends: asked, min_age_ms, .. } = request.into_inner();
        self.answer("terminate", || async move {
            assert_ne!(min_age_ms, 0, "an agent refuses that");
            assert_eq!(asked, [pb::Backend { pid: 4711, port: 5000 }], "each once");
            // Whatever was busy is free now.
            self.cluster.heal();
            let ended = pb::Terminated {
                pid: 4711,
                user: "app".to_owned(),
                database: "app".to_owned(),
                application: "shop".to_owned(),
                state: "idle in transaction".to_owned(),
                age_ms: 90_000,
                query: "UPDATE stock".to_owned(),
            };
            Ok(pb::TerminateResponse { terminated: vec![ended] })
        })
        .await
    }

    async fn prepare(&self, _: Request<pb::PrepareRequest>) -> Answer<pb::PrepareResponse> {
        self.answer("prepare", || async { Ok(pb::PrepareResponse { checkpoint_ms: 1 }) }).await
    }

    async fn migrate(&self, request: Request<pb::MigrateRequest>) -> Answer<pb::MigrateResponse> {
        let target = request.into_inner().target;
        self.answer("migrate", || async move {
            self.cluster.lock().constraint = true;
            let to = self.cluster.view().standbys[0].name.clone();
            assert_eq!(target, to, "whom the checks were about");
            self.cluster.move_primary(&to).await;
            Ok(self.moved())
        })
        .await
    }

    async fn settle(&self, _: Request<pb::SettleRequest>) -> Answer<pb::MigrateResponse> {
        self.answer("settle", || async { Ok(self.moved()) }).await
    }

    async fn unmigrate(&self, _: Request<pb::UnmigrateRequest>) -> Answer<pb::UnmigrateResponse> {
        self.answer("unmigrate", || async {
            let removed = std::mem::take(&mut self.cluster.lock().constraint);
            Ok(pb::UnmigrateResponse { removed })
        })
        .await
    }
}
