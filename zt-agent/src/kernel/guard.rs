// SPDX-License-Identifier: Apache-2.0
//! The receive guards: one link for each workload that receives datagrams, so that the TCP of all others stays free of
//! a packet hook.

use std::collections::HashMap;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::error::KernelError;
use super::hooks::{self, UDP_GUARD};
use super::host::Pins;
use super::sys;

/// The guards in place, by cgroup id.
#[derive(Debug)]
pub struct Guards {
    directory: PathBuf,
    links: HashMap<u64, OwnedFd>,
}

impl Guards {
    /// Opens what a predecessor left; a guard whose cgroup is gone goes too.
    pub(super) fn new(pins: &Pins) -> Result<Self, KernelError> {
        let directory = pins.links();
        let mut guards = Self {
            directory: directory.clone(),
            links: HashMap::new(),
        };
        let entries = fs::read_dir(&directory).map_err(KernelError::io("list", &directory))?;
        for path in entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| is_pin(path))
        {
            let link = sys::open_pin(&path).map_err(KernelError::io("open the pinned link", &path))?;
            let info =
                sys::link_info(link.as_fd()).map_err(KernelError::io("inspect the pinned link", &path))?;
            if info.cgroup == 0 {
                fs::remove_file(&path).map_err(KernelError::io("remove the stale pin", &path))?;
            } else {
                guards.links.insert(info.cgroup, link);
            }
        }
        Ok(guards)
    }

    /// Puts this agent's program into every guard.
    pub(super) fn take_over(&self, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        for (id, link) in &self.links {
            sys::link_update(link.as_fd(), program)
                .map_err(KernelError::io("update the pinned link", self.pin(*id)))?;
        }
        Ok(())
    }

    /// Guards a cgroup. Whether it was not guarded before.
    pub(super) fn add(
        &mut self,
        program: BorrowedFd<'_>,
        cgroup: &Path,
        id: u64,
    ) -> Result<bool, KernelError> {
        if self.links.contains_key(&id) {
            return Ok(false);
        }
        let link = hooks::attach(UDP_GUARD, program, cgroup, id, &self.pin(id))?;
        self.links.insert(id, link);
        Ok(true)
    }

    /// Forgets the guard of a cgroup.
    pub(super) fn remove(&mut self, id: u64) {
        if self.links.remove(&id).is_some() {
            let pin = self.pin(id);
            if let Err(error) = fs::remove_file(&pin) {
                tracing::warn!(pin = %pin.display(), %error, "cannot remove the pin of a guard");
            }
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    fn pin(&self, id: u64) -> PathBuf {
        self.directory.join(format!("{}-{id}", UDP_GUARD.program))
    }
}

/// Whether a pin is that of a guard.
pub(super) fn is_pin(path: &Path) -> bool {
    path.file_name()
        .and_then(|name| name.to_str())
        .is_some_and(|name| name.starts_with(UDP_GUARD.program))
}
