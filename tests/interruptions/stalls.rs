//! Whether the machine stood still: what is then seen says nothing about pgcm.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

const BEAT: Duration = Duration::from_millis(20);
/// A thread that comes this late may have been late by chance.
const CHANCE: Duration = Duration::from_millis(80);
/// Beyond this, in the time of one interruption, its limits mean nothing.
pub(crate) const STALLED: Duration = Duration::from_millis(500);

static LATE_MS: AtomicU64 = AtomicU64::new(0);

/// Counts from now on.
pub(crate) fn watch() {
    thread::spawn(|| {
        loop {
            let before = Instant::now();
            thread::sleep(BEAT);
            let late = before.elapsed().saturating_sub(BEAT);
            if late > CHANCE {
                LATE_MS.fetch_add(u64::try_from(late.as_millis()).unwrap(), Ordering::Relaxed);
            }
        }
    });
}

/// For how long, in all, this process was not let run since [`watch`].
pub(crate) fn so_far() -> Duration {
    Duration::from_millis(LATE_MS.load(Ordering::Relaxed))
}
