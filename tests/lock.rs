//! The failover lock on a machine that is too busy. A binary of its own, since it keeps others from working.

mod support;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use pgcm::{
    edge::{
        etcd::Etcd,
        lock::{Lock, LockOptions},
    },
    model::attempt::{Attempt, LOCK},
};
use support::etcd::start_etcd;

/// With a lease that outlives what such a machine does to its renewals.
fn lock(etcd: &Arc<Etcd>) -> Lock {
    let attempt = Attempt {
        id: "ours".to_owned(),
        holder: "pg09:1".to_owned(),
        purpose: "failover".to_owned(),
        started_at: "2026-11-26T12:00:00Z".to_owned(),
        step: "lock".to_owned(),
        pause_deadline_unix_ms: 0,
    };
    let options = LockOptions { lease: Duration::from_secs(30), poll: Duration::from_millis(20) };
    Lock::new(etcd.clone(), attempt, options)
}

/// A machine that has no core to spare, until it is dropped: etcd takes up requests in another order then.
struct Busy(Arc<AtomicBool>);

impl Busy {
    fn start() -> Self {
        let on = Arc::new(AtomicBool::new(true));
        for _ in 0..6 {
            let on = on.clone();
            std::thread::spawn(move || {
                while on.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(on)
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// A step that ends gives up its note, whose request may be on its way: a newcomer that read the step before the
/// pause, and no deadline, would not hold its clients.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_lock_told_before_does_not_come_back() {
    let process = start_etcd().await;
    let etcd = process.client();
    let ours = lock(&etcd);
    ours.acquire(Duration::ZERO).await.expect("etcd answers");
    let _busy = Busy::start();
    for round in 0..300_u64 {
        for given_up in 0..3 {
            let end = Instant::now() + Duration::from_micros(50 * (given_up + round % 10));
            let goes_on = async {
                while Instant::now() < end {
                    tokio::task::yield_now().await;
                }
            };
            tokio::select! {
                biased;
                _ = ours.update("prepare", 0) => {}
                () = goes_on => {}
            }
        }
        ours.update("pause", round).await.expect("still held");
        tokio::time::sleep(Duration::from_millis(5)).await;
        let told = etcd.get(LOCK).await.expect("etcd answers").expect("held").value;
        let told: Attempt = serde_json::from_str(&told).expect("an attempt");
        assert_eq!((told.step.as_str(), told.pause_deadline_unix_ms), ("pause", round));
    }
}
