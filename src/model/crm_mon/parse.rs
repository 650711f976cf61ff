//! The XML tree to a [`PacemakerView`].

use super::{
    Ban, CrmMonError, FailCount, Failure, FenceEvent, Flavour, Instance, Node, PacemakerView, Role,
};
use crate::model::xml::Element;

pub(super) fn view(text: &str, resource: &str) -> Result<PacemakerView, CrmMonError> {
    let root = Element::parse(text).map_err(CrmMonError::Xml)?;
    let flavour = flavour(&root)?;
    if let Some(refusal) = status(&root) {
        return Err(refusal);
    }
    let summary = root.child("summary").ok_or(CrmMonError::Missing { element: "summary" })?;
    let controller =
        summary.child("current_dc").ok_or(CrmMonError::Missing { element: "current_dc" })?;
    let options = summary.child("cluster_options");
    let has_dc = controller.flag("present");
    let copies = copies(&root, resource, has_dc)?;
    let clone = copies.iter().find_map(|copy| copy.clone.clone());
    let about = |id: &str| primitive(id) == resource || clone.as_deref() == Some(id);
    Ok(PacemakerView {
        flavour,
        resource: resource.to_owned(),
        version: controller.attribute("version").to_owned(),
        quorum: has_dc && controller.flag("with_quorum"),
        dc: has_dc.then(|| controller.attribute("name").to_owned()),
        maintenance: options.is_some_and(|options| options.flag("maintenance-mode")),
        fencing: options.is_some_and(|options| options.flag("stonith-enabled")),
        fencing_devices: fencing_devices(&root),
        nodes: nodes(&root),
        agent: copies
            .first()
            .map(|copy| copy.xml.attribute("resource_agent").to_owned())
            .unwrap_or_default(),
        instances: copies.iter().flat_map(|copy| instances(copy.xml)).collect(),
        failures: failures(&root, resource),
        fail_counts: fail_counts(&root, resource),
        bans: listed(&root, "bans", "ban")
            .filter(|ban| about(ban.attribute("resource")))
            .map(ban)
            .collect(),
        fence_events: listed(&root, "fence_history", "fence_event").map(fence_event).collect(),
        clone,
    })
}

pub(super) fn refusal(text: &str) -> Option<CrmMonError> {
    status(&Element::parse(text).ok()?)
}

fn flavour(root: &Element) -> Result<Flavour, CrmMonError> {
    match root.name.as_str() {
        "pacemaker-result" => Ok(Flavour::Modern),
        "crm_mon" => Ok(Flavour::Legacy),
        other => Err(CrmMonError::Root { root: other.to_owned() }),
    }
}

fn status(root: &Element) -> Option<CrmMonError> {
    let status = root.child("status")?;
    let code = status.attribute("code").parse().unwrap_or(1);
    (code != 0).then(|| CrmMonError::Refused {
        code,
        message: status.attribute("message").to_owned(),
        errors: listed(status, "errors", "error")
            .map(|error| error.text.trim().to_owned())
            .collect(),
    })
}

/// Children called `item` of the child called `list`.
fn listed<'a>(
    parent: &'a Element,
    list: &'a str,
    item: &'a str,
) -> impl Iterator<Item = &'a Element> {
    parent.all(list).flat_map(move |found| found.all(item))
}

/// The id of a primitive without the `:0` that older versions add to each copy.
fn primitive(id: &str) -> &str {
    match id.rsplit_once(':') {
        Some((name, number)) if number.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => id,
    }
}

/// A copy of the resource, and the clone that it is in.
struct Copy<'a> {
    clone: Option<String>,
    xml: &'a Element,
}

fn copies<'a>(
    root: &'a Element,
    resource: &str,
    has_dc: bool,
) -> Result<Vec<Copy<'a>>, CrmMonError> {
    let Some(resources) = root.child("resources") else {
        return if has_dc { Err(no_such(resource, Vec::new())) } else { Ok(Vec::new()) };
    };
    let mut found = Vec::new();
    let mut known = Vec::new();
    for element in resources.descendants() {
        let clone = (element.name == "clone").then(|| element.attribute("id").to_owned());
        if clone.as_deref() == Some(resource) {
            return Err(CrmMonError::IsClone {
                resource: resource.to_owned(),
                primitives: primitives(element),
            });
        }
        for xml in element.all("resource") {
            if primitive(xml.attribute("id")) == resource {
                found.push(Copy { clone: clone.clone(), xml });
            }
        }
        if element.name == "clone" && element.flag("multi_state") {
            known.extend(primitives(element));
        }
    }
    if found.is_empty() && has_dc {
        return Err(no_such(resource, known));
    }
    Ok(found)
}

