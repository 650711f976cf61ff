//! What a planned failover finds of its agents before it begins. A real etcd, and agents that can be
//! told to err.

mod support;

use std::{sync::Arc, time::Duration};

use pgcm::{
    edge::etcd::{Expect, Put},
    exit::Exit,
    model::{
        finding::{Finding, Severity},
        health::{Health, Verdict},
        registration::{AgentKind, Registration},
    },
    telemetry::log::discard,
    work::{
        api::Checks,
        checks::{Terms, namesake::WithNamesake},
        failover::FailoverOptions,
        register,
        shutdown::Stop,
    },
};
use support::{
    etcd::start_etcd,
    eventually,
    failover::{SOON, is_locked, options, run, start, told},
    fake_cluster::Fault,
};
use tokio::sync::watch;

#[tokio::test]
async fn an_expected_agent_that_is_not_registered_refuses() {
    let (_process, etcd, _cluster) = start().await;
    let expected_agents = vec!["app01/proxy".to_owned(), "app02/proxy".to_owned()];
    let strict = FailoverOptions { expected_agents, ..options("one") };
    let report = run(&etcd, strict.clone()).await;
    assert_eq!(report.exit, Exit::Refused, "{report}");
    let refused: Vec<&str> = report
        .findings
        .iter()
        .filter(|found| found.refuses())
        .map(|found| found.finding.message.split(' ').next().unwrap_or_default())
        .collect();
    assert_eq!(refused, ["app02/proxy"], "{report}");
    // Two nodes: nobody else streams once the target is the primary.
    let words = told(&report, "sync-after-move", Severity::Warn);
    let both = "until pg01 is back each commit is on pg02 alone, or waits where";
    assert!(words.contains(both), "{words}");
    let overrides = vec!["agent-expected".to_owned()];
    let report = run(&etcd, FailoverOptions { overrides, ..strict }).await;
    assert_eq!(report.exit, Exit::Done, "{report}");
}

#[tokio::test]
async fn who_would_leave_clients_on_an_old_primary_is_never_overridden() {
    let (_process, etcd, cluster) = start().await;
    let overrides = vec!["proxy-missing".to_owned(), "no-proxy".to_owned()];
    let bold = FailoverOptions { overrides, ..options("one") };
    for (gone, check, words) in [
        ("pg02/proxy", "proxy-missing", "no `pgcm proxy` of pg02 was found"),
        ("app01/proxy", "proxy-missing", "no `pgcm proxy` of pg02 was found"),
        ("pg01/proxy", "no-proxy", "no `pgcm proxy` with a PgBouncer was found"),
    ] {
        let entry = etcd.get(&format!("/agents/{gone}")).await.expect("etcd").expect("registered");
        let there = Expect::ModRevision(entry.mod_revision);
        etcd.delete_if(&entry.key, there).await.expect("deleted");
        let report = run(&etcd, bold.clone()).await;
        assert_eq!(report.exit, Exit::Refused, "{gone}: {report}");
        let told = told(&report, check, Severity::Refuse);
        assert!(told.starts_with(words), "{gone}: {told}");
        assert!(!report.findings.iter().any(|found| found.overridden), "{gone}: {report}");
    }
    assert!(cluster.changes().is_empty() && !is_locked(&etcd).await);
}

#[tokio::test]
async fn a_failover_slot_without_a_usable_copy_on_the_target_refuses() {
    let (_process, etcd, cluster) = start().await;
    cluster.has_slots("pg01/supervise", &["cdc", "feed"]);
    cluster.has_slots("pg02/supervise", &["feed"]);
    let report = run(&etcd, options("one")).await;
    assert_eq!(report.exit, Exit::Refused, "{report}");
    let words = told(&report, "logical-slots", Severity::Refuse);
    assert!(words.starts_with("pg02 has no usable copy of the failover slots cdc ("), "{words}");
    let overrides = vec!["logical-slots".to_owned()];
    let bold = FailoverOptions { overrides, dry_run: true, ..options("one") };
    assert_eq!(run(&etcd, bold).await.exit, Exit::Done);
    cluster.has_slots("pg02/supervise", &["feed", "cdc", "left-over"]);
    assert_eq!(run(&etcd, options("one")).await.exit, Exit::Done);
}

#[tokio::test]
async fn named_endpoints_are_asked_instead_of_registered_ones() {
    let (_process, etcd, cluster) = start().await;
    let mut endpoints = Vec::new();
    for entry in etcd.get_prefix("/agents/").await.expect("etcd").entries {
        let agent: serde_json::Value = serde_json::from_str(&entry.value).expect("JSON");
        endpoints.push(agent["api"].as_str().expect("an address").to_owned());
        let there = Expect::ModRevision(entry.mod_revision);
        etcd.delete_if(&entry.key, there).await.expect("deleted");
    }
    let report = run(&etcd, FailoverOptions { endpoints, ..options("one") }).await;
    assert_eq!((report.exit, cluster.primary().as_str()), (Exit::Done, "pg02"), "{report}");
}

