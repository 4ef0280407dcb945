// SPDX-License-Identifier: Apache-2.0
//! How `identity.nri` is read.

use std::time::Duration;

use super::Config;
use super::apply;
use super::setting::Raw;
use crate::yaml::Value;

/// How long a container waits at the most, where nothing is configured: runtimes give plugins two seconds.
pub(super) const WAIT: Duration = Duration::from_millis(1500);
/// Longer than that the kubelet would find the runtime slow.
const MOST: Duration = Duration::from_secs(60);

pub(super) fn socket(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    config.identity.nri_socket = match raw {
        Raw::Node(node) if node.value == Value::Null => None,
        _ if raw.text()? == "none" => None,
        _ => Some(apply::socket(raw)?),
    };
    Ok(())
}

pub(super) fn wait(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let text = raw.text()?;
    let wait = duration(text).ok_or_else(|| format!("`{text}` is no time such as `1500ms` or `2s`"))?;
    if wait.is_zero() || wait > MOST {
        return Err(format!("must be more than nothing and at most 60s, not `{text}`"));
    }
    config.identity.nri_wait = wait;
    Ok(())
}

/// Whole minutes, seconds or milliseconds.
pub(super) fn duration(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|character: char| !character.is_ascii_digit());
    let number: u64 = digits.parse().ok()?;
    match text.get(digits.len()..)?.trim() {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_secs(number.checked_mul(60)?)),
        _ => None,
    }
}