fn primitives(clone: &Element) -> Vec<String> {
    let mut names: Vec<_> = clone
        .descendants()
        .into_iter()
        .filter(|element| element.name == "resource")
        .map(|element| primitive(element.attribute("id")).to_owned())
        .collect();
    names.sort();
    names.dedup();
    names
}

fn no_such(resource: &str, known: Vec<String>) -> CrmMonError {
    CrmMonError::NoSuchResource { resource: resource.to_owned(), known }
}

/// One for each node that it runs on; one without a node when it runs nowhere.
fn instances(copy: &Element) -> Vec<Instance> {
    let instance = |node: Option<String>| Instance {
        node,
        role: role(copy.attribute("role")),
        failed: copy.flag("failed"),
        blocked: copy.flag("blocked"),
        managed: copy.attribute("managed").is_empty() || copy.flag("managed"),
        pending: copy.attributes.get("pending").cloned(),
    };
    let on: Vec<_> = copy.all("node").map(|node| node.attribute("name").to_owned()).collect();
    if on.is_empty() {
        return vec![instance(None)];
    }
    on.into_iter().map(|node| instance(Some(node))).collect()
}

fn role(name: &str) -> Role {
    match name.to_ascii_lowercase().as_str() {
        "promoted" | "master" => Role::Promoted,
        // A promotable copy that was just probed is listed as started.
        "unpromoted" | "slave" | "started" => Role::Unpromoted,
        "stopped" => Role::Stopped,
        _ => Role::Other(name.to_owned()),
    }
}

fn fencing_devices(root: &Element) -> usize {
    let Some(resources) = root.child("resources") else { return 0 };
    let is_started = |element: &&&Element| {
        element.name == "resource"
            && element.attribute("resource_agent").starts_with("stonith:")
            && element.attribute("role").eq_ignore_ascii_case("started")
    };
    resources.descendants().iter().filter(is_started).count()
}

fn nodes(root: &Element) -> Vec<Node> {
    let attributes = |name: &str| {
        listed(root, "node_attributes", "node")
            .filter(|node| node.attribute("name") == name)
            .flat_map(|node| node.all("attribute"))
            .map(|a| (a.attribute("name").to_owned(), a.attribute("value").to_owned()))
            .collect()
    };
    listed(root, "nodes", "node")
        .map(|node| Node {
            name: node.attribute("name").to_owned(),
            id: node.attribute("id").to_owned(),
            online: node.flag("online"),
            standby: node.flag("standby") || node.flag("standby_onfail"),
            pending: node.flag("pending"),
            unclean: node.flag("unclean"),
            maintenance: node.flag("maintenance"),
            attributes: attributes(node.attribute("name")),
        })
        .collect()
}

fn failures(root: &Element, resource: &str) -> Vec<Failure> {
    let belongs = |failure: &&Element| {
        // The key is RESOURCE_TASK_INTERVAL; older versions write the three in fields of their own.
        let key = failure.attribute("op_key");
        let stem = key.rsplitn(3, '_').nth(2).unwrap_or(failure.attribute("id"));
        primitive(stem) == resource
    };
    listed(root, "failures", "failure")
        .filter(belongs)
        .map(|failure| Failure {
            node: failure.attribute("node").to_owned(),
            task: failure.attribute("task").to_owned(),
            status: failure.attribute("exitstatus").to_owned(),
            reason: failure.attribute("exitreason").to_owned(),
        })
        .collect()
}

fn fail_counts(root: &Element, resource: &str) -> Vec<FailCount> {
    let mut counts = Vec::new();
    for node in listed(root, "node_history", "node") {
        for history in node.all("resource_history") {
            let count = history.attribute("fail-count");
            if primitive(history.attribute("id")) == resource && !["", "0"].contains(&count) {
                let count = if count == "1000000" { "INFINITY" } else { count };
                counts.push(FailCount {
                    node: node.attribute("name").to_owned(),
                    count: count.to_owned(),
                });
            }
        }
    }
    counts
}

fn ban(ban: &Element) -> Ban {
    Ban {
        id: ban.attribute("id").to_owned(),
        node: ban.attribute("node").to_owned(),
        promoted_only: ["promoted-only", "promoted_only", "master_only"]
            .iter()
            .any(|key| ban.flag(key)),
    }
}

fn fence_event(event: &Element) -> FenceEvent {
    FenceEvent {
        target: event.attribute("target").to_owned(),
        action: event.attribute("action").to_owned(),
        status: event.attribute("status").to_owned(),
    }
}
