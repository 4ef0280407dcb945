// SPDX-License-Identifier: Apache-2.0
//! Waiting for a condition, with a deadline: tests never sleep for a guessed time.

use std::str::FromStr;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// How long between two looks.
const INTERVAL: Duration = Duration::from_millis(2);

/// How many times longer everything takes here than on a machine: `ZT_SLOWNESS`, which guests without the help of hardware get.
pub fn slowness() -> u32 {
    let said = std::env::var("ZT_SLOWNESS").ok();
    said.and_then(|said| said.parse().ok()).unwrap_or(1).max(1)
}

/// How much of something there is to be: `otherwise`, unless an environment variable asks for more or less.
pub fn asked<T: FromStr>(variable: &str, otherwise: T) -> Result<T> {
    let said = std::env::var(variable).ok();
    said.map_or(Ok(otherwise), |said| {
        let number = said.parse().ok();
        number.with_context(|| format!("{variable}={said} is no number"))
    })
}

/// Looks until `look` answers `Some`, and returns it; fails at once if `look` fails, and after `deadline` with `what`.
pub fn wait_for<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = deadline * slowness();
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() >= deadline {
            bail!("still waiting after {deadline:?} for: {what}");
        }
        thread::sleep(INTERVAL);
    }
}

/// [`wait_for`] a condition that is only true or false.
pub fn eventually(what: &str, deadline: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    wait_for(what, deadline, || Ok(holds()?.then_some(())))
}
