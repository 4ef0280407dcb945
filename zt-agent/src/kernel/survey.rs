// SPDX-License-Identifier: Apache-2.0
//! What is in the kernel of ours and around it, as anybody with the privilege sees it: whether an agent runs does not matter, and
//! nothing is changed.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use aya::maps::MapInfo;
use aya::programs::loaded_programs;
use serde::Serialize;
use zt_common::names;

use super::around::{self, Foreign, program_names};
use super::error::KernelError;
use super::hooks::{self, Hook, HookStatus, REFUSE_IN, REFUSE_OUT, SOCKET_CREATE, on_root};
use super::host::Pins;
use super::{ManagedRoot, guard, sys, versions};

/// Most bytes of a program's or map's name that the kernel keeps.
const NAME: usize = 15;

/// What a map is like. Two builds whose maps differ in it cannot use each other's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MapShape {
    /// Its name, as far as the kernel keeps it.
    pub name: String,
    /// `enum bpf_map_type`.
    pub kind: u32,
    /// Bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// `BPF_F_…`.
    pub flags: u32,
}

/// A pinned map.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedMap {
    /// Name of the pin.
    pub pin: String,
    /// Its id; `None` where the pin cannot be opened.
    pub id: Option<u32>,
    /// What it is like.
    #[serde(flatten)]
    pub shape: Option<MapShape>,
    /// Why it cannot be looked at.
    pub error: Option<String>,
}

/// A pinned link.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedLink {
    /// Name of the pin: the program's, and the id of the cgroup.
    pub pin: String,
    /// Id of the link.
    pub id: Option<u32>,
    /// Id of the program in it.
    pub program: Option<u32>,
    /// Name of that program.
    pub program_name: String,
    /// Id of the cgroup that it is attached to; 0 once that is gone.
    pub cgroup: Option<u64>,
    /// Why it cannot be looked at.
    pub error: Option<String>,
}

/// What one version of the agent has pinned.
#[derive(Clone, Debug, Serialize)]
pub struct PinnedVersion {
    /// The directory of its pins.
    pub directory: PathBuf,
    /// Whether it is the version of this build.
    pub own: bool,
    /// A removal that broke off has left it.
    pub leftover: bool,
    /// The flags of [`zt_common::control`].
    pub flags: Option<u64>,
    /// Its maps.
    pub maps: Vec<PinnedMap>,
    /// Its links.
    pub links: Vec<PinnedLink>,
}

/// The pins of every version below a directory, by their names.
pub fn pinned(bpffs: &Path) -> Result<Vec<PinnedVersion>, KernelError> {
    let own = Pins::below(bpffs);
    let names = program_names();
    let of = |directory: PathBuf| {
        let pins = Pins::at(directory.clone());
        PinnedVersion {
            own: directory == own.root(),
            leftover: versions::is_leftover(&directory),
            flags: versions::flags(&directory),
            maps: list(&pins.maps())
                .into_iter()
                .map(|path| pinned_map(&path))
                .collect(),
            links: list(&pins.links())
                .into_iter()
                .map(|path| pinned_link(&path, &names))
                .collect(),
            directory,
        }
    };
    Ok(versions::versions(bpffs)?.into_iter().map(of).collect())
}

