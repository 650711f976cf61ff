use std::{fs, path::PathBuf};

use proptest::prelude::*;

use super::*;
use crate::model::{
    cluster::Standby,
    failed_action::{self, FailedAction},
    primary::{Decision, Hold, LocalFacts, decide},
    successor::{self, NoSuccessor},
};

fn data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/crm_mon")
}

/// Every recording of a situation: its name and text.
fn recordings(situation: &str) -> Vec<(String, String)> {
    let dir = data().join(situation);
    let mut found: Vec<_> = fs::read_dir(&dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read_to_string(&path).unwrap()))
        .collect();
    found.sort();
    assert!(!found.is_empty(), "nothing was recorded of {situation}");
    found
}

fn views(situation: &str) -> Vec<(String, PacemakerView)> {
    let parse = |(name, text): (String, String)| {
        let view = PacemakerView::parse(&text, "Postgresql");
        (name.clone(), view.unwrap_or_else(|error| panic!("{name}: {error:?}")))
    };
    recordings(situation).into_iter().map(parse).collect()
}

fn standby(name: &str, sync_state: &str) -> Standby {
    Standby {
        name: name.to_owned(),
        address: None,
        state: "streaming".to_owned(),
        sync_state: sync_state.to_owned(),
        replay_lag_bytes: 0,
    }
}

fn primary_facts() -> LocalFacts {
    LocalFacts {
        in_recovery: false,
        writable: true,
        timeline: 3,
        system_identifier: "7".to_owned(),
        standbys: Vec::new(),
    }
}

/// What `node` decides when its Postgres claims to be a writable primary.
fn decision(view: &PacemakerView, node: &str) -> Decision {
    decide(view, node, "10.0.0.9".parse().unwrap(), Ok(&primary_facts()), false)
}

#[test]
fn without_its_constraint_the_role_leaves_for_a_node_online_of_as_high_a_score() {
    for (name, mut view) in views("healthy") {
        let promoted = view.promoted()[0].to_owned();
        let own = view.nodes.iter().position(|node| node.name == promoted).unwrap();
        let other = (own + 1) % view.nodes.len();
        let rival = view.nodes[other].name.clone();
        let attribute = || "master-Postgresql".to_owned();
        assert_eq!(view.without_constraint(), Without::Stays, "{name}");
        let as_high = view.nodes[own].attributes[&attribute()].clone();
        let leaves = Without::Leaves { promoted, rival };
        for score in [as_high.as_str(), "INFINITY"] {
            view.nodes[other].attributes.insert(attribute(), score.to_owned());
            assert_eq!(view.without_constraint(), leaves, "{name}: {score}");
        }
        view.nodes[other].online = false;
        assert_eq!(view.without_constraint(), Without::Stays, "{name}");
        view.nodes[other].online = true;
        view.nodes[own].attributes.remove(&attribute());
        assert_eq!(view.without_constraint(), leaves, "{name}: no score yet");
        view.nodes.iter_mut().for_each(|node| node.attributes.clear());
        assert_eq!(view.without_constraint(), Without::Stays, "{name}: no scores");
        view.instances[0].role = Role::Other("Promoting".to_owned());
        let node = view.instances[0].node.clone().expect("a node");
        assert_eq!(view.without_constraint(), Without::Promoting { node }, "{name}");
    }
    for (name, view) in views("mid-switchover") {
        assert_eq!(view.without_constraint(), Without::Nobody, "{name}: demoting");
    }
}

#[derive(Debug, PartialEq)]
enum Expected {
    OnePrimary,
    NoPrimary,
    NoQuorum,
    NoController,
}

