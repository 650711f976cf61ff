//! A whole cluster of real programs on one machine, but for Pacemaker: etcd, two Postgres, and on each
//! of three hosts a PgBouncer with its `pgcm proxy`, on two of them `pgcm supervise`.
//!
//! The coordinator reaches the agents, and all of them etcd, through relays.

use std::{fmt::Write as _, fs, path::PathBuf, process::Stdio, sync::Arc, time::Duration};

use nix::sys::signal::Signal;
use pgcm::{
    edge::etcd::Etcd,
    model::{
        attempt::{Attempt, LOCK},
        cluster::ClusterView,
        console::Flow,
    },
};
use serde_json::Value;
use tokio::process::Command;

use crate::{
    coordinator::Coordinator,
    director::{Director, NODES},
    relay::Net,
    support::{
        etcd::{EtcdServer, start_etcd},
        free_port,
        pgbouncer::{Pgbouncer, settings},
        process::Process,
    },
    wire::Wire,
};

pub(crate) const HOSTS: [&str; 3] = ["app01", "pg01", "pg02"];
const STEP: Duration = Duration::from_millis(25);

/// The program: the one that was built with the test, or the one that PGCM_BINARY names.
fn pgcm() -> PathBuf {
    let named = std::env::var_os("PGCM_BINARY").filter(|named| !named.is_empty());
    named.map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_pgcm")), PathBuf::from)
}

/// An agent that can be ended and started again, on the same port.
pub(crate) struct Agent {
    /// `host/kind`.
    pub(crate) name: String,
    port: u16,
    process: Option<Process>,
    starts: u32,
    /// Its way to etcd.
    pub(crate) wire: Wire,
}

pub(crate) struct Stage {
    pub(crate) director: Arc<Director>,
    pub(crate) net: Arc<Net>,
    pub(crate) wire: Wire,
    pub(crate) etcd: Arc<Etcd>,
    pub(crate) server: EtcdServer,
    pub(crate) pgbouncers: Vec<Pgbouncer>,
    pub(crate) agents: Vec<Agent>,
    /// Names of the agents, and where their relays listen.
    relays: Vec<(String, String)>,
    dir: tempfile::TempDir,
}

/// The limits of the coordinator, small enough for a test.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) expiry: &'static str,
    pub(crate) lease: &'static str,
    /// Bounds of a move, and of each try to resume.
    pub(crate) moves: &'static str,
    pub(crate) resumes: &'static str,
}

impl Limits {
    /// For a failover that shows that all is well again.
    const PATIENT: Self = Self { expiry: "25s", lease: "10s", moves: "20s", resumes: "5s" };
}

impl Stage {
    pub(crate) async fn start(limits: Limits) -> Self {
        let server = start_etcd().await;
        let (director, net) = (Director::start().await, Net::new());
        let wire = Wire::to(port_of(&server.url())).await;
        let mut pgbouncers = Vec::new();
        for _ in HOSTS {
            let databases = "[databases]\napp = host=127.0.0.9\n";
            let mut pgbouncer = Pgbouncer::new(free_port(), databases, "");
            pgbouncer.start().await;
            pgbouncers.push(pgbouncer);
        }
        let kinds = HOSTS
            .map(|host| format!("{host}/proxy"))
            .into_iter()
            .chain(NODES.map(|node| format!("{node}/supervise")));
        let mut agents = Vec::new();
        for name in kinds {
            let wire = Wire::to(port_of(&server.url())).await;
            agents.push(Agent { name, port: free_port(), process: None, starts: 0, wire });
        }
        let etcd = server.client();
        let dir = tempfile::tempdir().unwrap();
        let relays = Vec::new();
        let mut stage = Self { director, net, wire, etcd, server, pgbouncers, agents, relays, dir };
        stage.write_files(limits).await;
        for place in 0..stage.agents.len() {
            stage.start_agent(place);
        }
        stage
    }

