//! The Docker cluster that the tests of one binary share.

use std::{
    fmt,
    process::{Command, Stdio},
    time::{Duration, Instant, UNIX_EPOCH},
};

use pgcm::edge::clock;
use serde_json::Value;
use tokio::sync::OnceCell;

pub(crate) const NODES: [&str; 3] = ["pg01", "pg02", "pg03"];
pub(crate) const MACHINES: [&str; 4] = ["pg01", "pg02", "pg03", "app01"];
const BOOT_LIMIT: Duration = Duration::from_secs(900);
const EXEC_LIMIT: Duration = Duration::from_secs(120);

/// How a command in a container ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    stderr: String,
}

impl Ended {
    /// What it printed, after making sure that it succeeded.
    pub(crate) fn done(self) -> String {
        assert_eq!(self.status, 0, "{self}");
        self.stdout
    }

    /// Everything that it printed.
    pub(crate) fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {}\n{}\n{}", self.status, self.stdout, self.stderr)
    }
}

pub(crate) struct Cluster {
    name: String,
}

static BOOTED: OnceCell<()> = OnceCell::const_new();

impl Cluster {
    /// The cluster, booted if need be and whole: primary, both standbys in the roles of its mode
    /// (`PGCM_MODE` in the environment), every agent healthy.
    pub(crate) async fn whole() -> Self {
        let cluster = Self::booted().await;
        cluster.becomes_whole(Duration::from_secs(90)).await;
        cluster
    }

    /// The cluster, booted if need be, as the test before left it.
    pub(crate) async fn booted() -> Self {
        let cluster = Self::named();
        BOOTED.get_or_init(|| cluster.boot()).await;
        cluster
    }

    /// The cluster, whatever its state.
    pub(crate) fn named() -> Self {
        Self { name: std::env::var("PGCM_CLUSTER").unwrap_or_else(|_| "pgcm-test".to_owned()) }
    }

    /// Boots the cluster, or what is missing of it.
    pub(crate) async fn boot(&self) {
        let debian = std::env::var("PGCM_DEBIAN").unwrap_or_else(|_| "trixie".to_owned());
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/start-cluster.sh");
        let args = vec!["up".to_owned(), "--debian".to_owned(), debian];
        let booted = run(script, args, Some(&self.name), BOOT_LIMIT).await;
        assert_eq!(booted.status, 0, "{booted}");
    }

    /// Runs a command in the container of `machine`.
    pub(crate) async fn exec(&self, machine: &str, command: &[&str]) -> Ended {
        self.exec_within(machine, command, EXEC_LIMIT).await
    }

    /// The same for whoever cannot wait: a value that is dropped while a test panics.
    pub(crate) fn exec_now(&self, machine: &str, command: &[&str]) -> Ended {
        let mut args = vec!["exec".to_owned(), self.container(machine)];
        args.extend(command.iter().map(|&word| word.to_owned()));
        run_now("docker", args, None, EXEC_LIMIT)
    }

    /// Copies a file of the checkout into the container of `machine`.
    pub(crate) async fn install(&self, machine: &str, file: &str, target: &str) {
        let file = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
        let args = vec!["cp".to_owned(), file, format!("{}:{target}", self.container(machine))];
        run("docker", args, None, EXEC_LIMIT).await.done();
    }

    /// Runs a command in the container of `machine`, at most `limit`.
    pub(crate) async fn exec_within(
        &self,
        machine: &str,
        command: &[&str],
        limit: Duration,
    ) -> Ended {
        let mut args = vec!["exec".to_owned(), self.container(machine)];
        args.extend(command.iter().map(|&word| word.to_owned()));
        run("docker", args, None, limit).await
    }

    pub(crate) async fn kill(&self, machine: &str) {
        self.docker("kill", machine).await.done();
    }

    pub(crate) async fn start(&self, machine: &str) {
        self.docker("start", machine).await.done();
    }

    /// Has Docker do `verb` to the container of `machine`.
    pub(crate) async fn docker(&self, verb: &str, machine: &str) -> Ended {
        let args = vec![verb.to_owned(), self.container(machine)];
        run("docker", args, None, EXEC_LIMIT).await
    }

