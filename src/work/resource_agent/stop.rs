//! `stop`: nothing of the data directory runs any more.

use super::{
    context::{Agent, Failure},
    shutdown,
};
use crate::{
    edge::command::Run,
    model::agent::{claim::Status, code::OcfCode},
};

/// Stops the server, whatever it is, and gives up the right to be promoted.
///
/// What the data is worth stays in the CIB: a primary that was stopped still has the newest data.
pub(super) async fn run<R: Run + Clone>(agent: &Agent<R>) -> Result<OcfCode, Failure> {
    let (_, pid) = agent.condition_from_files().await?;
    let ended = async {
        match pid {
            Some(pid) => shutdown::end(agent, pid, agent.left() * 2 / 3).await,
            None => shutdown::end_orphans(agent).await,
        }
    };
    let attributes = async {
        let names = agent.names();
        let (score, status) = tokio::join!(
            agent.attributes.delete(&agent.node, &names.score),
            agent.attributes.set(&agent.node, &names.status, Status::Stopped.as_str()),
        );
        agent.tolerate("promotion score", score);
        agent.tolerate("status", status);
    };
    let (ended, ()) = tokio::join!(ended, attributes);
    ended?;
    let alone = agent.alone_file();
    // A count of lonely monitors belongs to one run of the server.
    let _ = std::fs::remove_file(alone);
    agent.poke();
    Ok(OcfCode::Success)
}
