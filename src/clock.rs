//! The clock: read here and passed down.

use std::time::{SystemTime, UNIX_EPOCH};

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

/// The time now, RFC 3339.
pub(crate) fn now_text() -> String {
    kiln_executor::rfc3339(now())
}
