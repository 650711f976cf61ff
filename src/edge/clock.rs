//! Wall-clock time, for people and for limits that other machines must understand.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now, as RFC 3339 in UTC with milliseconds.
pub fn now_rfc3339() -> String {
    humantime::format_rfc3339_millis(now()).to_string()
}

/// `after` from now, as RFC 3339 in UTC with seconds.
pub fn rfc3339_after(after: Duration) -> String {
    humantime::format_rfc3339_seconds(now() + after).to_string()
}

/// Whether `instant`, RFC 3339 in UTC, lies in the past; `None` when it is no such thing.
pub fn is_past(instant: &str) -> Option<bool> {
    humantime::parse_rfc3339_weak(instant).ok().map(|instant| instant < now())
}

/// Whether what counts until then, if it ends at all, counts no more.
pub fn is_over(until: Option<&str>) -> bool {
    until.and_then(is_past).unwrap_or(false)
}

/// How long ago `instant`, RFC 3339 in UTC, was; zero when it lies ahead, `None` when it is no such thing.
pub fn age(instant: &str) -> Option<Duration> {
    let instant = humantime::parse_rfc3339_weak(instant).ok()?;
    Some(now().duration_since(instant).unwrap_or_default())
}

/// How long ago `instant` was; `None` when it lies ahead.
pub fn age_of(instant: SystemTime) -> Option<Duration> {
    now().duration_since(instant).ok()
}

/// Milliseconds since 1970.
pub fn unix_ms() -> u64 {
    let since = now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}
