//! The outside world: one file per system, each call with a limit.

pub mod address;
pub mod agent_sql;
pub mod attributes;
pub mod clock;
pub mod command;
pub mod data_directory;
pub mod descendants;
pub mod disk;
pub mod etcd;
pub mod failure_note;
pub mod files;
pub mod identity;
pub mod listeners;
pub mod lock;
pub mod pacemaker;
pub mod peer;
pub mod pgbouncer;
pub mod poke;
pub mod postgres;
pub mod postmaster;
pub mod rewind_files;
pub mod server_log;
pub mod signals;
pub mod slot_sql;
pub mod streams;
pub mod tail_files;