    /// What Docker calls the state of the container of `machine`: running, exited, paused ….
    pub(crate) async fn state(&self, machine: &str) -> String {
        self.inspect(machine, "{{.State.Status}}").await
    }

    /// How long the container of `machine` has been off; `None` while it is not.
    pub(crate) async fn off_for(&self, machine: &str) -> Option<Duration> {
        let said = self.inspect(machine, "{{.State.Status}} {{.State.FinishedAt}}").await;
        let since = humantime::parse_rfc3339(said.strip_prefix("exited ")?).ok()?;
        let since = since.duration_since(UNIX_EPOCH).ok()?;
        Some(Duration::from_millis(clock::unix_ms()).saturating_sub(since))
    }

    async fn inspect(&self, machine: &str, format: &str) -> String {
        let args = ["inspect", "-f", format].map(str::to_owned).into_iter();
        let args = args.chain([self.container(machine)]).collect();
        run("docker", args, None, EXEC_LIMIT).await.stdout.trim().to_owned()
    }

    fn container(&self, machine: &str) -> String {
        format!("{}-{machine}", self.name)
    }

    /// Address of `machine` on the cluster's network.
    pub(crate) async fn address(&self, machine: &str) -> String {
        self.inspect(
            machine,
            "{{range .NetworkSettings.Networks}}{{.IPAMConfig.IPv4Address}}{{end}}",
        )
        .await
    }