fn list(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

fn name_of(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn pinned_map(path: &Path) -> PinnedMap {
    let pin = name_of(path);
    match sys::open_pin(path).and_then(|map| sys::head(map.as_fd())) {
        Ok(head) => PinnedMap {
            id: Some(head.id),
            shape: Some(MapShape {
                name: pin.chars().take(NAME).collect(),
                kind: head.kind,
                key_size: head.key_size,
                value_size: head.value_size,
                max_entries: head.max_entries,
                flags: head.flags,
            }),
            error: None,
            pin,
        },
        Err(error) => PinnedMap {
            pin,
            id: None,
            shape: None,
            error: Some(error.to_string()),
        },
    }
}

fn pinned_link(path: &Path, names: &HashMap<u32, String>) -> PinnedLink {
    let pin = name_of(path);
    match sys::open_pin(path).and_then(|link| sys::link_info(link.as_fd())) {
        Ok(info) => PinnedLink {
            pin,
            id: Some(info.id),
            program: Some(info.program),
            program_name: names.get(&info.program).cloned().unwrap_or_default(),
            cgroup: Some(info.cgroup),
            error: None,
        },
        Err(error) => PinnedLink {
            pin,
            id: None,
            program: None,
            program_name: String::new(),
            cgroup: None,
            error: Some(error.to_string()),
        },
    }
}

/// The maps that some programs use, once each.
pub(super) fn maps_of_programs(programs: &[u32]) -> Vec<MapShape> {
    let mut found = BTreeMap::new();
    let infos = loaded_programs().flatten();
    for info in infos.filter(|info| programs.contains(&info.id())) {
        for id in info.map_ids().ok().flatten().unwrap_or_default() {
            if let Ok(map) = MapInfo::from_id(id) {
                found.insert(id, shape(&map));
            }
        }
    }
    found.into_values().collect()
}

fn shape(map: &MapInfo) -> MapShape {
    MapShape {
        name: map.name_as_str().unwrap_or_default().to_owned(),
        kind: map.map_type().map_or(0, |kind| kind as u32),
        key_size: map.key_size(),
        value_size: map.value_size(),
        max_entries: map.max_entries(),
        flags: map.map_flags(),
    }
}

/// The hooks of this build's version on managed roots, with the packet guard or without, and at the sockhash of refused sockets, as the
/// kernel reports them.
pub fn hooks_at(bpffs: &Path, roots: &[ManagedRoot], packet_guard: bool) -> Vec<HookStatus> {
    let pins = Pins::below(bpffs);
    let names = program_names();
    let mut found = Vec::new();
    for root in roots {
        let of = |hook| hook_at(&pins, hook, root, &names);
        found.extend(on_root(packet_guard).map(of));
        // Where it is not pinned, the kernel does not have it.
        found.extend(
            pin_of(&pins, SOCKET_CREATE, root)
                .exists()
                .then(|| of(SOCKET_CREATE)),
        );
    }
    let refused = sys::open_pin(&pins.map(names::REFUSED)).ok();
    found.extend([REFUSE_IN, REFUSE_OUT].map(|hook| refused_at(refused.as_ref(), hook, &names)));
    found
}

fn pin_of(pins: &Pins, hook: Hook, root: &ManagedRoot) -> PathBuf {
    pins.links().join(format!("{}-{}", hook.program, root.id))
}

fn hook_at(pins: &Pins, hook: Hook, root: &ManagedRoot, names: &HashMap<u32, String>) -> HookStatus {
    let link = sys::open_pin(&pin_of(pins, hook, root)).ok();
    let info = link.as_ref().and_then(|link| sys::link_info(link.as_fd()).ok());
    let is_ours = |id: &u32| names.get(id).is_some_and(|name| is_named(name, hook.program));
    let Some((link, info)) = link.zip(info).filter(|(_, info)| is_ours(&info.program)) else {
        return HookStatus {
            program: hook.program,
            attach_type: hook.attach_name(),
            program_id: None,
            link_id: None,
            cgroup: root.path.clone(),
            attached: false,
            others: 0,
        };
    };
    hooks::check(hook, link.as_fd(), &root.path, root.id, info.program)
}

fn refused_at(map: Option<&OwnedFd>, hook: Hook, names: &HashMap<u32, String>) -> HookStatus {
    let there = map.and_then(|map| sys::program_of_map(map.as_fd(), hook.attach_type).ok()?);
    let is_ours = |id: &u32| names.get(id).is_some_and(|name| is_named(name, hook.program));
    HookStatus {
        program: hook.program,
        attach_type: hook.attach_name(),
        program_id: there,
        link_id: None,
        cgroup: PathBuf::from(names::REFUSED),
        attached: there.as_ref().is_some_and(is_ours),
        others: 0,
    }
}

/// Whether the name that the kernel keeps of a program is that of `program`.
fn is_named(kept: &str, program: &str) -> bool {
    !kept.is_empty() && program.chars().take(NAME).eq(kept.chars())
}

/// Programs of others that may change a destination, beside hooks as [`hooks_at`] tells of them.
pub fn foreign_beside(hooks: &[HookStatus], below: &[PathBuf]) -> Vec<Foreign> {
    around::foreign(hooks.to_vec(), below)
}

/// Whether links are guards of single workloads, by the names of their pins.
pub fn is_guard(pin: &str) -> bool {
    guard::is_pin(Path::new(pin))
}

/// A program of somebody else that lets no other be beside it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Alone {
    /// Where it is attached.
    pub cgroup: PathBuf,
    /// The hook, as bpftool calls it.
    pub attach_type: &'static str,
    /// Its name.
    pub name: String,
}

/// Programs that would keep ours, the packet guard among them or not, from being attached to `root`, below the cgroup2 mount.
pub fn in_the_way(mount: &Path, root: &Path, packet_guard: bool) -> Vec<Alone> {
    let names = program_names();
    let mut found = Vec::new();
    for cgroup in root.ancestors().take_while(|cgroup| cgroup.starts_with(mount)) {
        let Ok(directory) = File::open(cgroup) else {
            continue;
        };
        for hook in on_root(packet_guard) {
            let Ok(own) = sys::own_programs_at(directory.as_fd(), hook.attach_type) else {
                continue;
            };
            let gives_way = if cgroup == root {
                own.share()
            } else {
                own.yield_below()
            };
            let first = own.ids.first().filter(|_| !gives_way);
            found.extend(first.map(|id| Alone {
                cgroup: cgroup.to_path_buf(),
                attach_type: hook.attach_name(),
                name: names.get(id).cloned().unwrap_or_default(),
            }));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_compared_as_far_as_the_kernel_keeps_them() {
        assert!(is_named("zt_sock_release", "zt_sock_release"));
        assert!(is_named("zt_a_name_that_", "zt_a_name_that_goes_on"));
        assert!(!is_named("zt_connect4", "zt_connect6") && !is_named("", "zt_connect4"));
        assert!(!is_named("zt_connect", "zt_connect4"));
    }

    #[test]
    fn where_nothing_is_pinned_nothing_is_found() {
        let directory = tempfile::tempdir().expect("tempdir");
        assert!(pinned(&directory.path().join("none")).expect("read").is_empty());
    }
}