#[test]
fn each_situation_leads_to_its_decision_on_every_release_and_agent() {
    use Expected::*;
    let table = [
        ("healthy", OnePrimary),
        ("legacy", OnePrimary),
        ("maintenance", OnePrimary),
        ("node-in-standby", OnePrimary),
        ("failed-actions", OnePrimary),
        ("standby-lost", OnePrimary),
        ("leftover-ban", OnePrimary),
        ("fenced-primary", OnePrimary),
        ("primary-unclean", OnePrimary),
        ("mid-switchover", NoPrimary),
        ("promoting", NoPrimary),
        ("no-quorum-minority", NoQuorum),
        ("no-quorum-majority", OnePrimary),
        ("no-dc", NoController),
    ];
    for (situation, expected) in table {
        for (name, view) in views(situation) {
            for node in ["pg01", "pg02", "pg03"] {
                let promoted = view.promoted() == [node];
                let found = match decision(&view, node) {
                    Decision::Publish(published) => {
                        assert!(promoted, "{name}: {node} published without being promoted");
                        assert_eq!(published.primary.timeline, 3);
                        OnePrimary
                    }
                    Decision::Hold(Hold::OtherNode { .. }) => OnePrimary,
                    Decision::Hold(Hold::NoPrimary) => NoPrimary,
                    Decision::Hold(Hold::NoQuorum) => NoQuorum,
                    Decision::Hold(Hold::NoController) => NoController,
                    Decision::Hold(other) => panic!("{name}: {other}"),
                };
                assert_eq!(found, expected, "{name} on {node}");
            }
        }
    }
}

#[test]
fn a_healthy_cluster_is_read_in_full() {
    for (name, view) in views("healthy").into_iter().chain(views("legacy")) {
        assert!(view.quorum && view.fencing && !view.maintenance, "{name}");
        // The playground has one for all nodes, the other clusters one for each.
        let devices = if name.contains("/pgcm-") { 1 } else { 3 };
        assert_eq!(view.fencing_devices, devices, "{name}");
        assert_eq!(view.nodes.len(), 3, "{name}");
        assert!(view.nodes.iter().all(|node| node.online && !node.unclean), "{name}");
        assert_eq!(view.clone.as_deref(), Some("msPostgresql"), "{name}");
        assert!(view.agent.starts_with("ocf:"), "{name}: {}", view.agent);
        assert_eq!((view.promoted().len(), view.instances.len()), (1, 3), "{name}");
        assert!(view.instances.iter().all(|instance| instance.managed), "{name}");
        assert!(view.bans.is_empty(), "{name}: bans of other resources are none of ours");
        assert_eq!(view.promoted_role_name(), "Promoted", "{name}");
    }
}

#[test]
fn a_fencing_device_counts_where_it_is_started_be_it_cloned_or_not() {
    for (name, text) in recordings("healthy").into_iter().chain(recordings("legacy")) {
        let devices =
            |text: &str| PacemakerView::parse(text, "Postgresql").unwrap().fencing_devices;
        let stopped = text.replace("role=\"Started\"", "role=\"Stopped\"");
        assert_eq!(devices(&stopped), 0, "{name}");
        let other = text.replace("\"stonith:", "\"ocf:");
        assert_eq!(devices(&other), 0, "{name}");
        let clone = text.replace("<resources>", "<resources><clone id=\"fence-everywhere\">");
        let cloned = clone.replace("</resources>", "</clone></resources>");
        assert_eq!(devices(&cloned), devices(&text), "{name}");
    }
}

#[test]
fn node_attributes_are_read() {
    let (name, view) =
        views("healthy").into_iter().find(|(name, _)| name.contains("/pgsql-")).unwrap();
    let primary = view.node(view.promoted()[0]).unwrap();
    assert_eq!(primary.attributes["Postgresql-status"], "PRI", "{name}");
    assert_eq!(primary.attributes["master-Postgresql"], "1000", "{name}");
}

#[test]
fn what_is_wrong_with_nodes_and_actions_is_read() {
    for (name, view) in views("maintenance") {
        assert!(view.maintenance, "{name}");
        assert!(view.instances.iter().all(|instance| !instance.managed), "{name}");
    }
    for (name, view) in views("node-in-standby") {
        let standby: Vec<_> = view.nodes.iter().filter(|node| node.standby).collect();
        assert_eq!(standby.len(), 1, "{name}");
    }
    for (name, view) in views("failed-actions") {
        assert_eq!(view.fail_counts.len(), 1, "{name}: {:?}", view.fail_counts);
        assert_eq!(view.failures[0].task, "monitor", "{name}");
        assert_eq!(view.failures[0].node, view.fail_counts[0].node, "{name}");
    }
    for (name, view) in views("leftover-ban") {
        assert!(view.bans[0].id.starts_with("cli-ban-"), "{name}");
        assert!(view.bans[0].promoted_only, "{name}");
    }
    for (name, view) in views("standby-lost") {
        assert_eq!(view.nodes.iter().filter(|node| !node.online).count(), 1, "{name}");
        assert_eq!(view.fence_events[0].status, "success", "{name}");
    }
    for (name, view) in views("primary-unclean") {
        let unclean = view.nodes.iter().find(|node| node.unclean).expect(&name);
        assert_eq!(view.promoted(), [unclean.name.as_str()], "{name}");
    }
}

