// SPDX-License-Identifier: Apache-2.0
//! A kernel map and what we know to be in it: changes are differences, and a restart begins from what is there.

use std::collections::HashMap;
use std::hash::Hash;

use aya::Pod;
use aya::maps::{HashMap as KernelMap, MapData, MapError};

use super::error::KernelError;

/// Where a mirror writes.
trait Target<K, V>: Send + Sync {
    fn write(&mut self, key: K, value: V) -> Result<(), MapError>;
    fn erase(&mut self, key: &K) -> Result<(), MapError>;
}

impl<K: Pod + Send + Sync, V: Pod + Send + Sync> Target<K, V> for KernelMap<MapData, K, V> {
    fn write(&mut self, key: K, value: V) -> Result<(), MapError> {
        self.insert(key, value, 0)
    }

    fn erase(&mut self, key: &K) -> Result<(), MapError> {
        self.remove(key)
    }
}

/// A hash map of the kernel with its content.
pub(super) struct Mirror<K, V> {
    name: &'static str,
    map: Box<dyn Target<K, V>>,
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
    ) -> Result<Self, KernelError>
    where
        K: Send + Sync,
        V: Send + Sync,
    {
        let content = map
            .iter()
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(name))?;
        Ok(Self {
            name,
            map: Box::new(map),
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
        self.map.write(key, value).map_err(KernelError::map(self.name))?;
        self.content.insert(key, value);
        Ok(true)
    }

    /// Removes one entry. Whether it was there. One that could not be removed is still known, and goes next time.
    pub(super) fn remove(&mut self, key: &K) -> Result<bool, KernelError> {
        if !self.content.contains_key(key) {
            return Ok(false);
        }
        match self.map.erase(key) {
            Ok(()) | Err(MapError::KeyNotFound) => {}
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(KernelError::map(self.name)(error)),
        }
        self.content.remove(key);
        Ok(true)
    }

    /// Makes the map hold exactly `wanted`: what is different or new is written first, then what is not wanted goes. Where old and new
    /// do not fit together, what is not wanted goes first. Of more than fits as many are added as fit, and all else is done: what is no
    /// longer so does not stay for want of room.
    pub(super) fn replace(&mut self, wanted: &HashMap<K, V>) -> Result<Replaced, KernelError> {
        self.replace_with(wanted, |_| false)
    }

    /// Does the same. Where more is wanted than fits, that comes `first` of which this is true: others make room for it.
    pub(super) fn replace_with(
        &mut self,
        wanted: &HashMap<K, V>,
        first: impl Fn(&V) -> bool,
    ) -> Result<Replaced, KernelError> {
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
        let mut new = Vec::new();
        for (key, value) in wanted {
            let Some(before) = self.content.get(key) else {
                new.push((*key, *value));
                continue;
            };
            if before != value {
                self.set(*key, *value)?;
                done.changed = true;
                done.altered = true;
            }
        }
        new.sort_by_key(|(_, value)| !first(value));
        // There is room for all of them unless more is wanted than fits. Then others make room for those that come first.
        let come_first = new.partition_point(|(_, value)| first(value));
        let short = (self.content.len() + come_first).saturating_sub(self.limit);
        let others = self.content.iter();
        let others = others.filter_map(|(key, value)| (!first(value)).then_some(*key));
        let others: Vec<K> = others.take(short).collect();
        done.changed |= self.remove_all(&others)?;
        new.truncate(self.limit.saturating_sub(self.content.len()));
        let added = self.set_all(&new);
        let added = added.and_then(|changed| self.check(wanted.len()).map(|()| changed));
        if together {
            done.changed |= self.remove_all(&stale)?;
        }
        done.changed |= added?;
        Ok(done)
    }

    /// Refuses what would not fit.
    fn check(&self, needed: usize) -> Result<(), KernelError> {
        if needed > self.limit {
            return Err(self.too_many(needed));
        }
        Ok(())
    }

    fn set_all(&mut self, entries: &[(K, V)]) -> Result<bool, KernelError> {
        let mut changed = false;
        for (key, value) in entries {
            changed |= self.set(*key, *value)?;
        }
        Ok(changed)
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

#[cfg(test)]
pub(super) mod fake {
    //! Maps that are not the kernel's, and fail as long as a test wants it.

    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone)]
    pub(in crate::kernel) struct Fake<K, V> {
        content: Arc<Mutex<HashMap<K, V>>>,
        fails: Arc<AtomicBool>,
    }

    impl<K: Pod + Eq + Hash + Send + Sync, V: Pod + PartialEq + Send + Sync> Fake<K, V> {
        pub(in crate::kernel) fn new() -> Self {
            Self {
                content: Arc::default(),
                fails: Arc::default(),
            }
        }

        /// A mirror of it, with room for so many.
        pub(in crate::kernel) fn mirror(&self, limit: usize) -> Mirror<K, V> {
            Mirror {
                name: "fake",
                map: Box::new(self.clone()),
                content: HashMap::new(),
                limit,
            }
        }

        /// From now on nothing can be written, or everything again.
        pub(in crate::kernel) fn fail(&self, fails: bool) {
            self.fails.store(fails, Ordering::Relaxed);
        }

        pub(in crate::kernel) fn content(&self) -> HashMap<K, V> {
            self.content.lock().expect("nobody panics with it").clone()
        }

        fn change(&self, change: impl FnOnce(&mut HashMap<K, V>)) -> Result<(), MapError> {
            if self.fails.load(Ordering::Relaxed) {
                return Err(MapError::OutOfBounds {
                    index: 0,
                    max_entries: 0,
                });
            }
            change(&mut self.content.lock().expect("nobody panics with it"));
            Ok(())
        }
    }

    impl<K: Pod + Eq + Hash + Send + Sync, V: Pod + PartialEq + Send + Sync> Target<K, V> for Fake<K, V> {
        fn write(&mut self, key: K, value: V) -> Result<(), MapError> {
            self.change(|content| {
                content.insert(key, value);
            })
        }

        fn erase(&mut self, key: &K) -> Result<(), MapError> {
            self.change(|content| {
                content.remove(key);
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    #[test]
    fn of_more_than_fits_there_are_as_many_as_fit_and_what_comes_first_is_among_them() {
        const LIMIT: usize = 100;
        let map = Fake::<u64, u64>::new();
        let mut mirror = map.mirror(LIMIT);
        let entries = |keys: std::ops::Range<u64>| -> HashMap<u64, u64> {
            keys.map(|key| (key, u64::from(key < 50))).collect()
        };
        let comes_first = |value: &u64| *value == 1;
        // Something else is there, which goes first.
        assert!(mirror.replace(&entries(1000..1040)).is_ok());
        for _ in 0..2 {
            let refused = mirror.replace_with(&entries(0..250), comes_first);
            assert!(matches!(
                refused,
                Err(KernelError::TooMany {
                    needed: 250,
                    limit: LIMIT,
                    ..
                })
            ));
            let there = map.content();
            assert_eq!(there.len(), LIMIT);
            assert!((0..50).all(|key| there.get(&key) == Some(&1)));
            assert!(there.keys().all(|key| *key < 250));
        }
        let wanted = entries(20..120);
        assert!(mirror.replace_with(&wanted, comes_first).is_ok(), "it fits again");
        assert_eq!(map.content(), wanted);
        assert!(mirror.replace(&wanted).is_ok_and(|replaced| !replaced.changed));
    }

    #[test]
    fn what_comes_first_has_room_in_a_map_that_is_full_of_others() {
        const LIMIT: usize = 10;
        let map = Fake::<u64, u64>::new();
        let mut mirror = map.mirror(LIMIT);
        let mut wanted: HashMap<u64, u64> = (0..10).map(|key| (key, 0)).collect();
        assert!(mirror.replace(&wanted).is_ok());
        wanted.extend((100..103).map(|key| (key, 1)));
        for changed in [true, false] {
            let before = map.content();
            let refused = mirror.replace_with(&wanted, |value| *value == 1);
            assert!(matches!(refused, Err(KernelError::TooMany { needed: 13, .. })));
            let there = map.content();
            assert_eq!((there.len(), there != before), (LIMIT, changed));
            assert!((100..103).all(|key| there.get(&key) == Some(&1)));
        }
        // Who comes first keeps whoever came first before.
        wanted.extend((100..120).map(|key| (key, 1)));
        assert!(mirror.replace_with(&wanted, |value| *value == 1).is_err());
        let there = map.content();
        assert_eq!(there.len(), LIMIT);
        assert!(there.values().all(|value| *value == 1));
        assert!((100..103).all(|key| there.contains_key(&key)));
    }
}
