//! A transaction that was ended because it held up a pause.

use std::fmt;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminated {
    /// Process of the Postgres backend.
    pub pid: i32,
    pub user: String,
    pub database: String,
    pub application: String,
    /// `active`, `idle in transaction`, …
    pub state: String,
    /// How long the transaction had been open.
    pub age_ms: u64,
    /// The last statement, cut to 100 characters.
    pub query: String,
}

impl fmt::Display for Terminated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { pid, user, database, application, state, age_ms, query } = self;
        write!(
            f,
            "PID {pid} ({user} on {database}, {application:?}, {state}, open for {age_ms} ms): {query}"
        )
    }
}
