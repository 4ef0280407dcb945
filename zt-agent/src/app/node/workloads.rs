// SPDX-License-Identifier: Apache-2.0
//! Who is who on this node: declared workloads, the cgroups that are theirs, and the addresses at which they are reached.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use zt_common::abi::{MODE_ENFORCE, MODE_OBSERVE, PEER_HERE, Peer, Workload};
use zt_common::address::Address;
use zt_common::entry::ACTION_ALLOW;
use zt_common::identity;

use super::{AppError, Node, level};
use crate::cgroup;
use crate::config::Config;
use crate::identity::{Mode, WorkloadRecord, file as identity_file};
use crate::kernel::netns;
use crate::kernel::{Directory, ManagedRoot};
use crate::problem::Problem;
use crate::state::Placed;
use crate::state::merge;

/// How far below a managed root a workload may lie: the kernel side looks for ancestors that deep.
const DEPTH: u32 = 8;

/// The workloads of the file.
pub(in crate::app) fn read(
    contents: &identity_file::Contents,
    config: &Config,
    roots: &[PathBuf],
) -> Result<Vec<WorkloadRecord>, Vec<Problem>> {
    let file = config.identity.file.display().to_string();
    let text = contents.0.as_ref().map_err(|problem| vec![problem.clone()])?;
    let records = identity_file::parse(text, &file, &config.trust_domain, roots)?;
    let too_deep: Vec<Problem> = records
        .iter()
        .filter_map(|record| {
            let root = roots.iter().find(|root| record.cgroup.starts_with(root))?;
            let depth = level(&record.cgroup).saturating_sub(level(root));
            (depth > DEPTH).then(|| Problem {
                file: file.clone(),
                line: 0,
                column: 0,
                field: "workloads[].cgroup".into(),
                message: format!(
                    "{} lies {depth} levels below {}; a workload's own cgroup may lie at most {DEPTH} below (cgroups nested in it may be deeper)",
                    record.cgroup.display(),
                    root.display(),
                ),
            })
        })
        .collect();
    if too_deep.is_empty() {
        Ok(records)
    } else {
        Err(too_deep)
    }
}

/// Managed roots by their paths below the mount.
pub(in crate::app) fn roots(present: &[PathBuf], mount: &Path) -> Vec<ManagedRoot> {
    present
        .iter()
        .filter_map(|path| {
            let path = mount.join(path);
            let below = path.strip_prefix(mount).ok()?;
            let id = cgroup::id_of(&path).ok()?;
            Some(ManagedRoot {
                level: level(below),
                id,
                path,
            })
        })
        .collect()
}

impl Node {
    /// The workloads file changed. Whether what it declares did.
    pub(super) fn workloads_changed(&mut self, contents: &identity_file::Contents) -> bool {
        match read(contents, &self.parts.config, &self.parts.root_paths) {
            Ok(records) => {
                tracing::info!(workloads = records.len(), "workloads loaded");
                self.records = records;
                true
            }
            Err(problems) => {
                for problem in problems {
                    tracing::error!("workloads not loaded, those known stay: {problem}");
                }
                false
            }
        }
    }

    /// The identities that policy patterns are expanded for. They only grow, until a change of policy starts anew.
    pub(super) fn gather_identities(&mut self) {
        for record in &self.records {
            if !self.identities.contains(&record.spiffe) {
                self.identities.insert(record.spiffe.clone());
            }
        }
    }

    /// Each declared workload and its cgroups.
    pub(super) fn placed(&self) -> Vec<Placed> {
        merge::place(&self.records, &self.cgroups, self.parts.config.mode)
    }

    /// Writes who is who into the kernel.
    pub(super) fn direct(&mut self) -> Result<(), AppError> {
        let mut directory = Directory::default();
        for address in netns::addresses().unwrap_or_default() {
            let host = Peer {
                identity: identity::HOST,
                flags: PEER_HERE,
                reserved: 0,
            };
            directory.peers.insert(address, host);
        }
        for placed in self.placed() {
            let identity = placed.record.spiffe.number();
            let mode = match placed.mode {
                Mode::Enforce => MODE_ENFORCE,
                Mode::Observe => MODE_OBSERVE,
            };
            let workload = Workload {
                identity,
                mode,
                reserved: [0; 7],
            };
            directory
                .workloads
                .extend(placed.cgroup_ids.iter().map(|id| (*id, workload)));
            let peer = Peer {
                identity,
                flags: PEER_HERE,
                reserved: 0,
            };
            directory.peers.extend(
                placed
                    .record
                    .addresses
                    .iter()
                    .map(|ip| (Address::from(*ip), peer)),
            );
        }
        self.keep_the_lost(&mut directory.workloads);
        self.parts.kernel.direct(&directory)?;
        Ok(())
    }

    /// A workload that was enforced upon stays so when its identity is lost: as long as its cgroup exists it is
    /// nobody, and refused what nobody may do.
    fn keep_the_lost(&self, wanted: &mut HashMap<u64, Workload>) {
        for (id, workload) in self.parts.kernel.workloads() {
            let present = self.paths.contains_key(id);
            if workload.mode == MODE_ENFORCE && present && !wanted.contains_key(id) {
                wanted.insert(
                    *id,
                    Workload {
                        identity: identity::UNKNOWN,
                        ..*workload
                    },
                );
            }
        }
    }

    /// Guards the datagrams of one workload.
    pub(super) fn guard(&mut self, id: u64) -> Result<(), AppError> {
        if let Some(directory) = self.directory(id) {
            self.parts.kernel.guard(&directory, id)?;
        }
        Ok(())
    }

    /// Guards the workloads that policy makes destinations of UDP before they bind a port.
    pub(super) fn guard_receivers(&mut self) {
        let snapshot = self.parts.snapshots.borrow().clone();
        let receivers: std::collections::HashSet<u64> = snapshot
            .table
            .entries()
            .filter(|(key, entry)| key.protocol == UDP && entry.bits == ACTION_ALLOW)
            .map(|(key, _)| key.destination)
            .collect();
        if receivers.is_empty() {
            return;
        }
        let own: Vec<u64> = self
            .placed()
            .into_iter()
            .filter(|placed| {
                receivers.contains(&identity::ANY) || receivers.contains(&placed.record.spiffe.number())
            })
            .filter_map(|placed| self.cgroups.get(&placed.record.cgroup).copied())
            .collect();
        for id in own {
            // A cgroup may be gone by now; whatever it is, a guard that fails must not hold up the rest.
            if let Err(error) = self.guard(id) {
                tracing::warn!(%error, cgroup = id, "the datagrams of a workload are not guarded");
            }
        }
    }
}

const UDP: u8 = 17;
