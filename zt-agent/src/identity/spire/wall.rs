// SPDX-License-Identifier: Apache-2.0
//! Deadlines by the clock on the wall, which may be set while they are waited for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::sleep;

/// The longest that is waited at a time.
const LONGEST: Duration = Duration::from_secs(30);

/// Completes when the time of day, in Unix seconds, has come; never without one.
pub(super) async fn passed(time: Option<i64>) {
    let Some(time) = time else {
        return std::future::pending().await;
    };
    loop {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let left = Duration::from_secs(time.max(0).unsigned_abs()).saturating_sub(now);
        if left.is_zero() {
            return;
        }
        sleep(left.min(LONGEST)).await;
    }
}
