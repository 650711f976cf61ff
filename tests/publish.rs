//! Publishing, against a real etcd; crm_mon's output is replayed, Postgres' facts are given.

mod support;

use std::time::Duration;

use pgcm::{
    edge::{
        etcd::Put,
        poke::{self, Urgency},
    },
    model::{
        cluster::ClusterView,
        crm_mon::PacemakerView,
        primary::{Hold, Refused},
    },
    work::publish::{CLUSTER, MASTER, Outcome},
};
use support::{
    etcd::start_etcd,
    eventually,
    stage::{HEALTHY, POLL, SOON, stage, stage_with},
};

const MINORITY: &str = include_str!("data/crm_mon/no-quorum-minority/pgsql-trixie.xml");
const PROMOTING: &str = include_str!("data/crm_mon/promoting/pgcm-trixie.xml");
const STOPPED: &str = include_str!("data/crm_mon/pacemaker-stopped/pgsql-trixie.xml");

#[tokio::test]
async fn the_primary_and_its_standbys_are_published() {
    let stage = stage().await;
    stage.published().await;
    let view = stage.view().await;
    assert_eq!((view.primary.name.as_str(), view.primary.timeline), ("pg01", 3));
    assert_eq!(view.synchronous_standby().map(|s| s.name.as_str()), Some("pg02"));
    assert!(view.quorum);
}

#[tokio::test]
async fn a_deleted_or_overwritten_key_heals() {
    let stage = stage().await;
    stage.published().await;
    stage.etcd.delete_if(MASTER, pgcm::edge::etcd::Expect::ModRevision(0)).await.unwrap();
    for nonsense in ["10.9.9.9", "not an address", ""] {
        stage.put(MASTER, nonsense).await;
        stage.published().await;
    }
    stage.put(CLUSTER, "{ not JSON").await;
    let healed = || async {
        stage.value(CLUSTER).await.is_some_and(|v| serde_json::from_str::<ClusterView>(&v).is_ok())
    };
    eventually(SOON, "the view is put back", healed).await;
    for key in [MASTER, CLUSTER] {
        let entry = stage.etcd.get(key).await.unwrap().expect("there");
        let expect = pgcm::edge::etcd::Expect::CreateRevision(entry.create_revision);
        stage.etcd.delete_if(key, expect).await.unwrap();
        let back = || async { stage.value(key).await.is_some() };
        eventually(SOON, "a deleted key is put back", back).await;
    }
}

#[tokio::test]
async fn a_lower_timeline_never_overwrites() {
    let mut stage = stage().await;
    stage.published().await;
    let mut newer = stage.view().await;
    newer.primary.name = "pg02".to_owned();
    newer.primary.address = "172.17.0.5".parse().unwrap();
    newer.primary.timeline = 4;
    stage.scene.set(|world| world.facts.timeline = 3);
    stage.put(CLUSTER, &serde_json::to_string(&newer).unwrap()).await;
    stage.put(MASTER, "172.17.0.5").await;
    stage
        .outcome("the look is refused", |outcome| {
            matches!(outcome, Outcome::Refused(Refused::Backwards { stored: 4, ours: 3, .. }))
        })
        .await;
    assert_eq!(stage.view().await.primary, newer.primary);
    assert_eq!(stage.value(MASTER).await.as_deref(), Some("172.17.0.5"));
}

#[tokio::test]
async fn the_remedy_for_a_refused_look_lets_it_publish_and_takes_nothing_else() {
    let mut stage = stage().await;
    stage.published().await;
    stage.put("/failover", "{}").await;
    stage.put("/history/1", "{}").await;
    stage.scene.set(|world| world.facts.system_identifier = "8".to_owned());
    stage.outcome("the look is refused", |outcome| matches!(outcome, Outcome::Refused(_))).await;
    let Outcome::Refused(refused) = stage.latest.borrow().outcome.clone() else { unreachable!() };
    let remedy = refused.remedy("/postgres");
    let (_, command) = remedy.split_once("run: etcdctl ").expect("a command");
    stage.server.etcdctl(command);
    let ours = || async { stage.value(CLUSTER).await.is_some_and(|view| view.contains("\"8\"")) };
    eventually(SOON, "the cluster made anew is published", ours).await;
    stage.published().await;
    for key in ["/failover", "/history/1"] {
        assert!(stage.value(key).await.is_some(), "{key} is gone");
    }
}

