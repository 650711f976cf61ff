//! Stands in for Pacemaker: shows who is promoted, takes the constraint of a move, and moves the role
//! between two real Postgres as the resource agent would.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use pgcm::{edge::clock, model::location};

use crate::{
    snare::Snare,
    support::{
        eventually, free_port,
        process::{Process, directory, postgres_binary, postgres_user},
    },
};

/// How often the constraint is looked at.
const LOOK: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(20);
/// How long after a promotion the new primary's first monitor has told its promotion score.
const FIRST_MONITOR: Duration = Duration::from_millis(500);

pub(crate) const NODES: [&str; 2] = ["pg01", "pg02"];

/// A Postgres node, at 127.0.0.1 or 127.0.0.2.
pub(crate) struct Node {
    pub(crate) name: &'static str,
    pub(crate) address: &'static str,
    dir: tempfile::TempDir,
    process: Mutex<Option<Process>>,
}

impl Node {
    fn new(name: &'static str, address: &'static str) -> Self {
        Self { name, address, dir: directory(), process: Mutex::default() }
    }

    pub(crate) fn socket_dir(&self) -> &Path {
        self.dir.path()
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn start(&self, port: u16) {
        let (data, port) = (self.data(), port.to_string());
        let sockets = self.dir.path().to_str().unwrap();
        let args = ["-D", data.to_str().unwrap(), "-p", &port, "-k", sockets, "-h", self.address];
        let log = self.dir.path().join(format!("log-{}", clock::unix_ms()));
        let process = Process::start(&postgres_binary("postgres"), &args, &log, true);
        *self.process.lock().unwrap() = Some(process.ending_with(Signal::SIGQUIT));
    }

    /// A fast shutdown, as `demote` begins with.
    async fn stop(&self) {
        let process = self.process.lock().unwrap().take().expect("it runs");
        process.signal(Signal::SIGINT);
        tokio::task::spawn_blocking(|| process.finish("a fast shutdown")).await.unwrap();
    }

    /// Makes the next start one of a standby.
    fn follows(&self) {
        let signal = self.data().join("standby.signal");
        fs::write(&signal, "").unwrap();
        owned_by_postgres(&signal);
    }
}

fn owned_by_postgres(path: &Path) {
    if let Some((uid, gid)) = postgres_user() {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).unwrap();
    }
}

/// See the module.
pub(crate) struct Director {
    pub(crate) nodes: [Node; 2],
    /// Of both Postgres.
    pub(crate) port: u16,
    /// Where the stand-ins for Pacemaker's tools are.
    pub(crate) tools: tempfile::TempDir,
    state: Mutex<State>,
}

struct State {
    /// None while it is on its way.
    primary: Option<&'static str>,
    /// Who has the higher promotion score: the old primary, until the first monitor of the new one.
    preferred: &'static str,
    /// The constraint of a move has gone before that: Pacemaker would have taken the role back.
    taken_back: bool,
    /// Holds the next move between demotion and promotion.
    snare: Option<Arc<Snare>>,
}

const CRM_MON: &str = "#!/bin/sh\ncat \"$(dirname \"$0\")/crm_mon.xml\"\n";
const CIBADMIN: &str = "#!/bin/sh
file=$(dirname \"$0\")/constraint
case $1 in
--query)
    if [ \"$2\" = --scope ]; then
        printf '<constraints>%s</constraints>' \"$(cat \"$file\" 2>/dev/null)\"
    elif [ -e \"$file\" ]; then
        cat \"$file\"
    else
        exit 105
    fi ;;
--modify)
    for xml; do :; done
    printf %s \"$xml\" > \"$file.$$\" && mv \"$file.$$\" \"$file\" ;;
--delete) rm -f \"$file\" ;;
esac
";

const CRMADMIN: &str = "#!/bin/sh\necho S_IDLE\n";

impl Director {
    /// pg01 is the primary, pg02 its synchronous standby.
    pub(crate) async fn start() -> Arc<Self> {
        let director = Arc::new(Self {
            nodes: [Node::new("pg01", "127.0.0.1"), Node::new("pg02", "127.0.0.2")],
            port: free_port(),
            tools: tempfile::tempdir().unwrap(),
            state: Mutex::new(State {
                primary: Some("pg01"),
                preferred: "pg01",
                taken_back: false,
                snare: None,
            }),
        });
        for (name, text) in [("crm_mon", CRM_MON), ("cibadmin", CIBADMIN), ("crmadmin", CRMADMIN)] {
            let tool = director.tools.path().join(name);
            fs::write(&tool, text).unwrap();
            fs::set_permissions(&tool, fs::Permissions::from_mode(0o755)).unwrap();
        }
        director.show();
        director.make_nodes().await;
        tokio::spawn(Self::run(Arc::downgrade(&director)));
        director
    }