#[test]
fn both_role_names_in_any_case_and_unknown_things_are_understood() {
    let (_, text) = recordings("healthy").remove(0);
    let known = PacemakerView::parse(&text, "Postgresql").unwrap();
    let older = text
        .replace("role=\"Promoted\"", "role=\"MASTER\" colour=\"blue\"")
        .replace("role=\"Unpromoted\"", "role=\"slave\"")
        .replace("</summary>", "<weather rain=\"true\"/></summary>");
    assert_eq!(PacemakerView::parse(&older, "Postgresql").unwrap(), known);
}

#[test]
fn copies_that_are_numbered_belong_to_the_primitive() {
    let (_, text) = recordings("healthy").remove(0);
    let numbered = text.replace("<resource id=\"Postgresql\"", "<resource id=\"Postgresql:2\"");
    assert_eq!(PacemakerView::parse(&numbered, "Postgresql").unwrap().promoted().len(), 1);
}

#[test]
fn two_promoted_publish_nothing() {
    let (_, text) = recordings("healthy").remove(0);
    let both = text.replacen("role=\"Unpromoted\"", "role=\"Promoted\"", 1);
    let view = PacemakerView::parse(&both, "Postgresql").unwrap();
    for node in ["pg01", "pg02", "pg03"] {
        let Decision::Hold(hold) = decision(&view, node) else { panic!("{node} published") };
        assert!(hold.is_alarming(), "{hold}");
    }
}

#[test]
fn a_promoted_node_whose_postgres_disagrees_publishes_nothing() {
    let (_, view) = views("healthy").remove(0);
    let node = view.promoted()[0];
    let address = "10.0.0.9".parse().unwrap();
    let recovering = LocalFacts { in_recovery: true, writable: false, ..primary_facts() };
    let read_only = LocalFacts { writable: false, ..primary_facts() };
    assert_eq!(
        decide(&view, node, address, Ok(&recovering), false),
        Decision::Hold(Hold::InRecovery)
    );
    assert_eq!(decide(&view, node, address, Ok(&read_only), false), Decision::Hold(Hold::ReadOnly));
    let silent = decide(&view, node, address, Err("no answer"), false);
    assert!(matches!(silent, Decision::Hold(Hold::PostgresSilent { .. })), "{silent:?}");
}

#[test]
fn a_server_that_leaves_recovery_while_it_is_being_promoted_is_the_primary_already() {
    let decision = |view: &PacemakerView, node: &str, was_in_recovery: bool| {
        let address = "10.0.0.9".parse().unwrap();
        decide(view, node, address, Ok(&primary_facts()), was_in_recovery)
    };
    let none = Decision::Hold(Hold::NoPrimary);
    for (name, view) in views("promoting") {
        let node = view.promoting().unwrap_or_else(|| panic!("{name}: nobody is being promoted"));
        assert!(view.agent == "ocf:pgcm:pgsql", "{name}: of other agents it is not expected");
        let publishes = decision(&view, node, true);
        let Decision::Publish(published) = publishes else { panic!("{name}: {publishes:?}") };
        assert_eq!(published.primary.name, node, "{name}");

        // One that took writes before may have been promoted past Pacemaker, and is going to be refused.
        assert_eq!(decision(&view, node, false), none, "{name}");
        for other in view.nodes.iter().filter(|other| other.name != node) {
            assert_eq!(decision(&view, &other.name, true), none, "{name} on {}", other.name);
        }
        let mut alone = view.clone();
        alone.quorum = false;
        assert_eq!(decision(&alone, node, true), Decision::Hold(Hold::NoQuorum), "{name}");
        let own = view.nodes.iter().position(|own| own.name == node).expect("a node");
        let copy = view.instances.iter().position(|i| i.node.as_deref() == Some(node));
        let (copy, other) = (copy.expect("a copy"), (copy.expect("a copy") + 1) % 3);
        let becomes = |role: &str| Role::Other(role.to_owned());
        type Edit<'a> = (&'a str, &'a dyn Fn(&mut PacemakerView));
        let edits: [Edit<'_>; 8] = [
            ("another agent", &|view| "ocf:heartbeat:pgsql".clone_into(&mut view.agent)),
            ("one is being demoted", &|view| view.instances[other].role = becomes("Demoting")),
            ("two are promoted", &|view| view.instances[other].role = becomes("Promoting")),
            ("one is stopping", &|view| view.instances[other].role = becomes("Stopping")),
            ("blocked", &|view| view.instances[copy].blocked = true),
            ("unmanaged", &|view| view.instances[copy].managed = false),
            ("lost", &|view| view.nodes[own].unclean = true),
            ("offline", &|view| view.nodes[own].online = false),
        ];
        for (what, edit) in edits {
            let mut edited = view.clone();
            edit(&mut edited);
            assert_eq!(decision(&edited, node, true), none, "{name}: {what}");
        }
    }
}

