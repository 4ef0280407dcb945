// SPDX-License-Identifier: Apache-2.0
//! The receive guards: one link for each workload that receives datagrams, so that the TCP of all others stays free of
//! a packet hook.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use super::attach::{self, Mended};
use super::error::KernelError;
use super::hooks::{self, UDP_GUARD};
use super::host::Pins;
use super::sys::{self, LinkInfo};

/// The guards in place, by cgroup id.
#[derive(Debug)]
pub struct Guards {
    directory: PathBuf,
    links: HashMap<u64, Guard>,
    /// Id of the program that this agent put into them.
    program: Option<u32>,
}

#[derive(Debug)]
struct Guard {
    link: OwnedFd,
    /// The cgroup's directory; not known of what a predecessor left until this agent guards it itself.
    cgroup: Option<PathBuf>,
}

impl Guards {
    /// Opens what a predecessor left; a guard whose cgroup is gone goes too.
    pub(super) fn new(pins: &Pins) -> Result<Self, KernelError> {
        let directory = pins.links();
        let mut guards = Self {
            directory: directory.clone(),
            links: HashMap::new(),
            program: None,
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
                guards.links.insert(info.cgroup, Guard { link, cgroup: None });
            }
        }
        Ok(guards)
    }

    /// Puts this agent's program into every guard.
    pub(super) fn take_over(&mut self, program: BorrowedFd<'_>) -> Result<(), KernelError> {
        self.program = sys::id_of(program).ok();
        for (id, guard) in &self.links {
            sys::link_update(guard.link.as_fd(), program)
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
        let path = Some(cgroup.to_owned());
        if let Some(guard) = self.links.get_mut(&id) {
            guard.cgroup = path;
            return Ok(false);
        }
        let link = hooks::attach(UDP_GUARD, program, cgroup, id, &self.pin(id))?;
        self.links.insert(id, Guard { link, cgroup: path });
        Ok(true)
    }

    /// The guards that the kernel does not report where they belong, with what it does report.
    pub(super) fn missing(&self) -> impl Iterator<Item = (u64, Option<LinkInfo>)> {
        self.links.iter().filter_map(|(id, guard)| {
            let info = sys::link_info(guard.link.as_fd()).ok();
            let there = info.is_some_and(|info| info.cgroup == *id && Some(info.program) == self.program);
            // The link of a cgroup that is gone died with it.
            let gone = guard.cgroup.as_ref().is_some_and(|path| !path.is_dir());
            (!there && !gone).then_some((*id, info))
        })
    }

    /// Puts back the guards, and the pins of guards, that are missing.
    pub(super) fn mend(&mut self, program: BorrowedFd<'_>, mended: &mut Mended) {
        let missing: Vec<u64> = self.missing().map(|(id, _)| id).collect();
        for id in missing {
            let what = format!("{} on cgroup {id}", UDP_GUARD.program);
            let pin = self.pin(id);
            let Some(guard) = self.links.get_mut(&id) else {
                continue;
            };
            let Some(cgroup) = guard.cgroup.as_ref() else {
                // Whose guard it was is found out when the workload is looked at again.
                self.links.remove(&id);
                continue;
            };
            mended.gap = true;
            let again = hooks::attach(UDP_GUARD, program, cgroup, id, &pin);
            mended.note(&what, again.map(|link| guard.link = link).map(|()| true));
        }
        let pinned: HashSet<OsString> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name())
            .collect();
        for (id, guard) in &self.links {
            let pin = self.pin(*id);
            if pin.file_name().is_some_and(|name| !pinned.contains(name)) {
                let what = format!("the pin of {} on cgroup {id}", UDP_GUARD.program);
                mended.note(&what, attach::repin(guard.link.as_fd(), &pin));
            }
        }
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
