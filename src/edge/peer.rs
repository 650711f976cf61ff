//! gRPC to and from other agents; the generated code lives here.

mod client;

pub use client::{Peer, PeerError, PeerOptions};

/// The generated messages, client and server of `proto/pgcm/v1/agent.proto`.
#[expect(clippy::too_many_lines, reason = "generated code")]
pub mod pb {
    tonic::include_proto!("pgcm.v1");

    /// For server reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent_descriptor.bin"));
}

/// Metadata key that tells apart what one status code stands for.
pub const REASON: &str = "pgcm-reason";
/// The call's fencing token is lower than one that the agent has seen.
pub const STALE_TOKEN: &str = "stale-token";
/// Open transactions did not end in time; traffic flows again.
pub const BUSY: &str = "busy";
/// Another attempt holds the pause.
pub const TAKEN: &str = "taken";
/// The agent has no part for such a call.
pub const NO_PART: &str = "no-part";
