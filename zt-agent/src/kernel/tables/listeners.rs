// SPDX-License-Identifier: Apache-2.0
//! `zt_listeners`: what the agent adds to what the programs note, of listeners that are older than the hooks.

use std::collections::HashMap;
use std::io;

use aya::maps::{Map, MapData};
use zt_common::abi::{Listener, ListenerKey, SHARE_LISTENERS};
use zt_common::names;

use super::Tables;
use crate::kernel::error::KernelError;
use crate::kernel::load::{self, Loaded};
use crate::kernel::shares::Uncounted;
use crate::kernel::sys;

/// What came of a place that was to be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::kernel) enum Noted {
    /// It is.
    Added,
    /// It was already.
    There,
    /// There is no room for it.
    Full,
}

pub(super) fn open(loaded: &mut Loaded) -> Result<MapData, KernelError> {
    match loaded.take(names::LISTENERS)? {
        Map::HashMap(map) => Ok(map),
        _ => Err(KernelError::map(names::LISTENERS)("not a hash map")),
    }
}

impl Tables {
    /// Notes a place at which `sockets` wait that are older than the hooks. Counted in no share; see [`Self::uncounted`].
    pub(in crate::kernel) fn add_listener(
        &mut self,
        key: &ListenerKey,
        workload: u64,
        sockets: usize,
        ambiguous: bool,
    ) -> Result<Noted, KernelError> {
        let listener = Listener {
            workload,
            sockets: sockets as u64,
            ambiguous: u32::from(ambiguous),
            uncounted: 1,
        };
        match sys::add_new(load::fd(&self.listeners), key, &listener) {
            Ok(true) => Ok(Noted::Added),
            Ok(false) => Ok(Noted::There),
            Err(error) if error.raw_os_error() == Some(libc::E2BIG) => Ok(Noted::Full),
            Err(error) => Err(KernelError::map(names::LISTENERS)(error)),
        }
    }

    /// Notes one more socket at a place that is noted. (What a program changes there at the same moment may be lost: the two would
    /// have to open and close sockets of one place while an agent starts.)
    pub(in crate::kernel) fn join_listener(
        &mut self,
        key: &ListenerKey,
        workload: u64,
    ) -> Result<(), KernelError> {
        let Some(there) = self.listener(key) else {
            return self.add_listener(key, workload, 1, false).map(drop);
        };
        let joined = Listener {
            sockets: there.sockets + 1,
            ambiguous: there.ambiguous | u32::from(there.workload != workload),
            ..there
        };
        sys::update_batch(load::fd(&self.listeners), &[*key], &[joined])
            .map_err(KernelError::map(names::LISTENERS))
    }

    /// Who listens at a place.
    pub(in crate::kernel) fn listener(&self, key: &ListenerKey) -> Option<Listener> {
        sys::look_up(load::fd(&self.listeners), key).ok().flatten()
    }

    /// Places of which nobody is there any more.
    pub(in crate::kernel) fn remove_listener(&mut self, key: &ListenerKey) -> Result<(), KernelError> {
        sys::remove(load::fd(&self.listeners), key).map_err(KernelError::map(names::LISTENERS))
    }

    /// The places that the agent has noted.
    pub(in crate::kernel) fn older_listeners(&self) -> Result<HashMap<ListenerKey, Listener>, KernelError> {
        let mut older = HashMap::new();
        let read: io::Result<()> =
            sys::read_each(load::fd(&self.listeners), |key: ListenerKey, there: &Listener| {
                if there.uncounted != 0 {
                    older.insert(key, *there);
                }
            });
        read.map_err(KernelError::map(names::LISTENERS))?;
        Ok(older)
    }

    /// How many of them each share has.
    pub(in crate::kernel) fn uncounted(&self) -> Result<Uncounted, KernelError> {
        let mut uncounted = Uncounted::new();
        for listener in self.older_listeners()?.values() {
            *uncounted.entry(listener.workload | SHARE_LISTENERS).or_default() += 1;
        }
        Ok(uncounted)
    }
}
