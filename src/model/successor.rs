//! Which standby the primary moves to in a planned failover.

use super::{
    cluster::Standby,
    crm_mon::{PacemakerView, Role},
};

/// Why there is no standby to move to. Each says what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoSuccessor {
    #[error("no standby is synchronous and streaming{}; wait for one, or find out what holds them back", seen(.standbys))]
    NoneSynchronous { standbys: Vec<Standby> },
    #[error("{node} is the primary already; name one of its standbys")]
    AlreadyPrimary { node: String },
    #[error("Pacemaker knows no node {node}; its nodes are {}", .known.join(", "))]
    Unknown { node: String, known: Vec<String> },
    #[error("{node} is offline in Pacemaker; start it, or name another node")]
    Offline { node: String },
    #[error("{node} is unclean: Pacemaker waits for its fencing; name another node")]
    Unclean { node: String },
    #[error(
        "{node} is in standby mode; run: crm node online {node} (or: pcs node unstandby {node})"
    )]
    InStandbyMode { node: String },
    #[error(
        "{node} is in maintenance mode; run: crm node ready {node} (or: pcs node unmaintenance {node})"
    )]
    InMaintenance { node: String },
    #[error("Postgres does not run as a standby on {node}; look at: crm_mon -Afr -1")]
    NotRunning { node: String },
    #[error(
        "the resource has failed on {node}; find out why, then run: crm_resource --cleanup --node {node}"
    )]
    Failed { node: String },
    #[error(
        "{node} is banned from the promoted role by the constraint {constraint}; run: cibadmin --delete --xpath \"//rsc_location[@id='{constraint}']\""
    )]
    Banned { node: String, constraint: String },
    #[error("{node} is not connected to the primary; its application_name must be its node name")]
    NotConnected { node: String },
    #[error("{node} is in state {state}, not streaming; wait until it has caught up")]
    NotStreaming { node: String, state: String },
    #[error(
        "{node} is {sync_state}, not synchronous, and may lack commits{}",
        synchronous.as_ref().map(|node| format!("; name {node}, or nothing")).unwrap_or_default()
    )]
    NotSynchronous { node: String, sync_state: String, synchronous: Option<String> },
}

fn seen(standbys: &[Standby]) -> String {
    if standbys.is_empty() {
        return " (none is connected)".to_owned();
    }
    let one = |s: &Standby| format!("{} is {}, {}", s.name, s.state, s.sync_state);
    format!(" ({})", standbys.iter().map(one).collect::<Vec<_>>().join("; "))
}

/// Chooses the standby that becomes primary: `wanted` if it qualifies, else the synchronous one,
/// of several the one with the least to replay.
///
/// `standbys` are those that the primary sees.
///
/// # Errors
/// [`NoSuccessor`]: why not, and what to do.
pub fn choose<'a>(
    view: &PacemakerView,
    primary: &str,
    standbys: &'a [Standby],
    wanted: Option<&str>,
) -> Result<&'a Standby, NoSuccessor> {
    if let Some(node) = wanted {
        return qualifies(view, primary, standbys, node);
    }
    let mut synchronous: Vec<_> = standbys.iter().filter(|s| s.is_synchronous()).collect();
    synchronous.sort_by_key(|standby| standby.rank());
    let mut last = None;
    for standby in synchronous {
        match qualifies(view, primary, standbys, &standby.name) {
            Ok(standby) => return Ok(standby),
            Err(why) => last = Some(why),
        }
    }
    Err(last.unwrap_or_else(|| NoSuccessor::NoneSynchronous { standbys: standbys.to_vec() }))
}

fn qualifies<'a>(
    view: &PacemakerView,
    primary: &str,
    standbys: &'a [Standby],
    name: &str,
) -> Result<&'a Standby, NoSuccessor> {
    let node = name.to_owned();
    if name == primary {
        return Err(NoSuccessor::AlreadyPrimary { node });
    }
    let Some(member) = view.node(name) else {
        let known = view.nodes.iter().map(|node| node.name.clone()).collect();
        return Err(NoSuccessor::Unknown { node, known });
    };
    let instance = view.instance(name);
    let ban = view.bans.iter().find(|ban| ban.node == name);
    let failed = instance.is_some_and(|instance| instance.failed || instance.blocked);
    let obstacles = [
        (member.unclean, NoSuccessor::Unclean { node: node.clone() }),
        (!member.online || member.pending, NoSuccessor::Offline { node: node.clone() }),
        (member.standby, NoSuccessor::InStandbyMode { node: node.clone() }),
        (member.maintenance, NoSuccessor::InMaintenance { node: node.clone() }),
        (failed, NoSuccessor::Failed { node: node.clone() }),
        (
            instance.is_none_or(|instance| instance.role != Role::Unpromoted),
            NoSuccessor::NotRunning { node: node.clone() },
        ),
    ];
    if let Some((_, why)) = obstacles.into_iter().find(|(stands, _)| *stands) {
        return Err(why);
    }
    if let Some(ban) = ban {
        return Err(NoSuccessor::Banned { node, constraint: ban.id.clone() });
    }
    let Some(standby) = standbys.iter().find(|standby| standby.name == name) else {
        return Err(NoSuccessor::NotConnected { node });
    };
    if standby.state != "streaming" {
        return Err(NoSuccessor::NotStreaming { node, state: standby.state.clone() });
    }
    if !standby.is_synchronous() {
        let synchronous = standbys.iter().find(|s| s.is_synchronous()).map(|s| s.name.clone());
        let sync_state = standby.sync_state.clone();
        return Err(NoSuccessor::NotSynchronous { node, sync_state, synchronous });
    }
    Ok(standby)
}
