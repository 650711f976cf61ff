//! What Pacemaker's view means for a planned failover: pure verdicts, each with what to do.

use crate::{
    edge::pacemaker::PacemakerError,
    model::{crm_mon::PacemakerView, finding::Finding, location::Location},
};

pub(super) fn roles(view: &PacemakerView) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !view.quorum {
        findings.push(Finding::refuse(
            "quorum",
            "this side of the cluster has no quorum; bring back enough nodes first",
        ));
    }
    match view.promoted()[..] {
        [_] => {}
        [] => findings
            .push(Finding::refuse("primary", "no node is promoted; look at: crm_mon -Afr -1")),
        ref nodes => findings.push(Finding::refuse(
            "primary",
            format!("{} are promoted at once; stop all but one of them", nodes.join(" and ")),
        )),
    }
    findings
}

pub(super) fn cluster(view: &PacemakerView) -> Vec<Finding> {
    let mut findings = Vec::new();
    if view.maintenance {
        findings.push(Finding::refuse(
            "maintenance",
            "the cluster is in maintenance mode, so Pacemaker would move nothing; \
             run: crm_attribute --name maintenance-mode --delete",
        ));
    }
    if !view.fencing {
        findings.push(Finding::warn(
            "fencing",
            "fencing is off (stonith-enabled=false): a lost node may go on taking writes; configure a \
             fencing device and run: crm_attribute --name stonith-enabled --update true",
        ));
    }
    for node in view.nodes.iter().filter(|node| node.standby || !node.online) {
        let name = &node.name;
        let words = if node.online {
            format!("{name} is in standby mode; run: crm_standby --node {name} --delete")
        } else {
            format!("{name} is offline; start it, or Corosync and Pacemaker there")
        };
        findings.push(Finding::warn("nodes", words));
    }
    for fails in &view.fail_counts {
        findings.push(Finding::warn(
            "fail-count",
            format!(
                "the resource failed on {node} before ({count} times); \
                 once the cause is known run: crm_resource --cleanup --node {node}",
                node = fails.node,
                count = fails.count
            ),
        ));
    }
    findings
}

pub(super) fn locations(found: Result<Vec<Location>, PacemakerError>) -> Vec<Finding> {
    let found = match found {
        Ok(found) => found,
        Err(error) => return vec![Finding::refuse("constraints", error.in_full())],
    };
    let leftovers = found.iter().filter(|location| location.is_leftover());
    leftovers
        .map(|location| {
            let id = &location.id;
            let message = format!(
                "constraint {id} of an earlier move is still there and would pin the primary; \
                 run: cibadmin --delete --xpath \"//rsc_location[@id='{id}']\""
            );
            // This attempt replaces pgcm's own; somebody else's works against it.
            if location.is_ours() {
                Finding::warn("constraints", message)
            } else {
                Finding::refuse("constraints", message)
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::finding::Severity;

    #[test]
    fn a_ban_by_hand_refuses_and_a_leftover_of_ours_warns() {
        let location = |id: &str| Location {
            id: id.to_owned(),
            resource: "msPostgresql".to_owned(),
            until: None,
        };
        let found = locations(Ok(vec![
            location("cli-ban-msPostgresql-on-pg01"),
            location("pgcm-move-msPostgresql"),
            location("prefer-big-machines"),
        ]));
        let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Refuse, Severity::Warn]);
    }
}
