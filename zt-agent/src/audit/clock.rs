// SPDX-License-Identifier: Apache-2.0
//! From the kernel's monotonic clock to the time of day.

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds to add to `CLOCK_MONOTONIC` to get Unix time, as of now.
///
/// Asked for each batch and not kept: the wall clock may be set, and a record should bear the time that a person
/// would have read then.
pub fn realtime_offset() -> Result<i64, nix::Error> {
    Ok(nanoseconds(ClockId::CLOCK_REALTIME)? - nanoseconds(ClockId::CLOCK_MONOTONIC)?)
}

/// Unix time, nanoseconds.
pub fn now() -> i64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_nanos()).unwrap_or(i64::MAX))
}

fn nanoseconds(clock: ClockId) -> Result<i64, nix::Error> {
    let time = clock_gettime(clock)?;
    Ok(time.tv_sec() * 1_000_000_000 + time.tv_nsec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_offset_turns_one_clock_into_the_other() {
        let monotonic = nanoseconds(ClockId::CLOCK_MONOTONIC).expect("clock");
        let difference = monotonic + realtime_offset().expect("clock") - now();
        assert!(difference.abs() < 1_000_000_000, "{difference} ns");
    }
}
