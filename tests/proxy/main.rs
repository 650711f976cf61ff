//! The render loop against real etcd and PgBouncer processes.
#![allow(clippy::unwrap_used, reason = "tests")]

mod joined;
#[path = "../support/mod.rs"]
mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use pgcm::{
    edge::etcd::{Etcd, Put},
    model::{
        console::{Flow, ShownDatabase},
        pause::Claim,
        registration::{AgentKind, Registration},
    },
    telemetry::log::discard,
    work::{
        fence::SharedGate,
        follow::{FollowError, Follower},
        pauser::{Pauser, PauserOptions},
        proxy::{Proxy, ProxyOptions, ProxyState},
        register,
        render::Template,
        shutdown::Stop,
    },
};
use support::{
    etcd::{EtcdServer, start_etcd},
    eventually, free_port,
    pgbouncer::{Pgbouncer, settings},
    postgres::{connect, start_postgres, value},
};
use tokio::{sync::watch, task::JoinHandle};

const SOON: Duration = Duration::from_secs(10);
const ONE: &str = "127.0.0.11";
const TWO: &str = "127.0.0.12";

/// An etcd, a PgBouncer and a proxy that keeps the one in step with the other.
struct World {
    server: EtcdServer,
    etcd: Arc<Etcd>,
    pgbouncer: Pgbouncer,
    template: PathBuf,
    state: watch::Receiver<ProxyState>,
    follower: Follower,
    switch: watch::Sender<bool>,
    task: JoinHandle<()>,
}

const DATABASES: &str = "[databases]\napp = host={{.Host}} port=5432 dbname=app\n";

async fn world(poll: Duration) -> World {
    let server = start_etcd().await;
    let mut pgbouncer = Pgbouncer::new(free_port(), "[databases]\napp = host=127.0.0.9\n", "");
    pgbouncer.start().await;
    let etcd = server.client();
    set_master(&etcd, ONE).await;
    let template = pgbouncer.dir().join("template");
    write_template(&pgbouncer, DATABASES);
    let options = ProxyOptions {
        templates: vec![Template { source: template.clone(), target: pgbouncer.file.clone() }],
        consoles: vec![pgbouncer.console()],
        poll_interval: poll,
    };
    let proxy = Proxy::new(options, Arc::clone(&etcd), SharedGate::default(), discard());
    let (state, follower) = (proxy.state(), proxy.follower());
    let (switch, stop) = Stop::new();
    let task = tokio::spawn(proxy.run(stop));
    let mut world = World { server, etcd, pgbouncer, template, state, follower, switch, task };
    world.until("the first render is proven", |state| state.ready).await;
    world
}

fn write_template(pgbouncer: &Pgbouncer, databases: &str) {
    let text = format!("{databases}\n{}", settings(pgbouncer.dir(), pgbouncer.port, ""));
    fs::write(pgbouncer.dir().join("template"), text).unwrap();
}

async fn put(etcd: &Etcd, key: &str, value: &str) {
    let put = Put { key: key.into(), value: value.into(), lease: 0 };
    etcd.put_if(&[], &[put]).await.unwrap();
}

async fn set_master(etcd: &Etcd, address: &str) {
    put(etcd, "/master", address).await;
}

/// Publishes the primary as supervise does.
async fn publish(etcd: &Etcd, name: &str, address: &str, timeline: u32) {
    let view = serde_json::json!({
        "primary": {"name": name, "address": address, "timeline": timeline},
        "standbys": [], "quorum": true, "system_identifier": "7",
        "observed_at": "2026-01-01T00:00:00Z",
    });
    let put = |key: &str, value: String| Put { key: key.into(), value, lease: 0 };
    let both = [put("/master", address.to_owned()), put("/cluster", view.to_string())];
    etcd.put_if(&[], &both).await.unwrap();
}

impl World {
    async fn until(&mut self, what: &str, check: impl Fn(&ProxyState) -> bool) {
        let seen = tokio::time::timeout(SOON, self.state.wait_for(check)).await.is_ok();
        assert!(seen, "not in time: {what}: {:?}", self.state.borrow());
    }

    async fn shown(&self) -> Vec<ShownDatabase> {
        self.pgbouncer.console().connect().await.unwrap().databases().await.unwrap()
    }

    async fn host(&self) -> String {
        let shown = self.shown().await;
        let app = shown.into_iter().find(|database| database.name == "app");
        app.and_then(|database| database.host).unwrap_or_default()
    }

    async fn flow(&self) -> Flow {
        self.pgbouncer.console().connect().await.unwrap().flow().await.unwrap()
    }

    fn file(&self) -> String {
        fs::read_to_string(&self.pgbouncer.file).unwrap()
    }

    fn reload_count(&self) -> usize {
        self.pgbouncer.log().matches("RELOAD command issued").count()
    }