#[test]
fn a_clone_id_is_answered_with_its_primitive() {
    let (_, text) = recordings("healthy").remove(0);
    let error = PacemakerView::parse(&text, "msPostgresql").unwrap_err();
    assert_eq!(
        error.to_string(),
        "`msPostgresql` is a clone; set pacemaker.resource to the primitive in it: Postgresql"
    );
    let error = PacemakerView::parse(&text, "postgres").unwrap_err();
    assert_eq!(
        error.to_string(),
        "Pacemaker has no resource `postgres`; set pacemaker.resource to one of: Postgresql"
    );
}

#[test]
fn an_error_status_in_well_formed_xml_is_an_error_with_its_reason() {
    for (name, text) in recordings("pacemaker-stopped") {
        let error = PacemakerView::parse(&text, "Postgresql").unwrap_err();
        let CrmMonError::Refused { code: 102, errors, .. } = &error else {
            panic!("{name}: {error:?}")
        };
        assert!(
            errors.iter().any(|error| error.contains("onnection refused")),
            "{name}: {errors:?}"
        );
        assert_eq!(refusal(&text), Some(error));
    }
}

#[test]
fn the_synchronous_standby_is_chosen_and_others_are_told_why_not() {
    let (_, view) = views("healthy").remove(0);
    let primary = view.promoted()[0].to_owned();
    let names: Vec<_> =
        view.nodes.iter().map(|node| node.name.as_str()).filter(|&name| name != primary).collect();
    let standbys = [standby(names[0], "potential"), standby(names[1], "sync")];
    let choose = |wanted| successor::choose(&view, &primary, &standbys, wanted);
    assert_eq!(choose(None).unwrap().name, names[1]);
    assert_eq!(choose(Some(names[1])).unwrap().name, names[1]);
    assert!(matches!(choose(Some(names[0])), Err(NoSuccessor::NotSynchronous { .. })));
    assert!(matches!(choose(Some(&primary)), Err(NoSuccessor::AlreadyPrimary { .. })));
    assert!(matches!(choose(Some("pg09")), Err(NoSuccessor::Unknown { .. })));
    let alone = successor::choose(&view, &primary, &[], None).unwrap_err();
    assert!(matches!(alone, NoSuccessor::NoneSynchronous { .. }), "{alone}");
}

#[test]
fn a_node_in_standby_mode_is_no_successor_even_if_synchronous() {
    for (name, view) in views("node-in-standby") {
        let primary = view.promoted()[0].to_owned();
        let node = view.nodes.iter().find(|node| node.standby).unwrap();
        let standbys = [standby(&node.name, "sync")];
        let why = successor::choose(&view, &primary, &standbys, None).unwrap_err();
        assert_eq!(why, NoSuccessor::InStandbyMode { node: node.name.clone() }, "{name}");
    }
}

#[test]
fn pacemaker_before_2_1_calls_the_promoted_role_master() {
    let mut view = views("healthy").remove(0).1;
    for (version, role) in [
        ("1.1.24-3.el7", "Master"),
        ("2.0.5-ba59be7122", "Master"),
        ("2.1.5-a3f44794f94", "Promoted"),
    ] {
        version.clone_into(&mut view.version);
        assert_eq!(view.promoted_role_name(), role, "{version}");
    }
}