    async fn make_nodes(&self) {
        let [one, two] = &self.nodes;
        let data = one.data();
        // Each failover leaves a segment of its timeline behind.
        let segments = "--wal-segsize=1";
        let dir = data.to_str().unwrap();
        let args = ["-D", dir, "-A", "trust", "-U", "postgres", "-N", "--no-locale", segments];
        let log = one.dir.path().join("initdb.log");
        Process::start(&postgres_binary("initdb"), &args, &log, true).finish("initdb");
        let access = "local all all trust\nhost all all 127.0.0.0/8 trust\n\
                      host replication all 127.0.0.0/8 trust\n";
        fs::write(data.join("pg_hba.conf"), access).unwrap();
        self.configure(one, two);
        one.start(self.port);
        self.answers(one).await;
        let client = self.client(one.name).await.unwrap();
        client.simple_query("CREATE TABLE acknowledged (id text PRIMARY KEY)").await.unwrap();

        let source = format!("host={} port={} user=postgres", one.address, self.port);
        let data = two.data();
        let args = ["-D", data.to_str().unwrap(), "-d", &source, "-c", "fast", "-N"];
        let log = two.dir.path().join("backup.log");
        Process::start(&postgres_binary("pg_basebackup"), &args, &log, true)
            .finish("pg_basebackup");
        self.configure(two, one);
        two.follows();
        two.start(self.port);
        self.answers(two).await;
        self.waits_for(two.name, &client).await;
    }

    fn configure(&self, node: &Node, other: &Node) {
        let text = format!(
            "fsync = off\nmax_connections = 50\nshared_buffers = 16MB\nhot_standby = on\n\
             wal_retrieve_retry_interval = 100ms\nwal_level = logical\n\
             primary_conninfo = 'host={} port={} user=postgres application_name={}'\n",
            other.address, self.port, node.name
        );
        fs::write(node.data().join("postgresql.auto.conf"), text).unwrap();
        owned_by_postgres(&node.data().join("postgresql.auto.conf"));
    }

    /// From now on commits on that client's server wait for `standby`.
    async fn waits_for(&self, standby: &str, client: &tokio_postgres::Client) {
        let names = format!("ALTER SYSTEM SET synchronous_standby_names = '{standby}'");
        client.simple_query(&names).await.unwrap();
        client.simple_query("SELECT pg_reload_conf()").await.unwrap();
    }

    async fn answers(&self, node: &Node) {
        eventually(LIMIT, &format!("Postgres on {} answers", node.name), || async {
            node.process.lock().unwrap().iter().for_each(Process::assert_runs);
            self.client(node.name).await.is_ok()
        })
        .await;
    }

    /// A client of the Postgres on `node` itself.
    pub(crate) async fn client(
        &self,
        node: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host(self.node(node).address).port(self.port).user("postgres").dbname("postgres");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    pub(crate) fn node(&self, name: &str) -> &Node {
        self.nodes.iter().find(|node| node.name == name).expect("a node")
    }

    /// Who is promoted; none while the role is on its way.
    pub(crate) fn primary(&self) -> Option<&'static str> {
        self.state.lock().unwrap().primary
    }

