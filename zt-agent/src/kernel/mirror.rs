// SPDX-License-Identifier: Apache-2.0
//! A kernel map and what we know to be in it: changes are differences, and a restart begins from what is there.

use std::collections::HashMap;
use std::hash::Hash;

use aya::Pod;
use aya::maps::{HashMap as KernelMap, MapData, MapError};

use super::error::KernelError;

/// A hash map of the kernel with its content.
#[derive(Debug)]
pub(super) struct Mirror<K, V> {
    name: &'static str,
    map: KernelMap<MapData, K, V>,
    content: HashMap<K, V>,
    /// What the map has room for.
    limit: usize,
}

/// What [`Mirror::replace`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Replaced {
    /// Anything at all.
    pub changed: bool,
    /// A key that was there has another value now.
    pub altered: bool,
}

impl<K: Pod + Eq + Hash, V: Pod + PartialEq> Mirror<K, V> {
    /// Reads what a predecessor left in the map.
    pub(super) fn new(
        name: &'static str,
        map: KernelMap<MapData, K, V>,
        limit: u32,
    ) -> Result<Self, KernelError> {
        let content = map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(name))?;
        Ok(Self {
            name,
            map,
            content,
            limit: limit as usize,
        })
    }

    /// What is in the map.
    pub(super) fn content(&self) -> &HashMap<K, V> {
        &self.content
    }

    /// Writes one entry, if it is not there already. Whether it was not.
    pub(super) fn set(&mut self, key: K, value: V) -> Result<bool, KernelError> {
        match self.content.get(&key) {
            Some(present) if *present == value => return Ok(false),
            None if self.content.len() >= self.limit => return Err(self.too_many(self.content.len() + 1)),
            _ => {}
        }
        self.map
            .insert(key, value, 0)
            .map_err(KernelError::map(self.name))?;
        self.content.insert(key, value);
        Ok(true)
    }

    /// Removes one entry. Whether it was there. One that could not be removed is still known, and goes next time.
    pub(super) fn remove(&mut self, key: &K) -> Result<bool, KernelError> {
        if !self.content.contains_key(key) {
            return Ok(false);
        }
        match self.map.remove(key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(KernelError::map(self.name)(error)),
        }
        self.content.remove(key);
        Ok(true)
    }

    /// Makes the map hold exactly `wanted`: what is new or different is written first, then what is not wanted goes.
    /// What does not fit is refused before anything is written. Where old and new do not fit together, what is not
    /// wanted goes first.
    pub(super) fn replace(&mut self, wanted: &HashMap<K, V>) -> Result<Replaced, KernelError> {
        self.check(wanted.len())?;
        let stale: Vec<K> = self
            .content
            .keys()
            .filter(|key| !wanted.contains_key(key))
            .copied()
            .collect();
        let new = wanted.len() - (self.content.len() - stale.len());
        let mut done = Replaced::default();
        let together = self.content.len() + new <= self.limit;
        if !together {
            done.changed |= self.remove_all(&stale)?;
        }
        for (key, value) in wanted {
            let present = self.content.contains_key(key);
            if self.set(*key, *value)? {
                done.changed = true;
                done.altered |= present;
            }
        }
        if together {
            done.changed |= self.remove_all(&stale)?;
        }
        Ok(done)
    }

    /// Refuses what would not fit.
    pub(super) fn check(&self, needed: usize) -> Result<(), KernelError> {
        if needed > self.limit {
            return Err(self.too_many(needed));
        }
        Ok(())
    }

    fn remove_all(&mut self, keys: &[K]) -> Result<bool, KernelError> {
        let mut changed = false;
        for key in keys {
            changed |= self.remove(key)?;
        }
        Ok(changed)
    }

    fn too_many(&self, needed: usize) -> KernelError {
        KernelError::TooMany {
            map: self.name,
            needed,
            limit: self.limit,
        }
    }
}
