//! The render loop: from `/master` in etcd to a PgBouncer that provably follows.

use std::{net::IpAddr, sync::Arc, time::Duration};

use slog::{Logger, info, warn};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
};

use super::{
    fence::SharedGate,
    follow::Follower,
    reload::{self, Process, ReloadError},
    render::{Before, RenderError, Renderer, Template},
    shutdown::Stop,
};
use crate::{
    edge::{clock, etcd::Etcd, pgbouncer::Console},
    error::chain,
    model::{
        attempt::LOCK,
        cluster::{CLUSTER, MASTER},
        followed::Followed,
        pgbouncer_ini::Database,
        wanted::{Wanted, wanted},
    },
};

/// What a [`Proxy`] renders and whom it tells.
#[derive(Debug, Clone)]
pub struct ProxyOptions {
    /// The first is PgBouncer's.
    pub templates: Vec<Template>,
    pub consoles: Vec<Console>,
    /// How often etcd is read when nothing wakes the loop.
    pub poll_interval: Duration,
}

/// How far the proxy is, for health, metrics and [`Follower`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxyState {
    /// The first render has been proven: PgBouncer can be relied on.
    pub ready: bool,
    /// Primary that the files were last rendered for.
    pub address: Option<IpAddr>,
    /// Databases of PgBouncer's file.
    pub databases: Vec<Database>,
    /// Every PgBouncer process was last seen to follow the files.
    pub proven: bool,
    /// What is wrong now, part by part; None where nothing is.
    pub etcd: Option<String>,
    pub value: Option<String>,
    pub view: Option<String>,
    pub render: Option<String>,
    pub pgbouncer: Option<String>,
    /// Counted since the start.
    pub writes: u64,
    pub reloads: u64,
    /// When PgBouncer was last proven to follow; 0 for never.
    pub proven_unix_ms: u64,
    /// When etcd last answered; 0 for never.
    pub read_unix_ms: u64,
}

impl ProxyState {
    /// What keeps PgBouncer from following the primary now, or would; None when nothing does. A view that is in
    /// doubt does not: the address alone is the contract.
    pub fn trouble(&self) -> Option<String> {
        let parts = [&self.etcd, &self.value, &self.render, &self.pgbouncer];
        let parts: Vec<&str> = parts.into_iter().flatten().map(String::as_str).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }
}

/// The loop. It holds nothing that it could not read again.
pub struct Proxy {
    etcd: Arc<Etcd>,
    renderer: Renderer,
    processes: Vec<Process>,
    options: ProxyOptions,
    gate: SharedGate,
    wake: Arc<Notify>,
    followed: Followed,
    now: ProxyState,
    state: watch::Sender<ProxyState>,
    log: Logger,
}

impl Proxy {
    pub fn new(options: ProxyOptions, etcd: Arc<Etcd>, gate: SharedGate, log: Logger) -> Self {
        Self {
            etcd,
            renderer: Renderer::new(options.templates.clone()),
            processes: options.consoles.iter().cloned().map(Process::new).collect(),
            options,
            gate,
            wake: Arc::default(),
            followed: Followed::default(),
            now: ProxyState::default(),
            state: watch::Sender::default(),
            log,
        }
    }

    /// The state after each look.
    pub fn state(&self) -> watch::Receiver<ProxyState> {
        self.state.subscribe()
    }

    /// Somebody to ask whether PgBouncer follows.
    pub fn follower(&self) -> Follower {
        Follower::new(self.options.consoles.clone(), self.state(), Arc::clone(&self.wake))
    }

    /// Renders, reloads and proves until `stop`.
    pub async fn run(mut self, mut stop: Stop) {
        let mut watches = JoinSet::new();
        for key in [MASTER, CLUSTER] {
            let (etcd, wake, log) =
                (Arc::clone(&self.etcd), Arc::clone(&self.wake), self.log.clone());
            watches.spawn(async move { etcd.wake_on_change(key, &wake, &log).await });
        }
        while !stop.is_set() {
            self.reconcile().await;
            tokio::select! {
                () = stop.wait() => {}
                () = self.wake.notified() => {}
                () = tokio::time::sleep(self.options.poll_interval) => {}
            }
        }
    }

    async fn reconcile(&mut self) {
        let mut changed = None;
        if let Some((wanted, followed)) = self.read().await {
            // A disk that hangs must not hang what resumes PgBouncer.
            match tokio::task::block_in_place(|| self.renderer.apply(&wanted)) {
                Ok(before) => {
                    self.followed = followed;
                    if before.is_some() {
                        self.now.writes += 1;
                        self.now.proven = false;
                        info!(self.log, "wrote the files for the primary";
                            "event" => "proxy.file.write", "address" => %wanted.address);
                    }
                    changed = before;
                    self.note(Part::Render, None);
                }
                Err(error) => self.note(Part::Render, Some(chain(&error).to_string())),
            }
        }
        self.prove(changed).await;
        self.state.send_if_modified(|state| {
            let modified = *state != self.now;
            state.clone_from(&self.now);
            modified
        });
    }

