//! Spans of time as they are told to others.

use std::time::Duration;

/// Whole milliseconds; the most that there is for a span that is longer.
pub fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
