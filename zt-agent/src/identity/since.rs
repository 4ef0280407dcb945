// SPDX-License-Identifier: Apache-2.0
//! Since when something is so.

use std::time::{SystemTime, UNIX_EPOCH};

/// Unix nanoseconds, now.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