    async fn write_files(&mut self, limits: Limits) {
        let mut relays = Vec::new();
        for agent in &self.agents {
            relays.push((agent.name.clone(), self.net.relay(&agent.name, agent.port).await));
            fs::write(self.path(&agent.name), self.agent_config(agent, limits)).unwrap();
        }
        self.relays = relays;
        // The coordinator that is struck sees the world through relays only …
        self.write_coordinator("relayed", limits, &self.wire.url(), |_| true);
        // … whoever looks afterwards as it is, and has time.
        self.write_coordinator("direct", Limits::PATIENT, &self.server.url(), |_| false);
        for agent in &self.agents {
            let file = format!("without-{}", agent.name);
            self.write_coordinator(&file, limits, &self.wire.url(), |name| name != agent.name);
        }
    }

    /// A configuration that names the relays to those agents which `knows` says.
    fn write_coordinator(
        &self,
        file: &str,
        limits: Limits,
        etcd: &str,
        knows: impl Fn(&str) -> bool,
    ) {
        let known = self.relays.iter().filter(|(name, _)| knows(name));
        let endpoints: Vec<&String> = known.map(|(_, relay)| relay).collect();
        let Limits { expiry, lease, moves, resumes } = limits;
        let text = format!(
            "[node]\nname = \"ops\"\n[etcd]\nendpoints = [\"{etcd}\"]\ncall-timeout = \"1500ms\"\n\
             [failover]\nendpoints = {endpoints:?}\nlock-lease = \"{lease}\"\nlock-timeout = \"8s\"\n\
             pause-expiry = \"{expiry}\"\npause-timeout = \"1500ms\"\nresume-timeout = \"{resumes}\"\n\
             pacemaker-timeout = \"{moves}\"\nverify-timeout = \"8s\"\n\
             health-check-timeout = \"6s\"\nprepare-timeout = \"5s\"\n\
             [pacemaker]\nconstraint-lifetime = \"30s\"\n[log]\nformat = \"json\"\nlevel = \"debug\"\n"
        );
        fs::write(self.path(file), text).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name.replace('/', "-"))
    }

    fn agent_config(&self, agent: &Agent, limits: Limits) -> String {
        let (host, kind) = agent.name.split_once('/').unwrap();
        let place = HOSTS.iter().position(|name| *name == host).unwrap();
        let pgbouncer = &self.pgbouncers[place];
        let node = self.director.nodes.iter().find(|node| node.name == host);
        let template = self.path(&format!("{host}-template"));
        let databases = format!(
            "[databases]\napp = host={{{{.Host}}}} port={} dbname=postgres\n",
            self.director.port
        );
        let text = databases + &settings(pgbouncer.dir(), pgbouncer.port, "");
        fs::write(&template, text).unwrap();
        let mut text = format!(
            "[node]\nname = \"{host}\"\naddress = \"{}\"\n\
             [etcd]\nendpoints = [\"{}\"]\ncall-timeout = \"1500ms\"\n\
             [pacemaker]\npoll-interval = \"250ms\"\n\
             [pgbouncer]\nadmin-sockets = [{:?}]\n\
             [proxy]\ntemplates = [{{ source = {template:?}, target = {:?} }}]\n\
             poll-interval = \"500ms\"\n\
             [api]\n{kind}-listen = \"127.0.0.1:{}\"\nregistration-ttl = \"6s\"\n\
             [web]\n{kind}-listen = \"\"\n\
             [failover]\nresume-timeout = \"1s\"\npause-timeout = \"1s\"\npause-expiry = \"{}\"\n\
             [log]\nformat = \"text\"\nlevel = \"debug\"\n",
            node.map_or("127.0.0.1", |node| node.address),
            agent.wire.url(),
            pgbouncer.socket(),
            pgbouncer.file,
            agent.port,
            limits.expiry,
        );
        if let Some(node) = node {
            let dir = node.socket_dir();
            let _ =
                writeln!(text, "[postgres]\nsocket-dir = {dir:?}\nport = {}\n", self.director.port);
        }
        text
    }

    /// Where the agent `name` stands in [`Self::agents`].
    pub(crate) fn place(&self, name: &str) -> usize {
        self.agents.iter().position(|agent| agent.name == name).expect("an agent")
    }

    pub(crate) fn start_agent(&mut self, place: usize) {
        let tools = self.director.tools.path().display().to_string();
        let path = format!("{tools}:{}", std::env::var("PATH").unwrap_or_default());
        let agent = &mut self.agents[place];
        agent.starts += 1;
        let file = agent.name.replace('/', "-");
        let config = self.dir.path().join(&file);
        let log = self.dir.path().join(format!("{file}.{}.log", agent.starts));
        let kind = agent.name.split_once('/').unwrap().1;
        let args = [kind, "--config-file", config.to_str().unwrap()];
        let process = Process::start_in(&pgcm(), &args, &log, false, &[("PATH", &path)]);
        agent.process = Some(process);
    }

    pub(crate) fn kill_agent(&mut self, place: usize) {
        self.agents[place].process = None;
    }

    /// Asks an agent to stop and waits until it has, at most `limit`.
    pub(crate) async fn stop_agent(&mut self, place: usize, limit: Duration) {
        let process = self.agents[place].process.take().expect("it runs");
        process.signal(Signal::SIGTERM);
        tokio::task::spawn_blocking(move || process.ends_within(limit)).await.unwrap();
    }

    /// Whatever was cut off is whole again.
    pub(crate) fn mend(&self) {
        self.net.mend();
        self.wire.mend();
        self.agents.iter().for_each(|agent| agent.wire.mend());
    }

    pub(crate) fn signal_agent(&self, place: usize, signal: Signal) {
        self.agents[place].process.as_ref().expect("it runs").signal(signal);
    }

    /// A `pgcm failover` whose calls go through the relays.
    pub(crate) fn coordinator(&self) -> Coordinator {
        Coordinator::start(self.command("relayed", &["failover", "--output", "json"]))
    }

    /// One that does not know `agent`.
    pub(crate) fn coordinator_without(&self, agent: &str) -> Coordinator {
        let config = format!("without-{agent}");
        Coordinator::start(self.command(&config, &["failover", "--output", "json"]))
    }

    #[expect(clippy::disallowed_methods, reason = "the test runs the program as a user would")]
    fn command(&self, config: &str, args: &[&str]) -> Command {
        let mut command = Command::new(pgcm());
        command.arg("--config-file").arg(self.path(config)).args(args);
        command.stdin(Stdio::null()).kill_on_drop(true);
        command
    }

    /// Runs pgcm to its end, past the relays: status, stdout and stderr.
    pub(crate) async fn run(&self, args: &[&str]) -> (i32, String, String) {
        let output = self.command("direct", args).output().await.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap_or(-1), text(&output.stdout), text(&output.stderr))
    }

    /// A `pgcm failover` past the relays.
    pub(crate) fn failover(&self) -> Command {
        self.command("direct", &["failover", "--output", "json"])
    }

    /// What `pgcm status` says.
    pub(crate) async fn status(&self) -> Result<Value, String> {
        let (status, stdout, stderr) = self.run(&["status", "--output", "json"]).await;
        if status != 0 {
            return Err(format!("`pgcm status` ended with {status}: {stderr}"));
        }
        serde_json::from_str(&stdout).map_err(|error| format!("{error}: {stdout}"))
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.pgbouncers.iter().map(|pgbouncer| pgbouncer.port).collect()
    }

    pub(crate) async fn is_locked(&self) -> bool {
        self.etcd.get(LOCK).await.ok().is_none_or(|lock| lock.is_some())
    }

    /// The step that the lock tells.
    pub(crate) async fn noted_step(&self) -> Option<String> {
        let lock = self.etcd.get(LOCK).await.ok()??;
        Some(serde_json::from_str::<Attempt>(&lock.value).ok()?.step)
    }

    /// Waits until nothing is missing.
    ///
    /// # Errors
    /// What still is when `limit` is over.
    pub(crate) async fn becomes_whole(&self, limit: Duration) -> Result<(), String> {
        let end = tokio::time::Instant::now() + limit;
        loop {
            let Err(missing) = self.is_whole().await else { return Ok(()) };
            if tokio::time::Instant::now() > end {
                return Err(format!("not whole within {limit:?}: {missing}"));
            }
            tokio::time::sleep(STEP).await;
        }
    }

    async fn is_whole(&self) -> Result<(), String> {
        let primary = self.director.primary().ok_or("nobody is promoted")?;
        let entry = self.etcd.get("/cluster").await.map_err(|error| error.to_string())?;
        let view: ClusterView = entry
            .and_then(|entry| serde_json::from_str(&entry.value).ok())
            .ok_or("no primary is published")?;
        if view.primary.name != primary || view.synchronous_standby().is_none() {
            return Err(format!("{primary} is promoted, published is {view:?}"));
        }
        let agents = self.etcd.get_prefix("/agents/").await.map_err(|error| error.to_string())?;
        if agents.entries.len() != self.agents.len() {
            return Err(format!("{} agents are registered", agents.entries.len()));
        }
        self.flows(primary).await?;
        if self.is_locked().await || self.director.has_constraint() {
            return Err("the lock or the constraint is there".to_owned());
        }
        if self.director.was_taken_back() {
            return Err("the constraint went before the new primary's first monitor".to_owned());
        }
        // Whatever an operator would see before the next failover, agents that are not healthy yet among it.
        match &self.status().await?["problems"] {
            Value::Array(problems) if problems.is_empty() => Ok(()),
            problems => Err(format!("`pgcm status` tells {problems}")),
        }
    }

    /// Every PgBouncer points at `primary`, and none is paused.
    async fn flows(&self, primary: &str) -> Result<(), String> {
        let address = self.director.node(primary).address;
        for (host, pgbouncer) in HOSTS.iter().zip(&self.pgbouncers) {
            let told = |error: &dyn std::fmt::Display| format!("{host}: {error}");
            let session = pgbouncer.console().connect().await.map_err(|error| told(&error))?;
            let databases = session.databases().await.map_err(|error| told(&error))?;
            let here = databases.iter().any(|database| database.host.as_deref() == Some(address));
            if !here {
                return Err(told(&"it points elsewhere"));
            }
            if session.flow().await.map_err(|error| told(&error))? != Flow::Active {
                return Err(told(&"its PgBouncer is paused"));
            }
        }
        Ok(())
    }

    /// Names of the hosts whose PgBouncers hold their clients.
    pub(crate) async fn paused(&self) -> Vec<&'static str> {
        let mut paused = Vec::new();
        for (host, pgbouncer) in HOSTS.iter().zip(&self.pgbouncers) {
            let flow = match pgbouncer.console().connect().await {
                Ok(session) => session.flow().await.ok(),
                Err(_) => None,
            };
            if flow != Some(Flow::Active) {
                paused.push(*host);
            }
        }
        paused
    }

    /// The last lines of every agent's log.
    pub(crate) fn logs(&self) -> String {
        let mut text = String::new();
        for agent in &self.agents {
            for start in 1..=agent.starts {
                let file = format!("{}.{start}.log", agent.name.replace('/', "-"));
                let log = fs::read_to_string(self.dir.path().join(&file)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().filter(|line| !line.contains("h2::")).collect();
                let last = lines[lines.len().saturating_sub(25)..].join("\n");
                let _ = writeln!(text, "---- {file}\n{last}");
            }
        }
        text
    }
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port")
}
