//! `meta-data`: the agent describes itself.

use crate::model::agent::meta_data;

/// The XML document for Pacemaker and for people.
pub(super) fn document() -> String {
    meta_data::xml(env!("CARGO_PKG_VERSION"))
}