#[tokio::test]
async fn without_quorum_nothing_is_published() {
    let mut stage = stage().await;
    stage.published().await;
    // pg02 was the primary when the cable was cut; here this node is the one on its own.
    let minority = MINORITY.replace("\"pg02\"", "\"pgXX\"").replace("\"pg01\"", "\"pg02\"");
    stage.scene.set(|world| world.crm_mon.1 = minority.replace("\"pgXX\"", "\"pg01\""));
    stage.outcome("no quorum", |outcome| *outcome == Outcome::Held(Hold::NoQuorum)).await;
    stage.put(MASTER, "10.9.9.9").await;
    stage.outcome("still no quorum", |outcome| *outcome == Outcome::Held(Hold::NoQuorum)).await;
    assert_eq!(stage.value(MASTER).await.as_deref(), Some("10.9.9.9"));
}

#[tokio::test]
async fn two_promoted_nodes_publish_nothing() {
    let mut stage = stage().await;
    stage.published().await;
    let two = HEALTHY.replacen("role=\"Unpromoted\"", "role=\"Promoted\"", 1);
    stage.scene.set(|world| world.crm_mon.1 = two);
    let alarmed = |o: &Outcome| matches!(o, Outcome::Held(Hold::SeveralPrimaries { .. }));
    stage.outcome("two are promoted", alarmed).await;
    stage.put(MASTER, "10.9.9.9").await;
    stage.outcome("two are still promoted", alarmed).await;
    assert_eq!(stage.value(MASTER).await.as_deref(), Some("10.9.9.9"));
}

#[tokio::test]
async fn a_failing_crm_mon_is_never_no_primary() {
    let mut stage = stage().await;
    stage.published().await;
    let before = stage.view().await;
    stage.scene.set(|world| world.crm_mon = (102, STOPPED.to_owned()));
    let told = |o: &Outcome| matches!(o, Outcome::Failed(why) if why.contains("refused"));
    stage.outcome("the reason is told", told).await;
    stage.scene.set(|world| world.crm_mon = (0, HEALTHY[..2000].to_owned()));
    let cut = |o: &Outcome| matches!(o, Outcome::Failed(why) if why.contains("ends too early"));
    stage.outcome("cut XML is told", cut).await;
    assert_eq!(stage.view().await.primary, before.primary);
    assert!(stage.value(MASTER).await.is_some());
}

#[tokio::test]
async fn an_etcd_outage_is_survived() {
    let mut stage = stage().await;
    stage.published().await;
    stage.server.stop();
    let failed = |outcome: &Outcome| matches!(outcome, Outcome::Failed(_));
    stage.outcome("etcd is away", failed).await;
    stage.server.start().await;
    stage.scene.set(|world| world.facts.standbys.clear());
    let current = || async { stage.view().await.standbys.is_empty() };
    eventually(SOON, "what changed meanwhile is published", current).await;
}

#[tokio::test]
async fn a_poke_is_seen_long_before_the_poll() {
    let server = start_etcd().await;
    let stage = stage_with(server, Duration::from_secs(3600)).await;
    stage.published().await;
    stage.scene.set(|world| world.facts.timeline = 4);
    poke::poke(&stage.socket, Urgency::Soon).expect("supervise listens");
    let newer = || async { stage.view().await.primary.timeline == 4 };
    eventually(SOON, "the new timeline is published", newer).await;
}

#[tokio::test]
async fn a_primary_that_is_being_demoted_leaves_the_processors_to_its_successor() {
    let server = start_etcd().await;
    let mut stage = stage_with(server, Duration::from_secs(3600)).await;
    stage.published().await;
    stage.latest.borrow_and_update();
    poke::poke(&stage.socket, Urgency::Soon).expect("supervise listens");
    let looked = tokio::time::timeout(Duration::from_millis(300), stage.latest.changed()).await;
    assert!(looked.is_err(), "it looked although all that it could publish is published");
    // It does look in the end: a poke may also come of what it cannot see in its own Postgres.
    let looked = tokio::time::timeout(SOON, stage.latest.changed()).await;
    looked.expect("a look after the burst").expect("the publisher runs");
}

#[tokio::test]
async fn an_urgent_poke_is_followed_at_once_whatever_postgres_says() {
    let server = start_etcd().await;
    let mut stage = stage_with(server, Duration::from_secs(3600)).await;
    stage.published().await;
    stage.latest.borrow_and_update();
    poke::poke(&stage.socket, Urgency::Now).expect("supervise listens");
    let looked = tokio::time::timeout(Duration::from_millis(500), stage.latest.changed()).await;
    looked.expect("a look before the burst ends").expect("the publisher runs");
}

