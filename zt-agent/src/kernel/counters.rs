// SPDX-License-Identifier: Apache-2.0
//! What the programs count in the kernel.

use aya::maps::{Map, MapData, PerCpuArray};
use zt_common::counter::Counter;
use zt_common::names;

use super::error::KernelError;
use super::host::Pins;
use super::load;

/// Reads the kernel's counters, whoever writes the maps.
pub struct CounterReader {
    counters: PerCpuArray<MapData, u64>,
}

impl std::fmt::Debug for CounterReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CounterReader").finish_non_exhaustive()
    }
}

impl CounterReader {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let map = Map::PerCpuArray(load::open(pins, names::COUNTERS)?);
        Ok(Self {
            counters: map.try_into().map_err(KernelError::map(names::COUNTERS))?,
        })
    }

    /// Every counter, summed over all CPUs, by slot.
    pub fn read(&self) -> Result<[u64; Counter::COUNT as usize], KernelError> {
        let mut sums = [0; Counter::COUNT as usize];
        for (slot, sum) in sums.iter_mut().enumerate() {
            let values = self
                .counters
                .get(&(slot as u32), 0)
                .map_err(KernelError::map(names::COUNTERS))?;
            *sum = values.iter().sum();
        }
        Ok(sums)
    }
}