proptest! {
    #[test]
    fn xml_that_was_cut_anywhere_is_an_error_and_never_a_panic(cut in 0.0..1.0_f64) {
        for situation in ["healthy", "no-quorum-majority", "pacemaker-stopped", "legacy"] {
            let (_, text) = recordings(situation).remove(0);
            let text = text.trim_end();
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                reason = "any cut will do")]
            let mut end = (text.len() as f64 * cut) as usize;
            while !text.is_char_boundary(end) { end -= 1; }
            prop_assert!(PacemakerView::parse(&text[..end], "Postgresql").is_err());
        }
    }

    #[test]
    fn noise_is_an_error_and_never_a_panic(noise in "\\PC{0,200}") {
        prop_assert!(PacemakerView::parse(&noise, "Postgresql").is_err());
    }
}

#[test]
fn a_standby_that_the_agent_calls_potential_is_published_as_potential() {
    let mut seen = 0;
    for (name, view) in views("healthy") {
        let says = |node: &&Node| node.attributes.values().any(|value| value == "HS:potential");
        let Some(node) = view.nodes.iter().find(says) else { continue };
        let primary = view.promoted()[0];
        let facts = LocalFacts { standbys: vec![standby(&node.name, "async")], ..primary_facts() };
        let decision = decide(&view, primary, "10.0.0.9".parse().unwrap(), Ok(&facts), false);
        let Decision::Publish(published) = decision else { panic!("{name}: {decision:?}") };
        assert_eq!(published.standbys[0].sync_state, "potential", "{name}");
        seen += 1;
    }
    assert!(seen > 0, "no recording has a potential standby");
}

#[test]
fn a_lost_node_is_published_as_offline() {
    let mut seen = 0;
    for (name, view) in views("standby-lost") {
        let [primary] = view.promoted()[..] else { continue };
        let lost = view.nodes.iter().find(|node| !node.online).expect("a lost node");
        let Decision::Publish(published) = decision(&view, primary) else { panic!("{name}") };
        assert_eq!(published.offline, *std::slice::from_ref(&lost.name), "{name}");
        seen += 1;
    }
    assert!(seen > 0, "no recording has a lost standby");
}

#[test]
fn a_receiver_of_wal_that_is_no_node_is_not_published_as_a_standby() {
    for (name, view) in views("healthy") {
        let primary = view.promoted()[0];
        let node = view.nodes.iter().find(|node| node.name != primary).expect("another");
        let standbys = ["pg_basebackup", &node.name, "pg_receivewal"];
        let standbys = standbys.map(|name| standby(name, "async")).to_vec();
        let facts = LocalFacts { standbys, ..primary_facts() };
        let decision = decide(&view, primary, "10.0.0.9".parse().unwrap(), Ok(&facts), false);
        let Decision::Publish(published) = decision else { panic!("{name}: {decision:?}") };
        let names: Vec<_> = published.standbys.iter().map(|standby| &standby.name).collect();
        assert_eq!(names, [&node.name], "{name}");
    }
}

#[test]
fn a_failed_start_is_told_with_what_the_agent_said_and_in_full_on_its_own_node() {
    let mut shown = 0;
    for (name, text) in recordings("failed-actions") {
        let reason = "diverged from 10.0.0.2, pg_rewind gives up what only this node has";
        let text = text.replace("exitreason=\"\"", &format!("exitreason=\"{reason}\""));
        let view = PacemakerView::parse(&text, "Postgresql").unwrap();
        let failure = view.failures.first().unwrap_or_else(|| panic!("{name}: no failure"));
        let (node, task) = (failure.node.clone(), failure.task.clone());
        let others = failed_action::current(&view, "pg09", None);
        let copy = view.instance(&node);
        let up = copy.is_some_and(|copy| !copy.failed && copy.role == Role::Unpromoted);
        if up {
            assert!(others.is_empty(), "{name}: Postgres is up again: {others:?}");
            continue;
        }
        assert_eq!(
            (others[0].node.as_str(), others[0].commands.len()),
            (node.as_str(), 0),
            "{name}"
        );
        assert!(!others[0].reason.is_empty(), "{name}");
        let note = FailedAction {
            node: String::new(),
            action: task,
            reason: format!("{reason}: it wrote timeline 1"),
            commands: vec!["pg_rewind".to_owned()],
        };
        let own = failed_action::current(&view, &node, Some(note));
        assert_eq!((own[0].node.as_str(), own[0].commands.len()), (node.as_str(), 1), "{name}");
        assert_eq!(failed_action::merged([others, own.clone()].concat()), own, "{name}");
        shown += 1;
    }
    assert!(shown >= 2, "on both releases a node is stopped");
}
