//! What every action works with.

use std::{collections::BTreeMap, error::Error, net::IpAddr, path::Path, time::Duration};

use slog::{Logger, warn};
use tokio::time::{Instant, sleep};

use crate::{
    edge::{
        address,
        agent_sql::{Local, Remote, SqlError},
        attributes::{AttributeError, Attributes},
        command::{Call, Run},
        identity::Identity,
        poke::{self, Urgency},
        postmaster::{Postmaster, PostmasterError, find_bindir},
        server_log::ServerLog,
    },
    error::chain,
    model::agent::{
        cib::{Names, Node},
        code::OcfCode,
        condition::{Answer, Condition, Process, condition},
        conninfo::{self, Upstream},
        lsn::Position,
        parameters::{Parameters, ReplicationMode},
        pid_file::Phase,
        server_log::is_beyond_recovery,
        settings::{Settings, SyncName},
    },
};

/// How long a server's log may take to hold its last words: they go through another process.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Why an action failed, and the code that Pacemaker acts upon.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) code: OcfCode,
    /// One sentence. Pacemaker shows its first 128 bytes, so that what to do comes early.
    pub(super) reason: String,
    /// What a person can run, in order; for the log and for `pgcm status`.
    pub(super) commands: Vec<String>,
}

impl Failure {
    pub(super) fn new(code: OcfCode, reason: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), commands: Vec::new() }
    }

    /// The same with `commands`.
    pub(super) fn with(self, commands: Vec<String>) -> Self {
        Self { commands, ..self }
    }

    pub(super) fn caused_by(error: &dyn Error) -> Self {
        Self::new(OcfCode::Generic, chain(error).to_string())
    }
}

impl From<PostmasterError> for Failure {
    fn from(error: PostmasterError) -> Self {
        Self::caused_by(&error)
    }
}

impl From<AttributeError> for Failure {
    fn from(error: AttributeError) -> Self {
        Self::caused_by(&error)
    }
}

impl From<SqlError> for Failure {
    fn from(error: SqlError) -> Self {
        Self::caused_by(&error)
    }
}

/// One action's world: parameters, this node's name, the edges and the time left.
pub(super) struct Agent<R> {
    pub(super) parameters: Parameters,
    /// This node's name in the cluster, and its `application_name` as a standby.
    pub(super) node: String,
    pub(super) postmaster: Postmaster<R>,
    pub(super) attributes: Attributes<R>,
    pub(super) state_dir: String,
    pub(super) log: Logger,
    deadline: Instant,
    /// The server's log as it was when this action began.
    server_log: ServerLog,
}

impl<R: Run + Clone> Agent<R> {
    pub(super) async fn new(
        env: &BTreeMap<String, String>,
        parameters: Parameters,
        run: R,
        deadline: Instant,
        log: &Logger,
    ) -> Result<Self, Failure> {
        let user = Identity::of(&parameters.pgdba)
            .map_err(|error| Failure::new(OcfCode::Installed, chain(&error).to_string()))?;
        let node = match env.get("OCF_RESKEY_CRM_meta_on_node").filter(|name| !name.is_empty()) {
            Some(name) => name.clone(),
            None => node_name(&run).await?,
        };
        let postmaster = Postmaster {
            run: run.clone(),
            pgdata: parameters.pgdata.clone(),
            bindir: find_bindir(parameters.bindir.as_deref(), &parameters.pgdata),
            config_file: parameters.config_file(),
            user,
            port: parameters.port,
            socketdir: parameters.socketdir.clone(),
            logfile: parameters.logfile.clone(),
            start_options: parameters.start_opt.clone(),
        };
        let left = deadline.saturating_duration_since(Instant::now());
        let names = Names::of(&parameters.resource);
        Ok(Self {
            server_log: ServerLog::mark(&parameters.pgdata, &parameters.logfile),
            attributes: Attributes { run, names, limit: (left / 3).min(Duration::from_secs(10)) },
            parameters,
            node,
            postmaster,
            state_dir: env
                .get("HA_RSCTMP")
                .cloned()
                .unwrap_or_else(|| "/run/resource-agents".to_owned()),
            log: log.clone(),
            deadline,
        })
    }