    async fn follow(&self, address: &str, limit: Duration) -> Result<(), FollowError> {
        self.follower.follow(address.parse().unwrap(), limit).await
    }
}

const POLL: Duration = Duration::from_millis(100);

#[tokio::test(flavor = "multi_thread")]
async fn a_new_primary_is_followed_within_moments_without_a_poll() {
    let mut world = world(Duration::from_secs(3_600)).await;
    assert_eq!(world.host().await, ONE);
    for address in [TWO, ONE, TWO] {
        let begun = Instant::now();
        set_master(&world.etcd, address).await;
        world
            .until("the watch wakes the proxy", |state| {
                state.proven
                    && state.address.is_some_and(|rendered| rendered.to_string() == address)
            })
            .await;
        let took = begun.elapsed();
        assert_eq!(world.host().await, address);
        assert!(took < Duration::from_millis(500), "{took:?}");
        println!("event to proof took {took:?}");
    }
    let _ = world.switch.send(true);
    tokio::time::timeout(SOON, world.task).await.expect("it ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn follow_returns_only_when_pgbouncer_itself_agrees() {
    let world = world(Duration::from_secs(3_600)).await;
    world.follow(ONE, SOON).await.unwrap();
    let error = world.follow(TWO, Duration::from_millis(300)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("its file is for {ONE}")), "{error}");
    let following = tokio::spawn({
        let follower = world.follower.clone();
        async move { follower.follow(TWO.parse().unwrap(), SOON).await }
    });
    set_master(&world.etcd, TWO).await;
    following.await.unwrap().unwrap();
    assert_eq!(world.host().await, TWO);
}

