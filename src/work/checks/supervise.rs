//! STUB (failover branch): to be replaced whole by the owner's file.

use super::Terms;
use crate::model::{finding::Finding, health::Component};

pub struct SuperviseChecks;

impl SuperviseChecks {
    pub async fn findings(&self, _terms: &Terms) -> Vec<Finding> {
        Vec::new()
    }

    pub async fn health(&self) -> Vec<Component> {
        Vec::new()
    }
}
