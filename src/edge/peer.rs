//! gRPC to and from other agents; the generated code lives here.

/// The generated messages, client and server of `proto/pgcm/v1/agent.proto`.
#[expect(clippy::too_many_lines, reason = "generated code")]
pub mod pb {
    tonic::include_proto!("pgcm.v1");

    /// For server reflection.
    pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/agent_descriptor.bin"));
}