#[tokio::test(flavor = "multi_thread")]
async fn unchanged_bytes_mean_no_reload() {
    let mut world = world(POLL).await;
    let (writes, reloads) = (world.state.borrow().writes, world.reload_count());
    let begun = world.state.borrow().proven_unix_ms;
    for _ in 0..5 {
        set_master(&world.etcd, ONE).await;
    }
    world.until("more looks", |state| state.proven_unix_ms > begun + 500).await;
    assert_eq!((world.state.borrow().writes, world.reload_count()), (writes, reloads));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_template_keeps_the_last_good_file() {
    let mut world = world(POLL).await;
    let good = world.file();
    let bad = [
        ("[databases]\napp = host={{ nonsense }}\n", "line 2"),
        ("[databases]\napp = host={{.Host}\n", "line"),
        ("[databases]\nbroken line\n", "line 2"),
        ("; nothing here\n", "no section [databases]"),
        ("[databases]\napp = host=10.0.0.1\n", "points at the primary"),
    ];
    for (databases, expected) in bad {
        write_template(&world.pgbouncer, databases);
        world
            .until(expected, |state| {
                state.render.as_ref().is_some_and(|trouble| trouble.contains(expected))
            })
            .await;
        assert_eq!(world.file(), good, "{databases}");
    }
    assert!(
        world.state.borrow().render.as_ref().unwrap().contains(world.template.to_str().unwrap())
    );
    fs::remove_file(&world.template).unwrap();
    world
        .until("a missing template is named", |state| {
            state.render.as_ref().is_some_and(|trouble| trouble.contains("cannot read"))
        })
        .await;
    write_template(&world.pgbouncer, DATABASES);
    world.until("a good template is taken again", |state| state.render.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_value_in_etcd_changes_nothing() {
    let mut world = world(POLL).await;
    let good = world.file();
    for value in ["", "pg02", "127.0.0.12:5432", "{}"] {
        set_master(&world.etcd, value).await;
        world
            .until("the value is refused", |state| {
                state.value.as_ref().is_some_and(|trouble| trouble.contains(&format!("{value:?}")))
            })
            .await;
        assert_eq!(world.file(), good);
    }
    let revision = world.etcd.get("/master").await.unwrap().unwrap().mod_revision;
    let expect = pgcm::edge::etcd::Expect::ModRevision(revision);
    world.etcd.delete_if("/master", expect).await.unwrap();
    world
        .until("a missing key is named", |state| {
            state.value.as_ref().is_some_and(|trouble| trouble.contains("/master is not in etcd"))
        })
        .await;
    assert_eq!((world.file(), world.host().await), (good, ONE.to_owned()));
    put(&world.etcd, "/cluster", "not JSON").await;
    set_master(&world.etcd, TWO).await;
    world.follow(TWO, SOON).await.expect("the address alone is the contract");
    world.until("the view is doubted", |state| state.view.is_some()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_nothing_changes_and_with_it_the_proxy_follows_again() {
    let mut world = world(POLL).await;
    let good = world.file();
    world.server.stop();
    world.until("etcd is missed", |state| state.etcd.is_some()).await;
    assert_eq!((world.file(), world.host().await), (good, ONE.to_owned()));
    assert!(world.state.borrow().proven, "PgBouncer still follows its file");
    world.server.start().await;
    set_master(&world.etcd, TWO).await;
    world.follow(TWO, SOON).await.unwrap();
    world.until("etcd is back", |state| state.etcd.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_etcd_that_was_made_anew_only_what_is_not_older_is_followed() {
    let mut world = world(POLL).await;
    publish(&world.etcd, "pg01", ONE, 6).await;
    publish(&world.etcd, "pg02", TWO, 7).await;
    world.follow(TWO, SOON).await.unwrap();
    world.server.stop();
    world.server.start_anew().await;
    // As a backup of etcd holds it that is older than the last move.
    publish(&world.etcd, "pg01", ONE, 6).await;
    world
        .until("the primary of before is refused", |state| {
            state.value.as_ref().is_some_and(|trouble| trouble.contains("name pg02, timeline 7"))
        })
        .await;
    assert_eq!(world.host().await, TWO);
    // The primary's supervise publishes, and then a crash makes the other one primary.
    publish(&world.etcd, "pg02", TWO, 7).await;
    world.until("what is known is accepted", |state| state.value.is_none()).await;
    publish(&world.etcd, "pg01", ONE, 8).await;
    world.follow(ONE, SOON).await.unwrap();
    assert_eq!(world.host().await, ONE);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_pgbouncer_is_made_to_follow_again() {
    let mut world = world(POLL).await;
    world.pgbouncer.stop();
    world.until("PgBouncer is missed", |state| state.pgbouncer.is_some()).await;
    set_master(&world.etcd, TWO).await;
    world.until("its file is written all the same", |state| state.writes == 2).await;
    world.pgbouncer.start().await;
    world.follow(TWO, SOON).await.unwrap();
    assert_eq!(world.host().await, TWO);
    world.until("the trouble is over", |state| state.pgbouncer.is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pgbouncer_that_runs_with_another_file_is_reloaded() {
    let mut world = world(POLL).await;
    // It starts with an old file, and the right one is put back before it is asked.
    let right = world.file();
    world.pgbouncer.stop();
    world.until("PgBouncer is missed", |state| state.pgbouncer.is_some()).await;
    let _ = world.switch.send(true);
    (&mut world.task).await.unwrap();
    fs::write(&world.pgbouncer.file, right.replace(ONE, "127.0.0.9")).unwrap();
    world.pgbouncer.start().await;
    fs::write(&world.pgbouncer.file, &right).unwrap();
    assert_eq!(world.host().await, "127.0.0.9");
    let options = ProxyOptions {
        templates: vec![Template {
            source: world.template.clone(),
            target: world.pgbouncer.file.clone(),
        }],
        consoles: vec![world.pgbouncer.console()],
        poll_interval: POLL,
    };
    let proxy = Proxy::new(options, Arc::clone(&world.etcd), SharedGate::default(), discard());
    let (mut state, (_switch, stop)) = (proxy.state(), Stop::new());
    tokio::spawn(proxy.run(stop));
    tokio::time::timeout(SOON, state.wait_for(|state| state.ready)).await.unwrap().unwrap();
    assert_eq!(world.host().await, ONE);
    assert_eq!(state.borrow().writes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_pgbouncer_does_not_take_is_put_back() {
    let mut world = world(POLL).await;
    let good = world.file();
    let databases = "[databases]\napp = host={{.Host}} port=5432 dbname=app\
        {% if host == '127.0.0.12' %} nonsense=1{% endif %}\n";
    write_template(&world.pgbouncer, databases);
    set_master(&world.etcd, TWO).await;
    world
        .until("the text is rejected", |state| {
            state.render.as_ref().is_some_and(|trouble| trouble.contains("did not accept"))
        })
        .await;
    assert_eq!((world.file(), world.host().await), (good, ONE.to_owned()));
    write_template(&world.pgbouncer, DATABASES);
    world.follow(TWO, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unwritable_file_is_named_and_stays() {
    let mut world = world(POLL).await;
    let good = world.file();
    // Root may write everywhere, but not replace a file by renaming over a directory.
    let aside = world.pgbouncer.dir().join("pgbouncer.ini.pgcm-new");
    fs::create_dir(&aside).unwrap();
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).unwrap();
    set_master(&world.etcd, TWO).await;
    world
        .until("the file is named", |state| {
            state.render.as_ref().is_some_and(|trouble| {
                trouble.contains("cannot write") && trouble.contains("pgbouncer.ini")
            })
        })
        .await;
    assert_eq!((world.file(), world.host().await), (good, ONE.to_owned()));
    fs::remove_dir(&aside).unwrap();
    world.follow(TWO, SOON).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_and_new_logins_wait_through_a_move_and_land_on_the_new_primary() {
    let postgres = start_postgres().await;
    let mut world = world(POLL).await;
    let databases =
        format!("[databases]\napp = host={{{{.Host}}}} port={} dbname=postgres\n", postgres.port);
    write_template(&world.pgbouncer, &databases);
    set_master(&world.etcd, "127.0.0.1").await;
    world.follow("127.0.0.1", SOON).await.unwrap();
    world.until("the template is in force", |state| state.writes >= 2).await;
    world.follow("127.0.0.1", SOON).await.unwrap();
    let port = world.pgbouncer.port;
    let server = "SELECT host(inet_server_addr())";
    let old = connect(port, "app").await.unwrap();
    assert_eq!(value(&old, server).await, "127.0.0.1");

    let options = PauserOptions {
        consoles: vec![world.pgbouncer.console()],
        resume_limit: SOON,
        adopt_ceiling: SOON,
    };
    let pauser = Pauser::new(options, SharedGate::default(), discard());
    let claim = Claim { attempt: "a".into(), token: 1 };
    pauser.pause(&claim, SOON, 3 * SOON).await.unwrap();
    let waiting = tokio::spawn(async move { value(&old, server).await });
    let login = |port| async move { value(&connect(port, "app").await.unwrap(), server).await };
    let before = tokio::spawn(login(port));
    set_master(&world.etcd, "127.0.0.2").await;
    world.follow("127.0.0.2", SOON).await.expect("a paused PgBouncer follows too");
    let after = [tokio::spawn(login(port)), tokio::spawn(login(port))];
    // Logins must have reached PgBouncer; that they wait cannot be asked for before 1.25.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let begun = Instant::now();
    pauser.resume(&claim).await.unwrap();
    for query in [waiting, before].into_iter().chain(after) {
        assert_eq!(query.await.unwrap(), "127.0.0.2");
    }
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_starting_agent_asks_etcd_whose_the_pause_is() {
    let mut world = world(POLL).await;
    let attempt = |deadline| {
        serde_json::json!({
            "id": "live", "holder": "h", "purpose": "failover", "started_at": "", "step": "pause",
            "pause_deadline_unix_ms": deadline,
        })
    };
    let console = world.pgbouncer.console();
    let flow = || async { console.connect().await.unwrap().flow().await.unwrap() };
    let agent = || {
        let options = PauserOptions {
            consoles: vec![console.clone()],
            resume_limit: Duration::from_secs(2),
            adopt_ceiling: Duration::from_secs(60),
        };
        Pauser::new(options, SharedGate::default(), discard())
    };
    console.connect().await.unwrap().pause(SOON).await.unwrap();
    let deadline = pgcm::edge::clock::unix_ms() + 60_000;
    put(&world.etcd, "/failover", &attempt(deadline).to_string()).await;
    agent().recover_from(&world.etcd, SOON).await;
    assert_eq!(flow().await, Flow::Held, "a live attempt owns the pause");
    put(&world.etcd, "/failover", &attempt(0).to_string()).await;
    agent().recover_from(&world.etcd, SOON).await;
    assert_eq!(flow().await, Flow::Active, "the attempt has not paused anything");
    console.connect().await.unwrap().pause(SOON).await.unwrap();
    world.server.stop();
    agent().recover_from(&world.etcd, Duration::from_millis(500)).await;
    assert_eq!(flow().await, Flow::Active, "an unknown pause does not last");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registration_is_under_a_lease_and_heals_and_goes_with_its_agent() {
    let server = start_etcd().await;
    let etcd = server.client();
    let registration = Registration {
        host: "app01".into(),
        kind: AgentKind::Proxy,
        api: "127.0.0.1:8081".parse().unwrap(),
        version: "1".into(),
    };
    let key = registration.key();
    let (switch, stop) = Stop::new();
    let ttl = Duration::from_secs(2);
    let (nobody, _) = watch::channel(None);
    let run = register::run(Arc::clone(&etcd), registration.clone(), ttl, nobody, stop, discard());
    let task = tokio::spawn(run);
    let (etcd, key) = (&etcd, key.as_str());
    let entry = || async move { etcd.get(key).await.unwrap() };
    eventually(SOON, "it is registered", || async { entry().await.is_some() }).await;
    let first = entry().await.unwrap();
    assert_ne!(first.lease, 0);
    assert_eq!(serde_json::from_str::<Registration>(&first.value).unwrap(), registration);
    etcd.revoke(first.lease).await.unwrap();
    eventually(SOON, "a lost lease is replaced", || async {
        entry().await.is_some_and(|found| found.lease != first.lease)
    })
    .await;
    put(etcd, key, "nonsense").await;
    eventually(SOON, "an overwritten key heals", || async {
        entry().await.is_some_and(|found| found.value == first.value)
    })
    .await;
    switch.send(true).unwrap();
    task.await.unwrap();
    assert_eq!(entry().await, None);
}
