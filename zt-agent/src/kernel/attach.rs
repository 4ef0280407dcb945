// SPDX-License-Identifier: Apache-2.0
//! Everything that must be attached and pinned for enforcement to hold: put in place, asked for, and put back.

use std::fs;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use zt_common::names;

use super::error::KernelError;
use super::hooks::{self, Hook, HookStatus, REFUSE_IN, REFUSE_OUT, SOCKET_CREATE, UDP_GUARD};
use super::versions::{self, Removal};
use super::{Kernel, ManagedRoot, guard, sys};

/// A hook on a managed root.
pub(super) struct Attached {
    hook: Hook,
    link: OwnedFd,
    root: ManagedRoot,
    /// Id of the program that this agent put into the link.
    program: u32,
}

/// What was found missing.
#[derive(Debug, Default)]
pub struct Mended {
    /// Everything of this version was removed on purpose, and stays so until somebody starts an agent.
    pub detached: bool,
    /// What was put back.
    pub restored: Vec<String>,
    /// What could not be put back.
    pub problems: Vec<KernelError>,
    /// Whether traffic may have passed undecided meanwhile.
    pub gap: bool,
}

/// How it stands with the directory of the pins.
enum Place {
    There,
    MadeAnew,
    Detached,
}

impl Kernel {
    /// Attaches the hooks to the managed roots, or takes over those that are there. Hooks of roots that are no longer
    /// managed go, and those that are no longer wanted.
    pub fn attach(&mut self, roots: &[ManagedRoot]) -> Result<(), KernelError> {
        self.hold_place()?;
        for hook in [REFUSE_IN, REFUSE_OUT] {
            self.attach_to_refused(hook)?;
        }
        self.guards
            .take_over(self.loaded.program(UDP_GUARD.program)?.as_fd())?;
        let wanted = hooks::on_root(self.loaded.packet_guard);
        let mut attached = Vec::new();
        for root in roots {
            for hook in wanted.clone() {
                attached.push(self.attach_to(hook, root)?);
            }
        }
        attached.extend(self.attach_socket_create(roots));
        self.attached = attached;
        self.remove_stale_links()
    }

    /// Attaches the program of a hook to a managed root, or puts it into the link that is there.
    pub(super) fn attach_to(&self, hook: Hook, root: &ManagedRoot) -> Result<Attached, KernelError> {
        let program = self.loaded.program(hook.program)?.as_fd();
        let pin = self.pin_of(hook, root);
        let link = hooks::attach(hook, program, &root.path, root.id, &pin)?;
        let info = sys::link_info(link.as_fd()).map_err(KernelError::io("inspect the link", &pin))?;
        Ok(Attached {
            hook,
            link,
            root: root.clone(),
            program: info.program,
        })
    }

    fn attach_to_refused(&self, hook: Hook) -> Result<(), KernelError> {
        let program = self.loaded.program(hook.program)?.as_fd();
        sys::attach_to_map(program, self.refused()?, hook.attach_type).map_err(|source| KernelError::Attach {
            program: hook.program,
            cgroup: self.pins.map(names::REFUSED),
            source,
        })
    }

