// SPDX-License-Identifier: Apache-2.0
//! What each workload has had of the maps that all share, and where something of one is not noted. The programs keep account of
//! both; the agent counts what it files itself for the same shares, and removes accounts that nobody needs any more.

use std::collections::HashMap;
use std::time::Duration;

use aya::maps::MapData;
use nix::time::{ClockId, clock_gettime};
use zt_common::abi::{SHARE_INBOUND, SHARE_LISTENERS, SOURCE_LIFE, Unnoted};
use zt_common::names;

use super::error::KernelError;
use super::host::Pins;
use super::{Kernel, load, sys};

/// `zt_shares` and `zt_unnoted`.
pub(super) struct Shares {
    filed: MapData,
    unnoted: MapData,
}

/// What the agent itself has filed of each share, and the programs do not count.
pub(super) type Uncounted = HashMap<u64, u64>;

impl Shares {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let shares = Self {
            filed: load::open(pins, names::SHARES)?,
            unnoted: load::open(pins, names::UNNOTED)?,
        };
        // There from the first hook on, for what has no room of its own.
        shares.say(Unnoted::ANYWHERE)?;
        Ok(shares)
    }

    /// Has an entry for a namespace. False where there is no room for it.
    fn say(&self, netns: u64) -> Result<bool, KernelError> {
        match sys::add_new(load::fd(&self.unnoted), &netns, &Unnoted::default()) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(false),
            Err(error) => Err(KernelError::map(names::UNNOTED)(error)),
        }
    }

    fn said(&self) -> Result<HashMap<u64, Unnoted>, KernelError> {
        let mut said = HashMap::new();
        sys::read_each(load::fd(&self.unnoted), |netns: u64, one: &Unnoted| {
            said.insert(netns, *one);
        })
        .map_err(KernelError::map(names::UNNOTED))?;
        Ok(said)
    }

    /// How many each share has that the programs have filed.
    pub(super) fn filed(&self) -> Result<HashMap<u64, u64>, KernelError> {
        let mut filed = HashMap::new();
        sys::read_each(load::fd(&self.filed), |share: u64, count: &u64| {
            filed.insert(share, *count);
        })
        .map_err(KernelError::map(names::SHARES))?;
        Ok(filed)
    }

    /// Says that one more listens in a namespace at a place that is not noted.
    pub(super) fn listener_left(&self, netns: u64) -> Result<(), KernelError> {
        let key = if self.say(netns)? {
            netns
        } else {
            Unnoted::ANYWHERE
        };
        let said = self.said()?.get(&key).copied().unwrap_or_default();
        let listeners = said.listeners.wrapping_add(1);
        sys::update_batch(load::fd(&self.unnoted), &[key], &[Unnoted { listeners, ..said }])
            .map_err(KernelError::map(names::UNNOTED))
    }

    /// Removes what says nothing any more: shares with nothing in them of cgroups that are gone, and namespaces in which
    /// everything is noted.
    fn tidy(&self, is_there: &dyn Fn(u64) -> bool) -> Result<(), KernelError> {
        for (share, count) in self.filed()? {
            let cgroup = share & !(SHARE_INBOUND | SHARE_LISTENERS);
            if !is_positive(count) && !is_there(cgroup) {
                sys::remove(load::fd(&self.filed), &share).map_err(KernelError::map(names::SHARES))?;
            }
        }
        let now = clock_gettime(ClockId::CLOCK_MONOTONIC).map_err(KernelError::map(names::UNNOTED))?;
        let now = Duration::from(now).as_secs();
        for (netns, said) in self.said()? {
            let over = now.saturating_sub(said.called) > u64::from(SOURCE_LIFE);
            if over && !is_positive(said.listeners) && netns != Unnoted::ANYWHERE {
                sys::remove(load::fd(&self.unnoted), &netns).map_err(KernelError::map(names::UNNOTED))?;
            }
        }
        Ok(())
    }
}

/// Counts are changed one at a time by programs that may be late: below zero is zero.
fn is_positive(count: u64) -> bool {
    count.cast_signed() > 0
}

/// Whether there may be one more of a share, of which so many are there.
pub(super) fn has_room(filed: &HashMap<u64, u64>, uncounted: &Uncounted, share: u64, most: u32) -> bool {
    let filed = filed.get(&share).copied().filter(|count| is_positive(*count));
    let uncounted = uncounted.get(&share).copied().unwrap_or(0);
    filed.unwrap_or(0).saturating_add(uncounted) < u64::from(most)
}

impl Kernel {
    /// Removes accounts of what is gone. `is_there`: whether there is a cgroup.
    pub fn tidy_shares(&self, is_there: &dyn Fn(u64) -> bool) -> Result<(), KernelError> {
        self.shares.tidy(is_there)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_agent_files_counts_for_the_same_share() {
        let filed = HashMap::from([(1, 3), (2, u64::MAX)]);
        let uncounted = Uncounted::from([(1, 2), (2, 4), (3, 5)]);
        for (share, room) in [(1, false), (2, true), (3, false), (4, true)] {
            assert_eq!(has_room(&filed, &uncounted, share, 5), room, "{share}");
        }
    }
}
