//! A proxy that starts while a failover runs which does not know it.

use std::time::{Duration, Instant};

use crate::{
    cell::LIMITS,
    stage::{HOSTS, Stage},
    support::eventually,
    writers::Writers,
};

const SOON: Duration = Duration::from_secs(15);
/// Until everything runs, on a machine that other tests keep busy.
const BEGUN: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_that_starts_while_the_primary_moves_holds_its_clients_until_it_follows() {
    let mut stage = Stage::start(LIMITS).await;
    stage.becomes_whole(BEGUN).await.unwrap();
    let place = stage.place("app01/proxy");
    // app01 is off when the failover begins.
    stage.kill_agent(place);
    stage.pgbouncers[0].stop();
    let snare = stage.director.hold();
    let mut coordinator = stage.coordinator_without("app01/proxy");
    let moves = tokio::time::timeout(BEGUN, snare.catches()).await;
    assert!(moves.is_ok(), "the primary does not move: {}", coordinator.log());

    stage.pgbouncers[0].start().await;
    stage.start_agent(place);
    eventually(Duration::from_secs(2), "the pause is joined", || async {
        stage.paused().await == HOSTS
    })
    .await;
    let writers = Writers::start(&stage.ports()[..1], "newcomer");
    snare.release();
    let (status, report) = coordinator.ends(SOON).await.unwrap();
    assert_eq!(status, 0, "{report}{}", coordinator.log());
    let ended = Instant::now();
    writers.all_commit(SOON).await.unwrap();
    let (_, rows, errors) = writers.stop().await;
    assert!(errors.is_empty() && !rows.is_empty(), "{errors:?}");
    // Its coordinator has not let it go: it does not know it. Nor did the expiry: that was not over.
    assert!(ended.elapsed() < Duration::from_secs(1), "{:?}", ended.elapsed());
    let log = stage.logs();
    assert!(log.contains("joined the pause") && !log.contains("ended by its expiry"), "{log}");
}
