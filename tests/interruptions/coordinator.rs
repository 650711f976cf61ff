//! The failover that is interrupted: a process, what it logs and how it ends.

use std::{
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use pgcm::edge::clock;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
};

/// A running `pgcm failover`.
pub(crate) struct Coordinator {
    pub(crate) pid: u32,
    child: Child,
    /// What it logged, line by line.
    lines: Arc<Mutex<Vec<String>>>,
    count: watch::Receiver<usize>,
    stdout: Option<tokio::task::JoinHandle<String>>,
}

impl Coordinator {
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let (counter, count) = watch::channel(0);
        let kept = lines.clone();
        tokio::spawn(async move {
            while let Ok(Some(line)) = log.next_line().await {
                kept.lock().unwrap().push(line);
                counter.send_modify(|count| *count += 1);
            }
        });
        let stdout = Some(tokio::spawn(async move {
            let mut text = String::new();
            let _ = tokio::io::AsyncReadExt::read_to_string(&mut out, &mut text).await;
            text
        }));
        let pid = child.id().unwrap_or_default();
        Self { pid, child, lines, count, stdout }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
        }
    }

    /// Returns once it has logged `event` of `step`; never if it ends before.
    pub(crate) fn logs(&self, event: &'static str, step: &str) -> impl Future<Output = ()> + use<> {
        let wanted = format!("\"step\":\"{step}\"");
        let (mut count, lines) = (self.count.clone(), self.lines.clone());
        async move {
            let logged = |line: &String| line.contains(event) && line.contains(&wanted);
            let seen = count.wait_for(|_| lines.lock().unwrap().iter().any(logged)).await.is_ok();
            if !seen {
                std::future::pending::<()>().await;
            }
        }
    }

    /// When it began `step`, if it has.
    pub(crate) fn began(&self, step: &str) -> Option<Instant> {
        let lines = self.lines.lock().unwrap();
        let mut lines = lines.iter().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let line =
            lines.find(|line| line["event"] == "failover.step.begin" && line["step"] == step)?;
        Instant::now().checked_sub(clock::age(line["ts"].as_str()?)?)
    }

    pub(crate) fn log(&self) -> String {
        let lines = self.lines.lock().unwrap();
        lines
            .iter()
            .filter(|line| line.contains("failover."))
            .cloned()
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Waits for its end: status, -1 for a signal, and, when first asked, what it printed.
    pub(crate) async fn ends(&mut self, limit: Duration) -> Result<(i32, String), String> {
        let ended = tokio::time::timeout(limit, self.child.wait()).await;
        let ended = ended.map_err(|_| format!("the coordinator runs on after {limit:?}"))?;
        let text = match self.stdout.take() {
            Some(stdout) => stdout.await.unwrap_or_default(),
            None => String::new(),
        };
        Ok((ended.unwrap().code().unwrap_or(-1), text))
    }
}
