//! The loops, the gRPC server and the failover. Async, but no protocol is spoken here.

pub mod api;
pub mod checks;
pub mod consoles;
pub mod failover;
pub mod fence;
pub mod follow;
pub mod history;
pub mod join;
pub mod mover;
pub mod pauser;
pub mod proxy;
pub mod publish;
pub mod register;
pub mod reload;
pub mod render;
pub mod resource_agent;
pub mod shutdown;
pub mod web;
pub mod with_lock;