#[tokio::test]
async fn a_server_that_leaves_recovery_in_its_promotion_is_published_before_pacemaker_calls_it_promoted()
 {
    let mut stage = stage_with(start_etcd().await, Duration::from_secs(3600)).await;
    stage.published().await;
    stage.scene.set(|world| {
        world.crm_mon.1 = promoting_pg01();
        (world.facts.in_recovery, world.facts.writable) = (true, false);
        world.asked = 0;
    });
    poke::poke(&stage.socket, Urgency::Now).expect("supervise listens");
    let waits = || async { stage.scene.0.lock().unwrap().asked > 3 };
    eventually(SOON, "its server is waited for", waits).await;
    stage.scene.set(|world| {
        (world.facts.in_recovery, world.facts.writable) = (false, true);
        world.facts.timeline = 4;
    });
    let newer = || async { stage.view().await.primary.timeline == 4 };
    eventually(SOON, "it is published", newer).await;
    // What was seen counts as long as the promotion lasts.
    stage.latest.borrow_and_update();
    poke::poke(&stage.socket, Urgency::Soon).expect("supervise listens");
    let looked = tokio::time::timeout(SOON, stage.latest.changed()).await;
    looked.expect("another look").expect("the publisher runs");
    let latest = stage.latest.borrow().clone();
    assert!(latest.is_primary(), "{:?}", latest.outcome);
}

#[tokio::test]
async fn a_server_that_stays_in_recovery_does_not_hold_up_the_look() {
    let mut stage = stage_with(start_etcd().await, Duration::from_secs(3600)).await;
    stage.published().await;
    stage.scene.set(|world| {
        world.crm_mon.1 = promoting_pg01();
        (world.facts.in_recovery, world.facts.writable) = (true, false);
    });
    stage.latest.borrow_and_update();
    poke::poke(&stage.socket, Urgency::Now).expect("supervise listens");
    let looked = tokio::time::timeout(SOON, stage.latest.changed()).await;
    looked.expect("the look ends").expect("the publisher runs");
    assert_eq!(stage.latest.borrow().outcome, Outcome::Held(Hold::InRecovery));
    assert_eq!(stage.view().await.primary.timeline, 3);
}

#[tokio::test]
async fn a_server_that_took_writes_before_its_promotion_waits_for_pacemakers_word() {
    let mut stage = stage().await;
    stage.published().await;
    stage.scene.set(|world| {
        world.crm_mon.1 = promoting_pg01();
        world.facts.timeline = 4;
    });
    poke::poke(&stage.socket, Urgency::Now).expect("supervise listens");
    stage.outcome("held", |outcome| *outcome == Outcome::Held(Hold::NoPrimary)).await;
    stage.outcome("still held", |outcome| *outcome == Outcome::Held(Hold::NoPrimary)).await;
    assert_eq!(stage.view().await.primary.timeline, 3);
    stage.scene.set(|world| world.crm_mon.1 = HEALTHY.to_owned());
    let newer = || async { stage.view().await.primary.timeline == 4 };
    eventually(SOON, "the promoted one is published", newer).await;
}

/// [`PROMOTING`], with pg01 as the one that is being promoted.
fn promoting_pg01() -> String {
    let view = PacemakerView::parse(PROMOTING, "Postgresql").expect("a view");
    let node = view.promoting().expect("somebody is being promoted");
    let moved =
        PROMOTING.replace("\"pg01\"", "\"pgXX\"").replace(&format!("\"{node}\""), "\"pg01\"");
    moved.replace("\"pgXX\"", &format!("\"{node}\""))
}

