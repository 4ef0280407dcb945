// SPDX-License-Identifier: Apache-2.0
//! A kernel map and what we know to be in it: changes are differences, and a restart begins from what is there.

use std::collections::HashMap;
use std::hash::Hash;

use aya::Pod;
use aya::maps::{HashMap as KernelMap, MapData};

use super::error::KernelError;

/// A hash map of the kernel with its content.
#[derive(Debug)]
pub(super) struct Mirror<K, V> {
    name: &'static str,
    map: KernelMap<MapData, K, V>,
    content: HashMap<K, V>,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirror<K, V> {
    /// Reads what a predecessor left in the map.
    pub(super) fn new(name: &'static str, map: KernelMap<MapData, K, V>) -> Result<Self, KernelError> {
        let content = map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(name))?;
        Ok(Self { name, map, content })
    }

    /// What is in the map.
    pub(super) fn content(&self) -> &HashMap<K, V> {
        &self.content
    }

    /// Writes one entry, if it is not there already. Whether it was not.
    pub(super) fn set(&mut self, key: K, value: V) -> Result<bool, KernelError> {
        if self.content.get(&key) == Some(&value) {
            return Ok(false);
        }
        self.map
            .insert(key, value, 0)
            .map_err(KernelError::map(self.name))?;
        self.content.insert(key, value);
        Ok(true)
    }

    /// Removes one entry. Whether it was there.
    pub(super) fn remove(&mut self, key: &K) -> Result<bool, KernelError> {
        if self.content.remove(key).is_none() {
            return Ok(false);
        }
        self.map.remove(key).map_err(KernelError::map(self.name))?;
        Ok(true)
    }

    /// Makes the map hold exactly `wanted`: what is new or different is written first, then what is not wanted goes.
    /// Whether anything changed.
    pub(super) fn replace(&mut self, wanted: &HashMap<K, V>) -> Result<bool, KernelError> {
        let mut changed = false;
        for (key, value) in wanted {
            changed |= self.set(*key, *value)?;
        }
        let stale: Vec<K> = self
            .content
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        for key in &stale {
            changed |= self.remove(key)?;
        }
        Ok(changed)
    }
}
