//! gRPC relays between the coordinator and the agents: they know each call by its name, can hold one
//! before it arrives or after it took effect, and can swallow everything.

use std::{
    collections::HashSet,
    future::Future,
    sync::{Arc, Mutex, MutexGuard},
};

use pgcm::edge::peer::pb;
use tokio::{net::TcpListener, sync::watch};
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint, server::TcpIncoming},
};

use crate::snare::Snare;

/// On which side of its effect a call is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum When {
    /// The agent has not got it.
    Before,
    /// The agent has done it; nobody knows but the agent.
    After,
}

struct Trap {
    agent: String,
    call: &'static str,
    when: When,
    snare: Arc<Snare>,
}

#[derive(Default)]
struct State {
    trap: Option<Trap>,
    /// `agent call`, in the order of their arrival.
    calls: Vec<String>,
}

/// What lies between the coordinator and all agents of a stage.
pub(crate) struct Net {
    state: Mutex<State>,
    /// Names of the agents that are cut off.
    cut: watch::Sender<HashSet<String>>,
}

impl Net {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), cut: watch::Sender::default() })
    }

    /// A relay to the agent `name` on 127.0.0.1:`port`; returns where it listens.
    pub(crate) async fn relay(self: &Arc<Self>, name: &str, port: u16) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
        let relay = Relay {
            net: self.clone(),
            name: name.to_owned(),
            client: pb::agent_client::AgentClient::new(endpoint.connect_lazy()),
        };
        let server = tonic::transport::Server::builder()
            .add_service(pb::agent_server::AgentServer::new(relay))
            .serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
        tokio::spawn(server);
        address
    }

    /// Holds the next `call` to `agent`.
    pub(crate) fn hold(&self, agent: &str, call: &'static str, when: When) -> Arc<Snare> {
        let snare = Snare::set();
        let trap = Trap { agent: agent.to_owned(), call, when, snare: snare.clone() };
        self.state().trap = Some(trap);
        snare
    }

    /// From now on, until it is mended, calls to these agents hang, and so do their answers.
    pub(crate) fn cut<'a>(&self, agents: impl IntoIterator<Item = &'a str>) {
        self.cut.send_modify(|cut| cut.extend(agents.into_iter().map(str::to_owned)));
    }

    pub(crate) fn mend(&self) {
        self.cut.send_modify(HashSet::clear);
        self.state().trap = None;
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn trap(&self, agent: &str, call: &str, when: When) {
        let snare = {
            let state = self.state();
            let hit = |trap: &&Trap| (&*trap.agent, trap.call, trap.when) == (agent, call, when);
            state.trap.as_ref().filter(hit).map(|trap| trap.snare.clone())
        };
        if let Some(snare) = snare {
            snare.pass().await;
        }
    }

    /// Ends well at once unless `agent` is cut off; else ends badly once it is not any more: what was
    /// swallowed does not come through later.
    async fn comes_through(&self, agent: &str) -> Result<(), Status> {
        if !self.cut.borrow().contains(agent) {
            return Ok(());
        }
        let _ = self.cut.subscribe().wait_for(|cut| !cut.contains(agent)).await;
        Err(Status::unavailable("the network was cut"))
    }
}

struct Relay {
    net: Arc<Net>,
    name: String,
    client: pb::agent_client::AgentClient<Channel>,
}

type Client = pb::agent_client::AgentClient<Channel>;
type Answer<T> = Result<Response<T>, Status>;

impl Relay {
    /// Goes on when the caller goes away: what was sent arrives.
    async fn pass<T: Send + 'static, F>(
        &self,
        call: &'static str,
        send: impl FnOnce(Client) -> F + Send + 'static,
    ) -> Answer<T>
    where
        F: Future<Output = Answer<T>> + Send,
    {
        let (net, name, client) = (self.net.clone(), self.name.clone(), self.client.clone());
        net.state().calls.push(format!("{name} {call}"));
        let passing = tokio::spawn(async move {
            net.trap(&name, call, When::Before).await;
            net.comes_through(&name).await?;
            let answer = send(client).await;
            net.trap(&name, call, When::After).await;
            net.comes_through(&name).await?;
            answer
        });
        passing.await.unwrap_or_else(|error| Err(Status::internal(error.to_string())))
    }
}

macro_rules! relayed {
    ($($call:ident: $request:ident -> $response:ident),+ $(,)?) => {
        #[tonic::async_trait]
        impl pb::agent_server::Agent for Relay {
            $(async fn $call(&self, request: Request<pb::$request>) -> Answer<pb::$response> {
                let send = |mut client: Client| async move { client.$call(request).await };
                self.pass(stringify!($call), send).await
            })+
        }
    };
}

relayed! {
    health: HealthRequest -> HealthResponse,
    check: CheckRequest -> CheckResponse,
    pause: PauseRequest -> PauseResponse,
    resume: ResumeRequest -> ResumeResponse,
    follow: FollowRequest -> FollowResponse,
    blockers: BlockersRequest -> BlockersResponse,
    terminate: TerminateRequest -> TerminateResponse,
    prepare: PrepareRequest -> PrepareResponse,
    migrate: MigrateRequest -> MigrateResponse,
    settle: SettleRequest -> MigrateResponse,
    unmigrate: UnmigrateRequest -> UnmigrateResponse,
}