#[tokio::test]
async fn no_flood_of_pokes_makes_one_of_questions_on_a_standby() {
    let server = start_etcd().await;
    let mut stage = stage_with(server, Duration::from_secs(3600)).await;
    stage.published().await;
    let mut moved = stage.view().await;
    "pg02".clone_into(&mut moved.primary.name);
    stage.put(CLUSTER, &serde_json::to_string(&moved).unwrap()).await;
    let swapped = HEALTHY.replace("\"pg01\"", "\"pgXX\"").replace("\"pg02\"", "\"pg01\"");
    stage.scene.set(|world| {
        world.facts.in_recovery = true;
        world.crm_mon.1 = swapped.replace("\"pgXX\"", "\"pg02\"");
    });
    poke::poke(&stage.socket, Urgency::Now).expect("supervise listens");
    let is_other = |latest: &std::sync::Arc<pgcm::work::publish::Latest>| {
        matches!(latest.outcome, Outcome::Held(Hold::OtherNode { .. }))
    };
    let seen = tokio::time::timeout(SOON, stage.latest.wait_for(is_other)).await;
    drop(seen.expect("it is no primary any more").expect("the publisher runs"));
    stage.scene.set(|world| world.asked = 0);
    let begun = std::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(500) {
        poke::poke(&stage.socket, Urgency::Soon).expect("supervise listens");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (asked, bound) = (stage.scene.0.lock().unwrap().asked, begun.elapsed().as_millis() / 20);
    assert!(asked > 0 && u128::from(asked) <= bound + 2, "{asked} questions, not {bound}");
}

#[tokio::test]
async fn whoever_has_lost_the_lock_is_refused_soon() {
    let stage = stage().await;
    stage.put("/failover", "{}").await;
    let token = stage.etcd.get("/failover").await.unwrap().unwrap().create_revision;
    let older_is_refused = || async { stage.gate.lock().admit(token - 1).is_err() };
    eventually(SOON, "the token is seen", older_is_refused).await;
    stage.gate.lock().admit(token).expect("it holds the lock");
    let gone = pgcm::edge::etcd::Expect::CreateRevision(token);
    stage.etcd.delete_if("/failover", gone).await.unwrap();
    let is_refused = || async { stage.gate.lock().admit(token).is_err() };
    eventually(SOON, "nobody has it", is_refused).await;
    stage.gate.lock().admit_to_let_go(token).expect("nobody else has begun");
}

#[tokio::test]
async fn an_expired_constraint_of_ours_is_removed_but_not_during_a_failover() {
    let server = start_etcd().await;
    let lock = Put { key: "/failover".to_owned(), value: "{}".to_owned(), lease: 0 };
    server.client().put_if(&[], &[lock]).await.unwrap();
    let stage = stage_with(server, POLL).await;
    let old = "<rsc_location id=\"pgcm-move-msPostgresql\" rsc=\"msPostgresql\"><rule id=\"r\">\
               <date_expression id=\"d\" operation=\"lt\" end=\"2020-01-01T00:00:00Z\"/></rule></rsc_location>";
    stage.scene.set(|world| world.constraints = vec![old.to_owned()]);
    stage.published().await;
    assert_eq!(stage.scene.calls("--delete"), 0);
    let lock = stage.etcd.get("/failover").await.unwrap().unwrap();
    let mine = pgcm::edge::etcd::Expect::CreateRevision(lock.create_revision);
    stage.etcd.delete_if("/failover", mine).await.unwrap();
    let gone = || async { stage.scene.0.lock().unwrap().constraints.is_empty() };
    eventually(SOON, "the leftover is removed", gone).await;
}

/// pgcm's constraint, which counts until that year.
fn until(year: u32) -> String {
    format!(
        "<rsc_location id=\"pgcm-move-msPostgresql\" rsc=\"msPostgresql\"><rule id=\"r\">\
         <date_expression id=\"d\" operation=\"lt\" end=\"{year}-01-01T00:00:00Z\"/></rule>\
         </rsc_location>"
    )
}

#[tokio::test]
async fn a_constraint_stays_while_the_role_would_leave_without_it() {
    let stage = stage().await;
    stage.published().await;
    // The old primary's score, which the first monitor of the new one has not lowered yet.
    let (own, other) = HEALTHY.split_once("<node_attributes>").expect("attributes");
    let scores = other.replace("\"100\"", "\"1000\"");
    assert_ne!(scores, other);
    let contested = format!("{own}<node_attributes>{scores}");
    stage.scene.set(|world| {
        world.crm_mon = (0, contested);
        world.constraints = vec![until(2200)];
    });
    stage.put("/failover", "{}").await;
    tokio::time::sleep(3 * POLL).await;
    let lock = stage.etcd.get("/failover").await.unwrap().unwrap();
    let mine = pgcm::edge::etcd::Expect::CreateRevision(lock.create_revision);
    stage.etcd.delete_if("/failover", mine).await.unwrap();
    // Longer than it takes to be taken for nobody's.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(stage.scene.calls("--delete"), 0, "Pacemaker would move the role back");
    stage.scene.set(|world| world.crm_mon = (0, HEALTHY.to_owned()));
    let gone = || async { stage.scene.0.lock().unwrap().constraints.is_empty() };
    eventually(SOON, "the leftover is removed", gone).await;
}

#[tokio::test]
async fn a_constraint_is_removed_soon_after_its_failover_has_lost_the_lock_but_no_other() {
    let stage = stage().await;
    stage.published().await;
    stage.put("/failover", "{}").await;
    stage.scene.set(|world| world.constraints = vec![until(2200)]);
    // Longer than it takes to be taken for nobody's.
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(stage.scene.calls("--delete"), 0, "its failover lives");
    let lock = stage.etcd.get("/failover").await.unwrap().unwrap();
    let mine = pgcm::edge::etcd::Expect::CreateRevision(lock.create_revision);
    stage.etcd.delete_if("/failover", mine).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Another failover was quick: this one is not the one that was seen.
    stage.scene.set(|world| world.constraints = vec![until(2201)]);
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!(stage.scene.calls("--delete"), 0, "it was seen for less than a second");
    let gone = || async { stage.scene.0.lock().unwrap().constraints.is_empty() };
    eventually(SOON, "the leftover is removed", gone).await;
}
