//! What Pacemaker's view means for a planned failover: pure verdicts, each with what to do.

use std::collections::BTreeSet;

use crate::{
    edge::pacemaker::PacemakerError,
    model::{
        colocation::Tie,
        crm_mon::{FenceEvent, PacemakerView},
        finding::Finding,
        location::{Location, Preference},
    },
};

/// The states of a DC that joins nobody and plans what changes.
const PLANS: [&str; 3] = ["S_IDLE", "S_POLICY_ENGINE", "S_TRANSITION_ENGINE"];

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

/// Whether Pacemaker and `published` name the same primary: who is asked to move it would refuse otherwise, with
/// clients held already.
pub(super) fn agreement(view: &PacemakerView, published: &str) -> Option<Finding> {
    let [promoted] = view.promoted()[..] else { return None };
    let words = format!(
        "Pacemaker has promoted {promoted}, but {published} is published; wait until they agree, or see the \
         log of `pgcm supervise` on {promoted}"
    );
    (promoted != published).then(|| Finding::refuse("primary-disagreement", words))
}

pub(super) fn cluster(view: &PacemakerView) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(fencing(view));
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

/// Whether a node that is lost would surely take no writes.
fn fencing(view: &PacemakerView) -> Option<Finding> {
    let words = if !view.fencing {
        "fencing is off (stonith-enabled=false): a lost node may go on taking writes; configure a \
         fencing device and run: crm_attribute --name stonith-enabled --update true"
            .to_owned()
    } else if view.fencing_devices == 0 {
        "no fencing device is started: unless a watchdog alone fences, a lost node may stay in doubt, \
         with nothing promoted in its place; configure a device, or look at: crm_mon -Afr -1"
            .to_owned()
    } else {
        // One that is under way says nothing yet.
        let last = view.fence_events.iter().find(|event| event.status != "pending")?;
        if last.status != "failed" {
            return None;
        }
        let FenceEvent { action, target, .. } = last;
        format!(
            "the last fencing failed ({action} of {target}), so the next may fail too; mend the device \
             and run: stonith_admin --cleanup --history {target}"
        )
    };
    Some(Finding::warn("fencing", words))
}

/// What Pacemaker was told to leave alone. It takes the constraint of a move there, and moves nothing.
pub(super) fn maintenance(view: &PacemakerView) -> Vec<Finding> {
    let resource = &view.resource;
    if view.maintenance {
        let words = "the cluster is in maintenance mode, so Pacemaker would move nothing; \
                     run: crm_attribute --name maintenance-mode --delete";
        return vec![Finding::refuse("maintenance", words)];
    }
    let promoted = view.promoted();
    let mut findings = Vec::new();
    for name in view.nodes.iter().filter(|node| node.maintenance).map(|node| &*node.name) {
        let remedy = format!("run: crm_attribute --node {name} --name maintenance --delete");
        // The target is judged as such; any other node takes no part in the move.
        findings.push(if promoted.contains(&name) {
            let why = "so Pacemaker would not demote Postgres there";
            Finding::refuse(
                "maintenance",
                format!("{name} is in maintenance mode, {why}; {remedy}"),
            )
        } else {
            Finding::warn("nodes", format!("{name} is in maintenance mode; {remedy}"))
        });
    }
    // Maintenance of a node shows at its copy as well, and so does a failure that blocks it.
    let in_maintenance = |name: &str| view.node(name).is_some_and(|node| node.maintenance);
    let unmanaged = view.instances.iter().filter(|copy| !copy.managed && !copy.blocked);
    let left_alone: Vec<&str> = unmanaged
        .filter_map(|copy| copy.node.as_deref())
        .filter(|name| !in_maintenance(name))
        .collect();
    if !left_alone.is_empty() {
        let words = format!(
            "{resource} is unmanaged on {}, so Pacemaker would not move it; run: crm resource manage \
             {resource} (or: pcs resource manage {resource})",
            left_alone.join(", ")
        );
        findings.push(Finding::refuse("maintenance", words));
    }
    for name in promoted {
        if view.instance(name).is_some_and(|copy| copy.blocked) {
            let words = format!(
                "{resource} is blocked on {name} by a failure, so Pacemaker would not move it; once \
                 the cause is known run: crm_resource --cleanup --node {name}"
            );
            findings.push(Finding::refuse("maintenance", words));
        }
    }
    findings
}

/// Whether the DC would begin a move at once. While its controllers elect or join, Pacemaker takes the constraint and
/// leaves it alone, for up to 20 s; clients would be held as long.
pub(super) fn dc(name: &str, state: Result<String, PacemakerError>) -> Option<Finding> {
    let does = match state {
        Ok(state) if PLANS.contains(&state.as_str()) => return None,
        Ok(state) => format!("is in state {state}"),
        Err(error) => format!("does not answer ({})", error.in_full()),
    };
    let words = format!(
        "the DC, {name}, {does}: Pacemaker would begin no move; try again in half a minute, and look at \
         its log on {name} if this stays"
    );
    Some(Finding::refuse("pacemaker", words))
}