    /// What etcd wants rendered, and what is followed once it is; None while it does not say.
    async fn read(&mut self) -> Option<(Wanted, Followed)> {
        let snapshot = match self.etcd.get_all(&[MASTER, CLUSTER, LOCK]).await {
            Ok(snapshot) => snapshot,
            Err(error) => {
                self.note(Part::Etcd, Some(chain(&error).to_string()));
                return None;
            }
        };
        self.note(Part::Etcd, None);
        self.now.read_unix_ms = clock::unix_ms();
        self.gate.heed(&snapshot);
        let master = snapshot.get(MASTER);
        let cluster = snapshot.get(CLUSTER).map(|entry| entry.value.as_str());
        let wanted = match wanted(master.map(|entry| entry.value.as_str()), cluster) {
            Ok(wanted) => wanted,
            Err(unusable) => {
                self.note(Part::Value, Some(unusable.to_string()));
                return None;
            }
        };
        let revision = master.map_or(0, |entry| entry.mod_revision);
        let followed = match self.followed.by(&wanted, revision) {
            Ok(followed) => followed,
            Err(older) => {
                self.note(Part::Value, Some(older.to_string()));
                return None;
            }
        };
        self.note(Part::Value, None);
        self.note(Part::View, wanted.doubt.clone());
        Some((wanted, followed))
    }

    /// Makes PgBouncer follow the files, and puts the files back if none of its processes would.
    async fn prove(&mut self, changed: Option<Before>) {
        let Some(rendered) = self.renderer.current().cloned() else { return };
        self.now.address = Some(rendered.address);
        self.now.databases.clone_from(&rendered.databases);
        let answers =
            reload::follow(&mut self.processes, &rendered.pgbouncer_ini(), changed.is_some()).await;
        self.now.reloads = self.processes.iter().map(Process::reloads).sum();
        let differs =
            |answer: &Result<(), ReloadError>| matches!(answer, Err(ReloadError::Differs { .. }));
        let follows = |answer: &Result<(), ReloadError>| {
            use ReloadError::{Complains, HalfRead};
            matches!(answer, Ok(()) | Err(Complains { .. } | HalfRead { .. }))
        };
        let rejected = answers.iter().any(differs) && !answers.iter().any(follows);
        let proven = answers.iter().all(follows);
        let trouble = answers.into_iter().filter_map(Result::err).next();
        if proven && !self.now.proven {
            info!(self.log, "PgBouncer follows the primary"; "event" => "proxy.follow.prove",
                "address" => %rendered.address, "processes" => self.processes.len());
        }
        self.now.proven = proven;
        if proven {
            self.now.ready = true;
            self.now.proven_unix_ms = clock::unix_ms();
        }
        self.note(Part::Pgbouncer, trouble.map(|error| chain(&error).to_string()));
        if let (true, Some(before)) = (rejected, changed) {
            self.restore(before).await;
        }
    }

    async fn restore(&mut self, before: Before) {
        match tokio::task::block_in_place(|| self.renderer.restore(before)) {
            Ok(false) => return,
            Ok(true) => self.note(Part::Render, Some(RenderError::Rejected.to_string())),
            Err(error) => self.note(Part::Render, Some(chain(&error).to_string())),
        }
        let Some(rendered) = self.renderer.current().cloned() else { return };
        self.now.address = Some(rendered.address);
        self.now.databases.clone_from(&rendered.databases);
        let answers = reload::follow(&mut self.processes, &rendered.pgbouncer_ini(), true).await;
        self.now.proven = answers.iter().all(Result::is_ok);
    }

    /// Logs a part's trouble when it begins, changes and ends; not each time it is seen.
    fn note(&mut self, part: Part, trouble: Option<String>) {
        let slot = match part {
            Part::Etcd => &mut self.now.etcd,
            Part::Value => &mut self.now.value,
            Part::View => &mut self.now.view,
            Part::Render => &mut self.now.render,
            Part::Pgbouncer => &mut self.now.pgbouncer,
        };
        if *slot == trouble {
            return;
        }
        let (begins, ends) = part.events();
        match &trouble {
            Some(trouble) => {
                warn!(self.log, "cannot follow as it should be, the last good state stays";
                "event" => begins, "error" => trouble)
            }
            None => info!(self.log, "the trouble is over"; "event" => ends),
        }
        *slot = trouble;
    }
}

/// What can be in trouble on its own.
#[derive(Debug, Clone, Copy)]
enum Part {
    Etcd,
    Value,
    View,
    Render,
    Pgbouncer,
}

impl Part {
    fn events(self) -> (&'static str, &'static str) {
        match self {
            Self::Etcd => ("proxy.etcd.lose", "proxy.etcd.regain"),
            Self::Value => ("proxy.master.refuse", "proxy.master.accept"),
            Self::View => ("proxy.view.doubt", "proxy.view.trust"),
            Self::Render => ("proxy.render.fail", "proxy.render.mend"),
            Self::Pgbouncer => ("proxy.follow.fail", "proxy.follow.mend"),
        }
    }
}
