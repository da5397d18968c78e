//! The only place that reads the wall clock.

use std::time::{SystemTime, UNIX_EPOCH};

use tunesmith_contract::UnixTime;

/// Now.
#[must_use]
pub fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
