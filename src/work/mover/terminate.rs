//! Ends transactions that hold up a pause, when the operator asked for that.

use std::time::Duration;

use slog::warn;

use super::{MoveError, Mover};
use crate::{
    edge::{command::Run, postgres::Postgres},
    model::{console::Backend, terminated::Terminated},
};

impl<R: Run> Mover<R, Postgres> {
    /// Ends those of `backends` that have been in a transaction on this node's Postgres for `min_age`;
    /// returns what they were. One that waits for a standby to confirm its commit is left alone.
    ///
    /// # Errors
    /// [`MoveError::Postgres`].
    pub async fn terminate(
        &self,
        attempt: &str,
        backends: &[Backend],
        min_age: Duration,
    ) -> Result<Vec<Terminated>, MoveError> {
        let ended =
            self.postgres.terminate(backends, min_age).await.map_err(MoveError::Postgres)?;
        for one in &ended {
            warn!(self.log, "terminated a transaction that held up the pause";
                "event" => "move.blocker.terminate", "attempt" => attempt, "pid" => one.pid,
                "user" => &one.user, "database" => &one.database,
                "application" => &one.application, "state" => &one.state,
                "age_ms" => one.age_ms, "query" => &one.query);
        }
        Ok(ended)
    }
}