/// Constraints that an earlier move left among `found`.
pub(super) fn leftovers(found: &[&Location]) -> Vec<Finding> {
    let leftovers = found.iter().filter(|location| location.is_leftover());
    leftovers
        .map(|location| {
            // This attempt replaces pgcm's own; somebody else's works against it.
            let message = pins(&location.id);
            if location.is_ours() {
                Finding::warn("constraints", message)
            } else {
                Finding::refuse("constraints", message)
            }
        })
        .collect()
}

/// What the constraint `id` of an earlier move does, and what to do.
pub(super) fn pins(id: &str) -> String {
    format!(
        "constraint {id} of an earlier move is still there and would pin the primary; \
         run: cibadmin --delete --xpath \"//rsc_location[@id='{id}']\""
    )
}

/// What else has to run, or must not, where Postgres is promoted: after a crash it may keep Pacemaker from
/// promoting anybody.
pub(super) fn ties(found: &[Tie]) -> Vec<Finding> {
    let told = |Tie { id, other, together }: &Tie| {
        let where_else = if *together { "can run" } else { "does not run" };
        let message = format!(
            "constraint {id} allows a primary only where {other} {where_else}: once that is nowhere, nobody is promoted; \
             unless you want that, give it a finite score, or influence=false where {other} is the one that depends"
        );
        Finding::warn("constraints", message)
    };
    found.iter().map(told).collect()
}