    /// Waits until somebody is promoted.
    pub(crate) async fn promotes(&self, limit: Duration) -> Result<(), String> {
        let until = Instant::now() + limit;
        while self.primary().is_none() {
            if Instant::now() > until {
                return Err(format!("nobody is promoted within {limit:?}"));
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Holds the next move between demotion and promotion.
    pub(crate) fn hold(&self) -> Arc<Snare> {
        let snare = Snare::set();
        self.state.lock().unwrap().snare = Some(snare.clone());
        snare
    }

    pub(crate) fn let_go(&self) {
        if let Some(snare) = self.state.lock().unwrap().snare.take() {
            snare.release();
        }
    }

    pub(crate) fn has_constraint(&self) -> bool {
        self.constraint().exists()
    }

    fn constraint(&self) -> PathBuf {
        self.tools.path().join("constraint")
    }

    async fn run(director: std::sync::Weak<Self>) {
        loop {
            tokio::time::sleep(LOOK).await;
            let Some(director) = director.upgrade() else { return };
            let Some(primary) = director.primary() else { continue };
            let other = NODES.into_iter().find(|node| *node != primary).expect("two nodes");
            if director.is_to_move_to(other) {
                director.move_from(primary, other).await;
            }
        }
    }

    fn is_to_move_to(&self, node: &str) -> bool {
        let Ok(xml) = fs::read_to_string(self.constraint()) else { return false };
        let there = format!("operation=\"eq\" value=\"{node}\"");
        let until = location::parse(&format!("<constraints>{xml}</constraints>"))
            .ok()
            .and_then(|all| all.into_iter().next()?.until);
        xml.contains(&there) && until.and_then(|until| clock::is_past(&until)) == Some(false)
    }

    /// Demote, promote, and start the old primary as a standby of the new one.
    async fn move_from(&self, from: &str, to: &'static str) {
        let old = self.node(from);
        self.state.lock().unwrap().primary = None;
        self.show();
        old.stop().await;
        let snare = self.state.lock().unwrap().snare.clone();
        if let Some(snare) = snare {
            snare.pass().await;
        }
        old.follows();
        old.start(self.port);
        let client = self.client(to).await.unwrap();
        self.waits_for(from, &client).await;
        client.simple_query("SELECT pg_promote()").await.unwrap();
        self.state.lock().unwrap().primary = Some(to);
        self.show();
        self.first_monitor(to).await;
        self.answers(old).await;
    }

    /// The new primary's first monitor says whom Pacemaker shall prefer; until then the constraint has to stand.
    async fn first_monitor(&self, of: &'static str) {
        let until = Instant::now() + FIRST_MONITOR;
        // Taken away in the middle of the move it would have let Pacemaker choose whom to promote.
        let stood = self.has_constraint();
        while Instant::now() < until {
            if stood && !self.has_constraint() {
                self.state.lock().unwrap().taken_back = true;
            }
            tokio::time::sleep(LOOK).await;
        }
        self.state.lock().unwrap().preferred = of;
        self.show();
    }

    /// Whether a constraint ever went too early.
    pub(crate) fn was_taken_back(&self) -> bool {
        self.state.lock().unwrap().taken_back
    }

    /// Writes what crm_mon prints.
    fn show(&self) {
        let (primary, preferred) = {
            let state = self.state.lock().unwrap();
            (state.primary, state.preferred)
        };
        let of_each = |make: &dyn Fn(&str) -> String| NODES.map(make).concat();
        let nodes = of_each(&|node| {
            format!(
                "<node name=\"{node}\" id=\"{node}\" online=\"true\" standby=\"false\" \
                 maintenance=\"false\" pending=\"false\" unclean=\"false\" type=\"member\"/>"
            )
        });
        let attributes = of_each(&|node| {
            let score = if preferred == node { 1000 } else { 100 };
            format!(
                "<node name=\"{node}\"><attribute name=\"master-Postgresql\" value=\"{score}\"/></node>"
            )
        });
        let instances = of_each(&|node| {
            let role = if primary == Some(node) { "Promoted" } else { "Unpromoted" };
            format!(
                "<resource id=\"Postgresql\" resource_agent=\"ocf:pgcm:pgsql\" role=\"{role}\" \
                 active=\"true\" orphaned=\"false\" blocked=\"false\" managed=\"true\" \
                 failed=\"false\" nodes_running_on=\"1\"><node name=\"{node}\" id=\"{node}\"/>\
                 </resource>"
            )
        });
        let text = format!(
            "<pacemaker-result api-version=\"2.38\" request=\"crm_mon\"><summary>\
             <current_dc present=\"true\" version=\"3.0.0\" name=\"pg01\" id=\"pg01\" \
             with_quorum=\"true\"/><cluster_options stonith-enabled=\"true\" \
             maintenance-mode=\"false\"/></summary><nodes>{nodes}</nodes><resources>\
             <clone id=\"msPostgresql\" multi_state=\"true\">{instances}</clone></resources>\
             <node_attributes>{attributes}</node_attributes>\
             <status code=\"0\" message=\"OK\"/></pacemaker-result>"
        );
        let (file, new) = (self.tools.path().join("crm_mon.xml"), self.tools.path().join("new"));
        fs::write(&new, text).unwrap();
        fs::rename(new, file).unwrap();
    }
}
