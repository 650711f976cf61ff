//! The resource agent's facts and decisions.
//!
//! The environment becomes [`parameters`], the cluster's XML ([`cib_xml`]) becomes [`cib`], the server's files
//! become [`control_data`] and [`pid_file`]. From these follow the promotion scores ([`election`]),
//! the steps that keep the synchronous standbys ([`sync_plan`]) and the replication slots ([`slots`]),
//! who is elected among a quorum ([`quorum_election`]), whether a node may come back as it is
//! ([`rejoin`], [`tail`]), why its server ended ([`server_log`]), and what is wrong with its settings
//! ([`requirements`]).

pub mod backup;
pub mod cib;
pub mod cib_xml;
pub mod claim;
pub mod code;
pub mod condition;
pub mod conninfo;
pub mod control_data;
pub mod election;
pub mod history;
pub mod lsn;
pub mod meta_data;
pub mod parameters;
pub mod pid_file;
pub mod quorum;
pub mod quorum_election;
mod quorum_plan;
pub mod rejoin;
pub mod requirements;
pub mod rewind;
pub mod server_log;
pub mod settings;
pub mod slots;
pub mod sync_plan;
pub mod tail;
