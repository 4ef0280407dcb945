// SPDX-License-Identifier: Apache-2.0
//! All cgroups and all programs of the machine, for whoever has to find out what is there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use aya::programs::loaded_programs;
use serde::Serialize;

use super::around::program_names;
use super::hooks::{Hook, SOCKET_CREATE, on_root};
use super::sys;

/// The programs attached to one cgroup.
#[derive(Clone, Debug, Serialize)]
pub struct CgroupPrograms {
    /// The cgroup's directory.
    pub cgroup: PathBuf,
    /// Its id.
    pub id: u64,
    /// By hook, in the order in which they run: id and name of each.
    pub programs: BTreeMap<&'static str, Vec<(u32, String)>>,
}

/// The cgroups of a tree, at most `most`, with the programs that are attached to each itself at a hook that ours have too.
pub fn tree(mount: &Path, most: usize) -> io::Result<Vec<CgroupPrograms>> {
    let names = program_names();
    // The receive guard of single workloads is at a hook of the packet guard.
    let hooks: Vec<Hook> = on_root(true).chain([SOCKET_CREATE]).collect();
    let mut pending = vec![mount.to_path_buf()];
    let mut found = Vec::new();
    while let Some(cgroup) = pending.pop() {
        if found.len() >= most {
            break;
        }
        let Ok(directory) = File::open(&cgroup) else {
            // Gone since it was listed.
            continue;
        };
        let mut programs = BTreeMap::new();
        for hook in &hooks {
            let own = sys::own_programs_at(directory.as_fd(), hook.attach_type).unwrap_or_default();
            if !own.ids.is_empty() {
                let named = |id: u32| (id, names.get(&id).cloned().unwrap_or_default());
                programs.insert(hook.attach_name(), own.ids.into_iter().map(named).collect());
            }
        }
        let mut below: Vec<PathBuf> = fs::read_dir(&cgroup)
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        below.sort_by(|a, b| b.cmp(a));
        pending.extend(below);
        let id = std::os::unix::fs::MetadataExt::ino(&directory.metadata()?);
        found.push(CgroupPrograms { cgroup, id, programs });
    }
    Ok(found)
}

/// A program that is loaded.
#[derive(Clone, Debug, Serialize)]
pub struct LoadedProgram {
    /// Its id.
    pub id: u32,
    /// Its name.
    pub name: String,
    /// `enum bpf_prog_type`.
    pub kind: u32,
    /// A hash of its instructions.
    pub tag: String,
    /// Instructions that the verifier walked; `None` where the kernel does not say.
    pub verified: Option<u32>,
    /// Bytes of machine code; 0 without a JIT compiler.
    pub jitted: u32,
    /// Its maps.
    pub maps: Vec<u32>,
}

/// All programs that are loaded, of whomever.
pub fn programs() -> Vec<LoadedProgram> {
    let of = |info: aya::programs::ProgramInfo| LoadedProgram {
        id: info.id(),
        name: info.name_as_str().unwrap_or_default().to_owned(),
        kind: info.program_type() as u32,
        tag: format!("{:016x}", info.tag()),
        verified: info.verified_instruction_count(),
        jitted: info.size_jitted(),
        maps: info.map_ids().ok().flatten().unwrap_or_default(),
    };
    loaded_programs().flatten().map(of).collect()
}
