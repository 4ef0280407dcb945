// SPDX-License-Identifier: Apache-2.0
//! How `api.drain` is read.

use std::time::Duration;

use super::setting::Raw;
use super::{Config, nri};

/// Where nothing is configured: longer than it takes until everybody in a cluster has heard that a pod ends.
pub(super) const DRAIN: Duration = Duration::from_secs(5);
/// Supervisors wait less long than that.
const LONGEST: Duration = Duration::from_secs(300);

pub(super) fn drain(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let text = raw.text()?;
    config.api.drain = nri::duration(text)
        .filter(|time| *time <= LONGEST)
        .ok_or_else(|| format!("must be a time such as `5s` or `0s`, at most 5m, not `{text}`"))?;
    Ok(())
}