#[tokio::test]
async fn an_agent_that_is_not_as_it_must_be_is_named_with_the_remedy() {
    let (_process, etcd, cluster) = start().await;
    let look = || run(&etcd, FailoverOptions { dry_run: true, ..options("one") });
    for (call, check, remedy) in [
        ("health", "agent-health", "start it again, or see its log"),
        ("check", "agent-checks", "see its log"),
    ] {
        cluster.fault(&format!("pg01/supervise {call}"), Fault::Fail);
        let words = told(&look().await, check, Severity::Refuse);
        assert!(words.contains("pg01/supervise") && words.contains(remedy), "{words}");
        cluster.heal();
    }
    cluster.is_of_version("app01/proxy", "9.9.9");
    let words = told(&look().await, "versions", Severity::Warn);
    assert!(words.contains("9.9.9") && words.contains("finish the upgrade"), "{words}");
    cluster.heal();
    assert_eq!(look().await.exit, Exit::Done);
}

#[tokio::test]
async fn an_address_at_which_another_agent_answers_refuses() {
    let (_process, etcd, cluster) = start().await;
    let key = "/agents/app01/proxy";
    let own = etcd.get(key).await.expect("etcd").expect("registered").value;
    let mut agent: serde_json::Value = serde_json::from_str(&own).expect("JSON");
    for other in ["pg01/proxy", "pg01/supervise"] {
        let entry = etcd.get(&format!("/agents/{other}")).await.expect("etcd").expect("registered");
        let there: serde_json::Value = serde_json::from_str(&entry.value).expect("JSON");
        agent["api"] = there["api"].clone();
        let put = Put { key: key.to_owned(), value: agent.to_string(), lease: 0 };
        etcd.put_if(&[], &[put]).await.expect("etcd takes it");
        let report = run(&etcd, options("one")).await;
        assert_eq!(report.exit, Exit::Refused, "{report}");
        let words = told(&report, "agent-address", Severity::Refuse);
        let where_it_is = "where app01/proxy is registered; set api.token-file on every machine";
        assert!(words.starts_with(other) && words.contains(where_it_is), "{words}");
    }
    assert!(cluster.changes().is_empty() && !is_locked(&etcd).await);
    let put = Put { key: key.to_owned(), value: own, lease: 0 };
    etcd.put_if(&[], &[put]).await.expect("etcd takes it");
    assert_eq!(run(&etcd, options("one")).await.exit, Exit::Done);
}

#[tokio::test]
async fn a_view_that_cannot_be_read_and_an_agent_of_no_known_kind_refuse() {
    let (_process, etcd, cluster) = start().await;
    cluster.calls_itself("app01/proxy", "toaster");
    let entry = etcd.get("/agents/app01/proxy").await.expect("etcd").expect("registered");
    let agent: serde_json::Value = serde_json::from_str(&entry.value).expect("JSON");
    let endpoints = vec![agent["api"].as_str().expect("an address").to_owned()];
    let named = FailoverOptions { endpoints, dry_run: true, ..options("one") };
    let words = told(&run(&etcd, named).await, "agent-kind", Severity::Refuse);
    assert!(words.contains("`toaster`") && words.contains("failover.endpoints"), "{words}");
    let put = Put { key: "/cluster".to_owned(), value: "nonsense".to_owned(), lease: 0 };
    etcd.put_if(&[], &[put]).await.expect("etcd takes it");
    let report = run(&etcd, FailoverOptions { dry_run: true, ..options("one") }).await;
    let words = told(&report, "no-primary", Severity::Refuse);
    assert!(
        words.contains("/cluster in etcd cannot be read") && words.contains("heals"),
        "{words}"
    );
}

/// Finds nothing by itself.
struct Nothing;

#[tonic::async_trait]
impl Checks for Nothing {
    async fn findings(&self, _: &Terms) -> Vec<Finding> {
        Vec::new()
    }

    async fn failover_slots(&self) -> Vec<String> {
        Vec::new()
    }

    async fn health(&self) -> Health {
        Health::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_of_one_name_each_refuse_until_one_is_gone() {
    let server = start_etcd().await;
    let ttl = Duration::from_secs(2);
    let (mut agents, mut switches) = (Vec::new(), Vec::new());
    for api in ["10.0.0.5:8081", "10.0.0.6:8081"] {
        let registration = Registration {
            host: "app01".into(),
            kind: AgentKind::Proxy,
            api: api.parse().expect("it is so"),
            version: "1".into(),
        };
        let (switch, stop) = Stop::new();
        let (namesake, seen) = watch::channel(None);
        let etcd = server.client();
        tokio::spawn(register::run(etcd, registration.clone(), ttl, namesake, stop, discard()));
        agents.push(WithNamesake::new(Arc::new(Nothing), registration, seen, ttl));
        switches.push(switch);
    }
    let terms = Terms { pause_timeout: SOON, pause_expiry: SOON, target: None };
    let seen_by = async |agent: &WithNamesake| {
        let found = agent.findings(&terms).await;
        found.into_iter().map(|finding| (finding.check, finding.severity, finding.message)).next()
    };
    for (agent, other) in agents.iter().zip(["10.0.0.6:8081", "10.0.0.5:8081"]) {
        eventually(SOON, "it is told of the other", || async { seen_by(agent).await.is_some() })
            .await;
        let (check, severity, words) = seen_by(agent).await.expect("it is so");
        assert_eq!((check.as_str(), severity), ("agent-name", Severity::Refuse));
        assert!(words.contains(other) && words.contains("`name` of its own in [node]"), "{words}");
        assert_eq!(agent.health().await.components[0].verdict, Verdict::Degraded);
    }
    switches[1].send(true).expect("it is so");
    let alone = || async { seen_by(&agents[0]).await.is_none() };
    eventually(SOON, "it is alone with its name", alone).await;
}