    /// The Postgres node that has `address`.
    pub(crate) async fn node_at(&self, address: &str) -> &'static str {
        for node in NODES {
            if self.address(node).await == address {
                return node;
            }
        }
        panic!("no node has the address {address}");
    }

    /// The value of `/postgres/master`, read on a node whose etcd answers.
    pub(crate) async fn published_primary(&self) -> String {
        for node in NODES {
            let command = ["etcdctl", "get", "--print-value-only", "/postgres/master"];
            let answer = self.exec(node, &command).await;
            if answer.status == 0 && !answer.stdout.trim().is_empty() {
                return answer.stdout.trim().to_owned();
            }
        }
        panic!("no node's etcd tells who is primary");
    }

    pub(crate) async fn status(&self) -> Value {
        let answer = self.exec("app01", &["pgcm", "status", "--output", "json"]).await.done();
        serde_json::from_str(&answer).unwrap()
    }

    /// Waits until the primary and both standbys are there and every agent is healthy.
    pub(crate) async fn becomes_whole(&self, limit: Duration) {
        self.eventually(limit, "the cluster is whole", async || self.missing().await).await;
    }

    /// The node whose controller decides.
    pub(crate) async fn dc(&self) -> &'static str {
        for node in NODES {
            let said = self.exec(node, &["crmadmin", "--dc_lookup", "--quiet"]).await;
            if let Some(dc) = NODES.into_iter().find(|dc| said.stdout.contains(dc)) {
                return dc;
            }
        }
        panic!("no node knows a DC");
    }

    /// Ends Pacemaker's controller on a node. Where that node is not the DC, it is fenced for it.
    pub(crate) async fn kill_controller(&self, node: &str) {
        // The kernel keeps fifteen characters of pacemaker-controld.
        self.exec(node, &["pkill", "-KILL", "-x", "pacemaker-contr"]).await.done();
    }

    /// Waits until nothing stands in the way of a planned failover any more.
    pub(crate) async fn may_fail_over(&self, limit: Duration) {
        self.eventually(limit, "no check refuses a failover", async || {
            let dry = self.exec("app01", &["pgcm", "failover", "--dry-run"]).await;
            (dry.status != 0).then(|| dry.to_string())
        })
        .await;
    }

    /// What `pgcm status` says, or why it says nothing.
    pub(crate) async fn status_if_any(&self) -> Result<Value, String> {
        let answer = self.exec("app01", &["pgcm", "status", "--output", "json"]).await;
        if answer.status != 0 {
            return Err(answer.to_string());
        }
        serde_json::from_str(&answer.stdout).map_err(|error| format!("{error}: {answer}"))
    }

    /// What the cluster lacks to be whole.
    pub(crate) async fn missing(&self) -> Option<String> {
        let status = match self.status_if_any().await {
            Ok(status) => status,
            Err(why) => return Some(why),
        };
        let standbys = status["cluster"]["standbys"].as_array().cloned().unwrap_or_default();
        let with = |wanted: &str| {
            let fits = |s: &&Value| s["sync_state"] == wanted && s["state"] == "streaming";
            standbys.iter().filter(fits).count()
        };
        let agents = status["agents"].as_array().map_or(0, Vec::len);
        let healthy = status["problems"].as_array().is_some_and(Vec::is_empty);
        let by_mode = (with("sync") == 1 && with("potential") == 1) || with("quorum") == 2;
        let whole = by_mode
            && agents == NODES.len() + MACHINES.len()
            && healthy
            && status["failover"].is_null();
        (!whole).then(|| status.to_string())
    }

    /// Waits until the node at `address` streams from the primary.
    pub(crate) async fn streams_again(&self, address: &str, limit: Duration) {
        self.eventually(limit, "the old primary streams", async || {
            let status = self.status().await;
            let standbys = status["cluster"]["standbys"].as_array().cloned().unwrap_or_default();
            let back = |s: &Value| s["address"] == address && s["state"] == "streaming";
            (!standbys.iter().any(back)).then(|| status.to_string())
        })
        .await;
    }

    pub(crate) async fn lock_is_free(&self, limit: Duration) {
        self.eventually(limit, "the failover lock is free", async || {
            let status = self.status().await;
            (!status["failover"].is_null()).then(|| status["failover"].to_string())
        })
        .await;
    }

    pub(crate) async fn constraints_are_gone(&self, limit: Duration) {
        self.eventually(limit, "no constraint is left", async || {
            let left = self.move_constraints().await;
            (left > 0).then(|| format!("{left} are left"))
        })
        .await;
    }

    /// Location constraints in the CIB that could pin the primary.
    pub(crate) async fn move_constraints(&self) -> usize {
        let command = ["cibadmin", "--query", "--scope", "constraints"];
        let constraints = self.exec("pg01", &command).await.done();
        constraints.matches("id=\"pgcm-move").count() + constraints.matches("id=\"cli-").count()
    }

    /// Makes sure that every PgBouncer lets queries through.
    pub(crate) async fn nothing_paused(&self) {
        let query = "PGPASSWORD=app timeout 5 psql -h 127.0.0.1 -p 6432 -U app -Atc 'SELECT 1' app";
        for machine in MACHINES {
            assert_eq!(self.exec(machine, &["bash", "-c", query]).await.done().trim(), "1");
        }
    }

    /// All keys with when they were written last, but for the view, which supervise writes again and again.
    pub(crate) async fn keys_but_the_view(&self) -> Vec<String> {
        let command = ["etcdctl", "get", "--prefix", "/postgres/", "--write-out=fields"];
        let fields = self.exec("pg01", &command).await.done();
        let wanted =
            |line: &&str| line.starts_with("\"Key\"") || line.starts_with("\"ModRevision\"");
        let lines: Vec<&str> = fields.lines().filter(wanted).collect();
        let keys = lines.chunks(2).map(|pair| pair.join(" "));
        keys.filter(|key| !key.contains("\"/postgres/cluster\"")).collect()
    }

    async fn eventually<F>(&self, limit: Duration, what: &str, missing: F)
    where
        F: AsyncFn() -> Option<String>,
    {
        let begun = Instant::now();
        loop {
            let Some(lacks) = missing().await else { return };
            assert!(begun.elapsed() < limit, "not within {limit:?}: {what}\n{lacks}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Runs a program to its end, at most `limit`.
async fn run(program: &str, args: Vec<String>, cluster: Option<&str>, limit: Duration) -> Ended {
    let (program, cluster) = (program.to_owned(), cluster.map(str::to_owned));
    let running = move || run_now(&program, args, cluster.as_deref(), limit);
    tokio::task::spawn_blocking(running).await.unwrap()
}

#[expect(clippy::disallowed_methods, reason = "the tests drive Docker as a person would")]
fn run_now(program: &str, args: Vec<String>, cluster: Option<&str>, limit: Duration) -> Ended {
    let mut command = Command::new("timeout");
    command.arg("--kill-after=5").arg(limit.as_secs().to_string()).arg(program).args(args);
    if let Some(cluster) = cluster {
        command.env("PGCM_CLUSTER", cluster);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    Ended {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