/// Of the constraints `found`, which count now, those that somebody configured and that work against a move to `target`: Pacemaker would not begin it, or move
/// the role away again as soon as the one of the move goes, while nobody holds clients.
pub(super) fn preferences(view: &PacemakerView, found: &[&Location], target: &str) -> Vec<Finding> {
    let said: Vec<(&str, &Preference)> = found
        .iter()
        .filter(|location| !location.is_leftover())
        .flat_map(|location| location.promoted.iter().map(|said| (location.id.as_str(), said)))
        .collect();
    let total = |node: &str| Preference::total(said.iter().map(|(_, said)| *said), node);
    let (lead, own) = (view.lead(target), total(target));
    let wins = |node: &str| {
        let other = total(node);
        node != target && (other == i64::MAX || other.saturating_sub(own) >= lead)
    };
    let rivals: BTreeSet<&str> = said
        .iter()
        .map(|(_, said)| said.node.as_str())
        .chain(view.promoted())
        .filter(|node| wins(node))
        .collect();
    let against = |said: &Preference| {
        said.node == target && said.score < 0
            || rivals.contains(said.node.as_str()) && said.score > 0
    };
    let in_the_way = said.iter().filter(|(_, said)| !rivals.is_empty() && against(said));
    in_the_way
        .map(|(id, Preference { node, .. })| {
            let message = format!(
                "constraint {id}, about the primary on {node}, would keep it from {target}: Pacemaker would not move it, or \
                 move it back; lower its score, or run: cibadmin --delete --xpath \"//rsc_location[@id='{id}']\""
            );
            Finding::refuse("constraints", message)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        crm_mon::Instance,
        finding::Severity::{self, Refuse, Warn},
    };

    const HEALTHY: &str = include_str!("../../../tests/data/crm_mon/healthy/pgcm-trixie.xml");

    /// A healthy cluster, whose primary is pg01, after `edit`.
    fn edited(edit: impl FnOnce(&mut PacemakerView)) -> PacemakerView {
        let mut view = PacemakerView::parse(HEALTHY, "Postgresql").expect("recorded");
        edit(&mut view);
        view
    }

    fn copy<'a>(view: &'a mut PacemakerView, node: &str) -> &'a mut Instance {
        let here = |copy: &&mut Instance| copy.node.as_deref() == Some(node);
        view.instances.iter_mut().find(here).expect("a copy on every node")
    }

    /// The only thing that `maintenance` finds.
    fn left_alone(view: &PacemakerView) -> (String, Severity, String) {
        let found = maintenance(view);
        let [finding] = &found[..] else { panic!("{found:?}") };
        (finding.check.clone(), finding.severity, finding.message.clone())
    }

    #[test]
    fn what_pacemaker_would_leave_where_it_is_refuses_and_names_what_to_run() {
        assert_eq!(maintenance(&edited(|_| {})), []);
        let told = |words: &str| ("maintenance".to_owned(), Refuse, words.to_owned());
        // A node's maintenance shows at its copy too, and is told once.
        let view = edited(|view| {
            view.nodes[0].maintenance = true;
            copy(view, "pg01").managed = false;
        });
        let words = "pg01 is in maintenance mode, so Pacemaker would not demote Postgres there; run: \
                     crm_attribute --node pg01 --name maintenance --delete";
        assert_eq!(left_alone(&view), told(words));
        let view = edited(|view| view.instances.iter_mut().for_each(|copy| copy.managed = false));
        let words = "Postgresql is unmanaged on pg03, pg01, pg02, so Pacemaker would not move it; run: \
                     crm resource manage Postgresql (or: pcs resource manage Postgresql)";
        assert_eq!(left_alone(&view), told(words));
        let block = |copy: &mut Instance| (copy.managed, copy.blocked) = (false, true);
        let view = edited(|view| block(copy(view, "pg01")));
        let words = "Postgresql is blocked on pg01 by a failure, so Pacemaker would not move it; once \
                     the cause is known run: crm_resource --cleanup --node pg01";
        assert_eq!(left_alone(&view), told(words));
        // Neither matters where the primary neither is nor moves to.
        let view = edited(|view| block(copy(view, "pg03")));
        assert_eq!(maintenance(&view), []);
        let view = edited(|view| {
            view.nodes[2].maintenance = true;
            copy(view, "pg03").managed = false;
        });
        let (check, severity, words) = left_alone(&view);
        assert_eq!((check.as_str(), severity), ("nodes", Warn));
        assert!(words.ends_with("run: crm_attribute --node pg03 --name maintenance --delete"));
    }

    #[test]
    fn a_dc_that_elects_joins_or_is_silent_refuses() {
        for plans in PLANS {
            assert_eq!(dc("pg01", Ok(plans.to_owned())), None, "{plans}");
        }
        let failed = PacemakerError::Exit { program: "crmadmin", status: 124, reason: "-".into() };
        for (state, words) in [
            (Ok("S_INTEGRATION".to_owned()), "the DC, pg01, is in state S_INTEGRATION: "),
            (Ok("S_NOT_DC".to_owned()), "the DC, pg01, is in state S_NOT_DC: "),
            (Err(failed), "the DC, pg01, does not answer (`crmadmin` ended with status 124"),
        ] {
            let found = dc("pg01", state).expect(words);
            assert_eq!((found.check.as_str(), found.severity), ("pacemaker", Refuse));
            assert!(found.message.starts_with(words), "{}", found.message);
        }
    }

    #[test]
    fn fencing_that_is_off_without_a_device_or_has_failed_last_warns() {
        assert_eq!(fencing(&edited(|_| {})), None);
        let event = |status: &str| FenceEvent {
            target: "pg03".to_owned(),
            action: "off".to_owned(),
            status: status.to_owned(),
        };
        let after = |events: &[&str]| {
            let events = events.iter().map(|status| event(status)).collect();
            fencing(&edited(|view| view.fence_events = events))
        };
        for quiet in [&["success", "failed"][..], &["pending", "success"], &["pending"]] {
            assert_eq!(after(quiet), None, "{quiet:?}");
        }
        let off = fencing(&edited(|view| (view.fencing, view.fencing_devices) = (false, 0)));
        let none = fencing(&edited(|view| view.fencing_devices = 0));
        for (found, words) in [
            (off, "run: crm_attribute --name stonith-enabled --update true"),
            (none, "no fencing device is started"),
            (after(&["failed", "success"]), "run: stonith_admin --cleanup --history pg03"),
            (after(&["pending", "failed"]), "the last fencing failed (off of pg03)"),
        ] {
            let finding = found.expect(words);
            assert_eq!((finding.check.as_str(), finding.severity), ("fencing", Warn));
            assert!(finding.message.contains(words), "{}", finding.message);
        }
    }

    #[test]
    fn what_works_against_the_move_refuses() {
        let location = |id: &str, said: &[(&str, i64)]| Location {
            id: id.to_owned(),
            resource: "msPostgresql".to_owned(),
            until: None,
            promoted: said
                .iter()
                .map(|&(node, score)| Preference { node: node.to_owned(), score })
                .collect(),
        };
        let told = |location: Location| {
            let found = preferences(&edited(|_| {}), &[&location], "pg02");
            found.into_iter().map(|finding| finding.message).collect::<String>()
        };
        // pg01 has 1000, pg02 100.
        let (most, least) = (i64::MAX, i64::MIN);
        for said in [
            &[("pg01", 900)][..],
            &[("pg03", most)],
            &[("pg02", least)],
            &[("pg02", -900)],
            &[("pg01", 500), ("pg01", 400)],
            &[("pg01", most), ("pg02", most)],
        ] {
            let words = told(location("mine", said));
            assert!(words.contains("would keep it from pg02"), "{said:?}: {words}");
            assert!(words.contains("[@id='mine']"), "{said:?}: {words}");
        }
        for said in [
            &[("pg01", 899)][..],
            &[("pg02", most)],
            &[("pg01", least)],
            &[("pg02", -5)],
            &[("pg01", 5000), ("pg02", 5000)],
        ] {
            assert_eq!(told(location("mine", said)), "", "{said:?}");
        }
        assert_eq!(told(location("pgcm-move-msPostgresql", &[("pg01", most)])), "");
    }

    #[test]
    fn a_ban_by_hand_refuses_and_a_leftover_of_ours_warns() {
        let location = |id: &str| Location {
            id: id.to_owned(),
            resource: "msPostgresql".to_owned(),
            until: None,
            promoted: Vec::new(),
        };
        let found = leftovers(&[
            &location("cli-ban-msPostgresql-on-pg01"),
            &location("pgcm-move-msPostgresql"),
            &location("prefer-big-machines"),
        ]);
        let severities: Vec<_> = found.iter().map(|finding| finding.severity).collect();
        assert_eq!(severities, [Severity::Refuse, Severity::Warn]);
    }
}
