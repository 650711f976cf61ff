//! Highly available Postgres under Corosync and Pacemaker without a floating IP, and planned
//! failovers that clients feel only as latency.
//!
//! Modules in reading order: what is known and decided ([`model`]), how the outside is reached
//! ([`edge`]), the loops and the failover ([`work`]), and how it is all wired ([`command`]).

pub mod cli;
pub mod command;
pub mod config;
pub mod edge;
pub mod error;
pub mod exit;
pub mod model;
pub mod telemetry;
pub mod work;