    fn refused(&self) -> Result<BorrowedFd<'_>, KernelError> {
        let mut maps = self.loaded.maps();
        let map = maps.find(|(name, _)| *name == names::REFUSED);
        map.map(|(_, map)| map)
            .ok_or_else(|| KernelError::map(names::REFUSED)("not in the object"))
    }

    pub(super) fn pin_of(&self, hook: Hook, root: &ManagedRoot) -> PathBuf {
        self.pins.links().join(format!("{}-{}", hook.program, root.id))
    }

    /// Removes pinned links that belong to no root of ours, or to no hook that is wanted.
    fn remove_stale_links(&self) -> Result<(), KernelError> {
        // Where the program of packet sockets could not be attached, that of before goes on.
        let wanted: Vec<PathBuf> = self
            .attached
            .iter()
            .flat_map(|a| [a.hook, SOCKET_CREATE].map(|hook| self.pin_of(hook, &a.root)))
            .collect();
        let links = self.pins.links();
        let entries = fs::read_dir(&links).map_err(KernelError::io("list", &links))?;
        for path in entries.flatten().map(|entry| entry.path()) {
            if !wanted.contains(&path) && !guard::is_pin(&path) {
                fs::remove_file(&path).map_err(KernelError::io("remove the stale pin", &path))?;
            }
        }
        Ok(())
    }

    /// The hooks as the kernel reports them: those of the roots, those of the sockhash, and the guards that are missing.
    pub fn hooks(&self) -> Vec<HookStatus> {
        let roots = self.attached.iter().map(Attached::status);
        let refused = [REFUSE_IN, REFUSE_OUT].map(|hook| self.refused_status(hook));
        let guards = self.guards.missing().map(|(id, info)| HookStatus {
            program: UDP_GUARD.program,
            attach_type: UDP_GUARD.attach_name(),
            program_id: info.map(|info| info.program),
            link_id: info.map(|info| info.id),
            cgroup: PathBuf::from(format!("cgroup {id}")),
            attached: false,
            others: 0,
        });
        roots.chain(refused).chain(guards).collect()
    }

    fn refused_status(&self, hook: Hook) -> HookStatus {
        let ours = self.loaded.program(hook.program).ok();
        let ours = ours.and_then(|program| sys::id_of(program.as_fd()).ok());
        let there = self
            .refused()
            .ok()
            .and_then(|map| sys::program_of_map(map, hook.attach_type).ok()?);
        HookStatus {
            program: hook.program,
            attach_type: hook.attach_name(),
            program_id: there,
            link_id: None,
            cgroup: PathBuf::from(names::REFUSED),
            attached: there.is_some() && there == ours,
            others: 0,
        }
    }

    /// Whether there are hooks on managed roots at all.
    pub fn is_attached(&self) -> bool {
        !self.attached.is_empty()
    }

    /// Asks the kernel for every hook, link and pin of ours, and puts back what is missing, the directory of the pins with its
    /// lock and the file system below it included. Hooks whose cgroup is gone are not missed.
    pub fn mend(&mut self) -> Mended {
        let mut mended = Mended::default();
        match self.find_place() {
            Ok(Place::There) => {}
            Ok(Place::MadeAnew) => mended.restored.push(self.place()),
            Ok(Place::Detached) => {
                mended.detached = true;
                return mended;
            }
            Err(error) => {
                mended.problems.push(error);
                return mended;
            }
        }
        if let Err(error) = self.pins.complete() {
            mended.problems.push(error);
        }
        for (name, map) in self.loaded.maps() {
            mended.note(name, repin(map, &self.pins.map(name)));
        }
        for hook in [REFUSE_IN, REFUSE_OUT] {
            if !self.refused_status(hook).attached {
                mended.gap = true;
                mended.note(hook.program, self.attach_to_refused(hook).map(|()| true));
            }
        }
        for index in 0..self.attached.len() {
            let Attached { hook, ref root, .. } = self.attached[index];
            let (hook, root) = (hook, root.clone());
            let what = format!("{} on {}", hook.program, root.path.display());
            let pin = self.pin_of(hook, &root);
            if !self.attached[index].status().attached && root.path.is_dir() {
                mended.gap = true;
                let again = self.attach_again(index, &pin);
                mended.note(&what, again.map(|()| true));
            } else {
                mended.note(&what, repin(self.attached[index].link.as_fd(), &pin));
            }
        }
        match self.loaded.program(UDP_GUARD.program) {
            Ok(program) => self.guards.mend(program.as_fd(), &mut mended),
            Err(error) => mended.problems.push(error),
        }
        mended
    }

    /// Finds the directory of the pins, and makes it anew where it was lost: with the file system, or by hand.
    fn find_place(&self) -> Result<Place, KernelError> {
        // One that cannot be looked at is not gone.
        let is_gone = self.pins.root().try_exists().is_ok_and(|there| !there);
        if is_gone && self.was_removed() {
            return Ok(Place::Detached);
        }
        let was_lost = self.hold_place()?;
        // One that has gone since is judged when it is looked at next: it may be that somebody removes it on purpose.
        if !is_gone && !was_lost {
            return Ok(Place::There);
        }
        self.pins.prepare()?;
        Ok(Place::MadeAnew)
    }

    /// Makes sure that the directory in which pins are made and removed is this agent's. Whether it was not until now.
    pub(super) fn hold_place(&self) -> Result<bool, KernelError> {
        let lost = !self.lock.is_in_place();
        if lost {
            self.lock.renew()?;
        }
        Ok(lost)
    }

    /// Whether the directory of the pins is gone because somebody removed this version on purpose. Who does renames it first,
    /// detaches every link before it is gone, and leaves the directory that is locked.
    fn was_removed(&self) -> bool {
        if versions::is_going(&self.pins) {
            return true;
        }
        let mut hooks = self
            .attached
            .iter()
            .filter(|hook| hook.root_is_there())
            .peekable();
        if hooks.peek().is_none() {
            // No root, no link: what is left to go by is the directory around it.
            return self.lock.is_in_place();
        }
        hooks.all(Attached::is_off)
    }

    fn place(&self) -> String {
        format!("the directory {}", self.pins.root().display())
    }

    /// Puts our program into the link of a hook, or a new link in its place.
    fn attach_again(&mut self, index: usize, pin: &Path) -> Result<(), KernelError> {
        let Attached { hook, ref root, .. } = self.attached[index];
        let program = self.loaded.program(hook.program)?.as_fd();
        let link = hooks::attach(hook, program, &root.path, root.id, pin)?;
        self.attached[index].link = link;
        Ok(())
    }

    /// Takes away the programs of other ABI versions that judge handshakes and segments, once every hook of this one is in place:
    /// those are to judge them at once, and not when all else has gone.
    pub fn end_other_handshakes(&self) {
        if self.is_beside() && self.is_whole() {
            for directory in versions::others(&self.pins).unwrap_or_default() {
                versions::end_handshakes(&directory);
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.is_attached() && self.hooks().iter().all(|hook| hook.attached)
    }

    /// Removes the pins of other ABI versions, once every hook of this one is in place. `None` if there are none.
    pub fn remove_other_versions(&self) -> Result<Option<Removal>, KernelError> {
        let others = versions::others(&self.pins)?;
        if others.is_empty() || !self.is_whole() {
            return Ok(None);
        }
        let mut removal = Removal::default();
        for directory in others {
            tracing::warn!(directory = %directory.display(), "the hooks of this version are in place: removing those of another");
            versions::remove(&directory, &mut removal);
        }
        Ok(Some(removal))
    }

    /// Whether programs of another ABI version judge handshakes beside these. What is only left of one does not.
    pub fn is_beside(&self) -> bool {
        let others = versions::others(&self.pins).unwrap_or_default();
        others
            .iter()
            .any(|directory| versions::judges_handshakes(directory))
    }

    /// What other versions knew of listeners is not needed any more.
    pub fn forget_other_versions(&mut self) {
        self.elders.clear();
        self.succeeds = false;
    }

    /// The flags of [`zt_common::control`] that another ABI version left, where this one starts for the first time.
    pub fn flags_of_other_versions(&self) -> u64 {
        let others = versions::others(&self.pins).unwrap_or_default();
        others
            .iter()
            .filter_map(|directory| versions::flags(directory))
            .fold(0, |all, flags| all | flags)
    }
}

impl Attached {
    /// The directory of the managed root that it is on.
    pub(super) fn root(&self) -> &Path {
        &self.root.path
    }

    /// Whether the cgroup that it is on still exists.
    fn root_is_there(&self) -> bool {
        fs::metadata(&self.root.path).is_ok_and(|there| there.ino() == self.root.id)
    }

    /// Whether somebody has detached the link, whoever still holds it.
    fn is_off(&self) -> bool {
        sys::link_info(self.link.as_fd()).is_ok_and(|info| info.cgroup == 0)
    }

    fn status(&self) -> HookStatus {
        let (path, id) = (&self.root.path, self.root.id);
        hooks::check(self.hook, self.link.as_fd(), path, id, self.program)
    }
}

impl Mended {
    /// Notes what came of looking after one thing: whether it was put back.
    pub(super) fn note(&mut self, what: &str, outcome: Result<bool, KernelError>) {
        match outcome {
            Ok(false) => {}
            Ok(true) => self.restored.push(what.to_owned()),
            Err(error) => self.problems.push(error),
        }
    }
}

/// Has `object` pinned at `pin`. Whether it was not.
pub(super) fn repin(object: BorrowedFd<'_>, pin: &Path) -> Result<bool, KernelError> {
    let there = sys::open_pin(pin).and_then(|there| sys::id_of(there.as_fd()));
    let ours = sys::id_of(object).map_err(KernelError::io("inspect what belongs at", pin))?;
    if there.is_ok_and(|there| there == ours) {
        return Ok(false);
    }
    // Something else may be there by now.
    let _ = fs::remove_file(pin);
    sys::pin(object, pin).map_err(KernelError::io("pin again at", pin))?;
    Ok(true)
}
