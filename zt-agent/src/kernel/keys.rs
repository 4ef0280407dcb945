// SPDX-License-Identifier: Apache-2.0
//! The keys of the tags that prove identities in handshakes (`docs/handshake.md`).
//!
//! They are in the pinned map and nowhere else: neither on a disk nor in a log nor in an answer. A successor goes on with
//! what it finds there.

use std::collections::HashSet;
use std::time::Duration;

use aya::maps::{HashMap as KernelMap, Map, MapData, MapError};
use nix::time::{ClockId, clock_gettime};
use zt_common::abi::{KeyId, NodeKey, WITHIN};
use zt_common::control::HANDSHAKE;
use zt_common::names;
use zt_common::siphash::Key;

use super::error::KernelError;
use super::host::Pins;
use super::{Kernel, load, sys};

/// How long a key is used before the next one is made. It is accepted for as long again.
const PERIOD: Duration = Duration::from_mins(10);

/// The map of keys. Cannot be printed.
pub(super) struct Keys(KernelMap<MapData, KeyId, NodeKey>);

impl Keys {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let map = Map::HashMap(load::open(pins, names::KEYS)?);
        map.try_into().map(Self).map_err(KernelError::map(names::KEYS))
    }

    /// Whether the key of an epoch is there, and has not been used for longer than it shall.
    fn is_fresh(&self, epoch: u64, now: Duration) -> Result<bool, KernelError> {
        match self.0.get(&KeyId { peer: WITHIN, epoch }, 0) {
            Ok(key) => Ok(now.saturating_sub(Duration::from_nanos(key.made)) < PERIOD),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(error) => Err(KernelError::map(names::KEYS)(error)),
        }
    }

    /// Makes the key of an epoch. An epoch that has one keeps it: another agent's SYN may bear its tag already.
    fn make(&mut self, epoch: u64, now: Duration) -> Result<(), KernelError> {
        const NO_EXIST: u64 = 1;
        let key = NodeKey {
            k0: sys::random()?,
            k1: sys::random()?,
            made: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        };
        match self.0.insert(KeyId { peer: WITHIN, epoch }, key, NO_EXIST) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => {
                Ok(())
            }
            done => done.map_err(KernelError::map(names::KEYS)),
        }
    }

    /// Writes the key of a pair of nodes, in whose slot nothing is that is needed: taken out first, so that no program ever
    /// sees half of one.
    pub(super) fn place(&mut self, id: KeyId, key: Key) -> Result<(), KernelError> {
        self.remove(id)?;
        let made = now()?;
        let key = NodeKey {
            k0: key.k0,
            k1: key.k1,
            made: u64::try_from(made.as_nanos()).unwrap_or(u64::MAX),
        };
        self.0.insert(id, key, 0).map_err(KernelError::map(names::KEYS))
    }

    /// Takes over the keys that another map has of handshakes with other nodes.
    pub(super) fn take_over(&mut self, other: &Self) -> Result<(), KernelError> {
        for entry in &other.0 {
            let (id, key) = entry.map_err(KernelError::map(names::KEYS))?;
            if id.node().is_some() {
                self.0.insert(id, key, 0).map_err(KernelError::map(names::KEYS))?;
            }
        }
        Ok(())
    }

    /// Removes a key, if it is there.
    pub(super) fn remove(&mut self, id: KeyId) -> Result<(), KernelError> {
        match self.0.remove(&id) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            Err(error) => Err(KernelError::map(names::KEYS)(error)),
        }
    }

    /// The nodes with which keys are shared.
    pub(super) fn nodes(&self) -> Result<HashSet<u32>, KernelError> {
        let ids = self.0.keys().collect::<Result<Vec<KeyId>, _>>();
        let ids = ids.map_err(KernelError::map(names::KEYS))?;
        Ok(ids.iter().filter_map(KeyId::node).collect())
    }

    /// Removes the keys of all epochs within the node but these.
    fn retire(&mut self, but: &[u64]) -> Result<(), KernelError> {
        let ids: Vec<KeyId> = self
            .0
            .keys()
            .collect::<Result<_, _>>()
            .map_err(KernelError::map(names::KEYS))?;
        for id in ids {
            if id.peer == WITHIN && !but.contains(&id.epoch) {
                self.0.remove(&id).map_err(KernelError::map(names::KEYS))?;
            }
        }
        Ok(())
    }
}

/// The time by which keys are old.
fn now() -> Result<Duration, KernelError> {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .map(Duration::from)
        .map_err(|error| KernelError::Missing {
            missing: "the clock CLOCK_BOOTTIME".into(),
            cause: error.to_string(),
        })
}

impl Kernel {
    /// Makes a new key for handshakes within the node, if the one in use is missing or old. Whether one was made.
    ///
    /// The key is there before its epoch is in use, and the one before goes only when the next one comes: a handshake that
    /// is under way is refused by neither.
    pub fn renew_key(&mut self) -> Result<bool, KernelError> {
        let now = now()?;
        let mut control = self.tables.control()?;
        if control.epoch != 0 && self.keys.is_fresh(control.epoch, now)? {
            return Ok(false);
        }
        control.epoch += 1;
        self.keys.make(control.epoch, now)?;
        self.tables.set_control(control)?;
        self.keys.retire(&[control.epoch, control.epoch - 1])?;
        Ok(true)
    }

    /// Removes the keys within the node, while handshakes bear no identities: what was signed long ago shall not verify when
    /// they do so again.
    pub fn forget_keys(&mut self) -> Result<(), KernelError> {
        if self.tables.control()?.flags & HANDSHAKE != 0 {
            return Ok(());
        }
        self.keys.retire(&[])
    }
}
