//! Ending the transactions that hold up the pause, when the operator asked for that.

use std::{collections::BTreeSet, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, sleep_until},
};

use super::{
    Failover,
    agents::{pausers, supervises},
    progress::Event,
};
use crate::{edge::peer::pb, model::terminated::Terminated, work::shutdown::Stop};

/// Bounds each question: clients wait meanwhile.
const LIMIT: Duration = Duration::from_secs(2);
/// Bounds the request to end them. Longer than the agent's query may take, unless
/// `postgres.query-timeout` was raised: what it ended is to be told.
const TERMINATE: Duration = Duration::from_secs(4);
/// Pause between two rounds: a later tier brings transactions of its own.
const AGAIN: Duration = Duration::from_millis(300);

impl Failover {
    /// Once the pause that `began` then has lasted `terminate_after`, ends what still holds it up and has
    /// been open as long, again and again until `done`. A round that was begun is waited for, since it is
    /// reported.
    pub(super) async fn clear_the_way(&self, began: Instant, mut done: Stop) {
        let Some(after) = self.options.terminate_after else { return };
        let mut due = began + after;
        loop {
            tokio::select! {
                biased;
                () = done.wait() => return,
                () = sleep_until(due) => {}
            }
            match self.terminate_blockers(after).await {
                Ok(ended) if ended.is_empty() => {}
                Ok(ended) => {
                    self.progress.tell(&Event::Terminated { transactions: &ended });
                    self.state().terminated.extend(ended);
                }
                Err(reason) => self.progress.tell(&Event::NotTerminated { reason: &reason }),
            }
            due = Instant::now() + AGAIN;
        }
    }

    async fn terminate_blockers(&self, min_age: Duration) -> Result<Vec<Terminated>, String> {
        let blockers = self.blockers().await;
        if blockers.is_empty() {
            return Ok(Vec::new());
        }
        let agents = {
            let state = self.state();
            let primary = state.before.as_ref().map(|view| view.primary.name.clone());
            let mut agents = supervises(&state.agents, &[]);
            agents.retain(|agent| Some(&agent.host) == primary.as_ref());
            agents
        };
        let agent = agents.first().ok_or("no supervise of the primary is there to ask")?;
        let answer = agent.peer.terminate(self.attempt(), blockers, min_age, TERMINATE).await;
        answer.map_err(|error| error.to_string())
    }

    /// Connections that the PgBouncers of all agents have in use; those of one that does not answer
    /// are left out. Of all: what holds up an application's PgBouncer may be known only to the one on a
    /// Postgres node that it goes through, which still works for others.
    async fn blockers(&self) -> Vec<pb::Backend> {
        let mut asked = JoinSet::new();
        for (_, agent) in pausers(&self.state().agents) {
            asked.spawn(async move { agent.peer.blockers(LIMIT).await });
        }
        let answers = asked.join_all().await;
        let found: BTreeSet<(u32, u32)> =
            answers.into_iter().flatten().flatten().map(|one| (one.pid, one.port)).collect();
        found.into_iter().map(|(pid, port)| pb::Backend { pid, port }).collect()
    }
}
