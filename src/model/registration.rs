//! Who can be asked: the value of `/agents/<host>/<supervise|proxy>`.

use std::{fmt, net::SocketAddr};

use serde::{Deserialize, Serialize};

/// Which of the two daemons an agent is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentKind {
    Supervise,
    Proxy,
}

impl fmt::Display for AgentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Supervise => "supervise",
            Self::Proxy => "proxy",
        })
    }
}

/// An agent and where its gRPC API is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    pub host: String,
    pub kind: AgentKind,
    pub api: SocketAddr,
    /// Version of the agent's pgcm.
    pub version: String,
}

impl Registration {
    /// Key below the namespace.
    pub fn key(&self) -> String {
        format!("{AGENTS}{}/{}", self.host, self.kind)
    }
}

/// Prefix of all registrations, below the namespace.
pub const AGENTS: &str = "/agents/";
