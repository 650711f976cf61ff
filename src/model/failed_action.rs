//! What the resource agent says of an action that failed, whole: Pacemaker keeps 128 bytes of it.

use serde::{Deserialize, Serialize};

use super::crm_mon::{PacemakerView, Role};

/// A failed action of the resource that runs Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedAction {
    pub node: String,
    /// `start`, `monitor`, …
    pub action: String,
    /// What the agent said, or how Pacemaker calls its code.
    pub reason: String,
    /// What a person can run, in order.
    pub commands: Vec<String>,
}

impl FailedAction {
    /// Whether `other` is the same failure, perhaps cut short.
    fn is_as_told(&self, other: &Self) -> bool {
        self.node == other.node && self.action == other.action
    }

    /// Lines for a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{}: {} failed: {}", self.node, self.action, self.reason);
        for command in &self.commands {
            text.push_str("\n    ");
            text.push_str(command);
        }
        text
    }
}

/// What Pacemaker has not got over: failures of nodes where Postgres is not up again since, changes of
/// role that did not come about since, and stops. `note` is what the resource agent of node `own` said
/// last.
pub fn current(view: &PacemakerView, own: &str, note: Option<FailedAction>) -> Vec<FailedAction> {
    let role_of = |node: &str| {
        let instance = view.instance(node).filter(|instance| !instance.failed);
        instance.map(|instance| &instance.role)
    };
    let told = view.failures.iter().filter(|failure| {
        let role = role_of(&failure.node);
        let is_over = match failure.task.as_str() {
            "promote" => role == Some(&Role::Promoted),
            "demote" => role == Some(&Role::Unpromoted),
            "stop" => false,
            _ => matches!(role, Some(Role::Promoted | Role::Unpromoted)),
        };
        !is_over
    });
    let told = told.map(|failure| FailedAction {
        node: failure.node.clone(),
        action: failure.task.clone(),
        reason: [&failure.reason, &failure.status]
            .into_iter()
            .find(|words| !words.is_empty())
            .cloned()
            .unwrap_or_default(),
        commands: Vec::new(),
    });
    let mut told = merged(told);
    if let Some(mut note) = note {
        own.clone_into(&mut note.node);
        if let Some(known) = told.iter_mut().find(|known| known.is_as_told(&note)) {
            *known = note;
        }
    }
    told
}

/// One of each failure that the agents of several nodes tell of. The node itself knows all of its
/// own, the others what Pacemaker kept; so what comes with commands, or is longer, wins.
pub fn merged(told: impl IntoIterator<Item = FailedAction>) -> Vec<FailedAction> {
    let mut merged: Vec<FailedAction> = Vec::new();
    for failure in told {
        let weight = |of: &FailedAction| (of.commands.len(), of.reason.len());
        match merged.iter_mut().find(|known| known.is_as_told(&failure)) {
            Some(known) if weight(known) < weight(&failure) => *known = failure,
            Some(_) => {}
            None => merged.push(failure),
        }
    }
    merged.sort_by(|a, b| (&a.node, &a.action).cmp(&(&b.node, &b.action)));
    merged
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::crm_mon::Failure;

    fn failure(node: &str, reason: &str, commands: &[&str]) -> FailedAction {
        FailedAction {
            node: node.to_owned(),
            action: "start".to_owned(),
            reason: reason.to_owned(),
            commands: commands.iter().map(|&command| command.to_owned()).collect(),
        }
    }

    #[test]
    fn what_came_about_after_all_is_no_failure_any_more() {
        const HEALTHY: &str = include_str!("../../tests/data/crm_mon/healthy/pgsql-trixie.xml");
        let healthy = PacemakerView::parse(HEALTHY, "Postgresql").expect("a view");
        // pg01 is promoted, pg02 is not.
        for (node, task, is_told) in [
            ("pg01", "promote", false),
            ("pg02", "promote", true),
            ("pg01", "demote", true),
            ("pg02", "demote", false),
            ("pg01", "stop", true),
            ("pg02", "start", false),
            ("pg09", "start", true),
        ] {
            let failure = Failure {
                node: node.to_owned(),
                task: task.to_owned(),
                status: "Error occurred".to_owned(),
                reason: String::new(),
            };
            let view = PacemakerView { failures: vec![failure], ..healthy.clone() };
            assert_eq!(current(&view, "pg03", None).len(), usize::from(is_told), "{node} {task}");
        }
    }

    #[test]
    fn the_node_itself_is_believed_over_what_others_heard() {
        let own = failure("pg01", "diverged from 10.0.0.2", &["pg_rewind"]);
        let heard = failure("pg01", "diverged from 1", &[]);
        for told in [[own.clone(), heard.clone()], [heard.clone(), own.clone()]] {
            assert_eq!(merged(told), std::slice::from_ref(&own));
        }
        let other = failure("pg02", "full", &[]);
        assert_eq!(merged([other.clone(), own.clone()]), [own.clone(), other]);
        assert_eq!(own.text(), "pg01: start failed: diverged from 10.0.0.2\n    pg_rewind");
    }
}
