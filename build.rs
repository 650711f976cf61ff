//! Compiles `proto/`, nothing else.

use std::{env, path::PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    tonic_prost_build::configure()
        .file_descriptor_set_path(out.join("agent_descriptor.bin"))
        .compile_protos(&["proto/pgcm/v1/agent.proto"], &["proto"])?;
    Ok(())
}
