//! The clock of a function: read here, passed in everywhere else.

use std::time::{SystemTime, UNIX_EPOCH};

use tunesmith_contract::UnixTime;

/// The time now. Only `main` and the outermost handler read it; decisions get it as a parameter.
#[must_use]
pub fn now() -> UnixTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime(i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}