    pub(super) fn names(&self) -> &Names {
        &self.attributes.names
    }

    /// What is left of the action's budget.
    pub(super) fn left(&self) -> Duration {
        self.deadline.saturating_duration_since(Instant::now())
    }

    /// The share 1/`parts` of what is left, at most `limit`.
    pub(super) fn share(&self, parts: u32, limit: Duration) -> Duration {
        (self.left() / parts).min(limit)
    }

    /// Connects to the local server; `limit` bounds that and each question.
    pub(super) async fn connect(&self, limit: Duration) -> Result<Local, SqlError> {
        Local::connect(&self.parameters.socket(), &self.postmaster.user, limit).await
    }

    /// Connects as soon as the server accepts connections, within `limit`.
    ///
    /// Gives up at once when the postmaster is gone.
    pub(super) async fn connect_when_ready(&self, limit: Duration) -> Result<Local, Failure> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.postmaster.process()?.0 {
                Process::Gone | Process::Orphans => return Err(self.ended().await),
                // Asking earlier would only fill the server's log.
                Process::Running(Some(Phase::Starting)) if !left.is_zero() => {}
                Process::Running(_) => {
                    match self.connect(left.max(Duration::from_millis(100))).await {
                        Ok(local) => return Ok(local),
                        Err(error) if left.is_zero() => return Err(error.into()),
                        Err(_) => {}
                    }
                }
            }
            sleep(Duration::from_millis(3)).await;
        }
    }

    /// Begins to start the server; one that ends before anybody saw it is told like one that ends later.
    pub(super) async fn launch(&self) -> Result<(), Failure> {
        match self.postmaster.start(self.left()).await {
            Err(PostmasterError::NotStarted { .. }) => Err(self.ended().await),
            started => Ok(started?),
        }
    }

    /// Why a server that was to start has ended, in its own words, and what a person can do.
    async fn ended(&self) -> Failure {
        let look = format!("tail -n 50 {}", self.server_log.place().display());
        let until = Instant::now() + LAST_WORDS;
        let mut said = self.server_log.why_ended();
        while said.is_none() && Instant::now() < until {
            sleep(Duration::from_millis(20)).await;
            said = self.server_log.why_ended();
        }
        let Some(said) = said else {
            let reason = "Postgres ended while starting, and its log does not say why";
            return Failure::new(OcfCode::Generic, reason).with(vec![look, self.cleanup_command()]);
        };
        let commands = if is_beyond_recovery(&said) {
            let settings = self.postmaster.settings();
            let primary = conninfo::get(&settings.primary_conninfo, "host");
            [vec![look], self.replace_commands(primary.as_deref())].concat()
        } else {
            vec![look, self.cleanup_command()]
        };
        let reason = format!("Postgres ended while starting: {said}");
        Failure::new(OcfCode::Generic, reason).with(commands)
    }

    /// The server's condition from its files alone.
    pub(super) async fn condition_from_files(&self) -> Result<(Condition, Option<u32>), Failure> {
        let (process, pid) = self.postmaster.process()?;
        let answer = self.answer_from_files(process).await;
        let signal = self.postmaster.has("standby.signal");
        Ok((condition(process, answer, signal), pid))
    }

    /// What the files say in the place of a server that is not asked, or does not answer.
    ///
    /// A hot standby calls itself ready in its lock file, as a primary does. Only the control file tells
    /// them apart: `standby.signal` can be put beside a running primary.
    pub(super) async fn answer_from_files(&self, process: Process) -> Answer {
        let is_ready = process == Process::Running(Some(Phase::Ready));
        if !is_ready || !self.postmaster.has("standby.signal") {
            return Answer::Busy;
        }
        match self.postmaster.control_data(self.share(6, Duration::from_secs(3))).await {
            Ok(control) if control.was_standby() => Answer::Standby,
            Ok(_) => Answer::Primary,
            Err(error) => {
                warn!(self.log, "cannot read whether the server is a standby";
                    "event" => "agent.files.fail", "error" => %chain(&error));
                Answer::Busy
            }
        }
    }

    /// This node's address for the others.
    pub(super) async fn own_address(&self) -> Result<IpAddr, Failure> {
        if let Some(address) = self.parameters.address {
            return Ok(address);
        }
        let found = async { address::own_ipv4(&address::host_name()?).await };
        found.await.map(IpAddr::V4).map_err(|error| {
            let reason = format!("{}; set the parameter `address`", chain(&error));
            Failure::new(OcfCode::Arguments, reason)
        })
    }

    /// How this node connects to the Postgres at `address`.
    pub(super) fn conninfo(&self, address: &str) -> String {
        self.conninfo_as(&self.node, address)
    }

    /// The same for a program that copies the data directory. Under the node's name it would pass for the standby,
    /// and commits might wait for it.
    pub(super) fn backup_conninfo(&self, address: &str) -> String {
        self.conninfo_as("pg_basebackup", address)
    }

    fn conninfo_as(&self, application_name: &str, address: &str) -> String {
        let upstream = Upstream {
            address,
            port: self.parameters.port,
            user: &self.parameters.repuser,
            application_name,
            options: &self.conninfo_options(),
        };
        upstream.conninfo()
    }

    /// Asks the Postgres at `address` over a replication connection.
    pub(super) fn remote(&self, address: &str, limit: Duration) -> Remote<R> {
        Remote {
            run: self.postmaster.run.clone(),
            psql: self.postmaster.program("psql"),
            user: self.postmaster.user.clone(),
            conninfo: self.conninfo(address),
            address: address.to_owned(),
            limit,
        }
    }

    /// The settings of a standby of `upstream`, which also hold in the moment after its promotion.
    pub(super) fn standby_settings(&self, upstream: Option<&Node>) -> Settings {
        let address = upstream.and_then(|node| node.address(self.names()));
        let blocks = self.parameters.strict && self.parameters.mode != ReplicationMode::Async;
        Settings {
            primary_conninfo: address.map(|address| self.conninfo(address)).unwrap_or_default(),
            sync_name: if blocks { SyncName::Block } else { SyncName::None },
            slots: self.slot_settings(),
        }
    }

    /// The newest position that this standby holds, given what it says it received.
    pub(super) fn received(&self, lsn: crate::model::agent::lsn::Lsn, checkpoint: u32) -> Position {
        Position { timeline: self.postmaster.wal_timeline().max(checkpoint), lsn }
    }

    /// Makes supervise look; without supervise nothing is lost.
    pub(super) fn poke(&self, urgency: Urgency) {
        let _ = poke::poke(Path::new(poke::SOCKET), urgency);
    }

    /// Logs an attribute that could not be set and that the next monitor will set.
    pub(super) fn tolerate(&self, what: &str, result: Result<(), AttributeError>) {
        if let Err(error) = result {
            warn!(self.log, "cannot change an attribute, the next monitor will";
                "event" => "agent.attribute.fail", "what" => what, "error" => %chain(&error));
        }
    }
}

/// The node's name as the cluster knows it, for callers that do not say.
async fn node_name<R: Run>(run: &R) -> Result<String, Failure> {
    let call = Call::new("crm_node", &["-n"], Duration::from_secs(3));
    if let Ok(output) = run.run(call).await
        && output.success()
        && !output.stdout.trim().is_empty()
    {
        return Ok(output.stdout.trim().to_owned());
    }
    address::host_name().map_err(|error| Failure::new(OcfCode::Generic, chain(&error).to_string()))
}
