//! Facts and decisions. Nothing here does IO, reads a clock, awaits or logs.

pub mod agent;
pub mod attempt;
pub mod cluster;
pub mod console;
pub mod crm_mon;
pub mod failed_action;
pub mod fence;
pub mod finding;
pub mod health;
pub mod history;
pub mod last_failover;
pub mod location;
pub mod pause;
pub mod pgbouncer_ini;
pub mod primary;
pub mod problem;
pub mod registration;
pub mod span;
pub mod status;
pub mod status_check;
pub mod successor;
pub mod table;
pub mod template;
pub mod terminated;
pub mod wanted;
pub mod xml;
