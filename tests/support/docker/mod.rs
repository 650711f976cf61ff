//! The Docker cluster and its clients, for every test binary that drives a whole cluster.
#![allow(dead_code, reason = "each test binary uses a part of this")]

pub(crate) mod cluster;
pub(crate) mod load;
