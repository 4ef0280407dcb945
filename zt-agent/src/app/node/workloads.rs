// SPDX-License-Identifier: Apache-2.0
//! Who is who on this node: declared workloads, the cgroups that are theirs, and the addresses at which they are reached.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zt_common::abi::{MODE_ENFORCE, MODE_OBSERVE, PEER_HERE, Peer, Workload};
use zt_common::address::Address;
use zt_common::identity;
use zt_common::names::{MAX_PEERS, MAX_WORKLOADS};

use super::cgroups::Cgroups;
use super::{AppError, Node, level};
use crate::cgroup::{self, CgroupEvent};
use crate::config::Config;
use crate::identity::merge::{Merged, merge};
use crate::identity::spire::{Attestation, Attested};
use crate::identity::{Mode, WorkloadRecord, file as identity_file};
use crate::kernel::netns;
use crate::kernel::{Directory, ManagedRoot};
use crate::metrics::NodeEvent;
use crate::problem::Problem;
use crate::spiffe_id::SpiffeId;
use crate::state::Placed;
use crate::state::merge::Places;

/// How far below a managed root a workload may lie: the kernel side looks for ancestors that deep.
pub(in crate::app) const DEPTH: u32 = 8;

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
    let addresses = records.iter().map(|record| record.addresses.len()).sum();
    let too_many = [
        ("workloads", records.len(), MAX_WORKLOADS),
        ("workloads[].addresses", addresses, MAX_PEERS),
    ]
    .into_iter()
    .filter_map(|(field, needed, limit)| does_not_fit(&file, field, needed, limit));
    let problems: Vec<Problem> = too_deep.into_iter().chain(too_many).collect();
    if problems.is_empty() {
        Ok(records)
    } else {
        Err(problems)
    }
}

/// The problem of a list that is longer than the kernel's map for it.
fn does_not_fit(file: &str, field: &str, needed: usize, limit: u32) -> Option<Problem> {
    (needed > limit as usize).then(|| Problem {
        file: file.into(),
        line: 0,
        column: 0,
        field: field.into(),
        message: format!("{needed} are listed, and a node holds at most {limit}"),
    })
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

/// What the kernel is told of a workload.
pub(super) fn entry(placed: &Placed) -> Workload {
    Workload {
        identity: placed.record.spiffe.number(),
        mode: match placed.mode {
            Mode::Enforce => MODE_ENFORCE,
            Mode::Observe => MODE_OBSERVE,
        },
        reserved: [0; 7],
    }
}

/// What came of writing who is who.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    /// A cgroup is another workload than it was, or in another mode.
    pub renamed: bool,
    /// A cgroup inside a workload's became one of its own.
    pub resettled: bool,
}

impl Node {
    /// The workloads file changed. Whether there is something new to put together.
    pub(super) fn workloads_changed(&mut self, contents: &identity_file::Contents) -> bool {
        match read(contents, &self.parts.config, &self.parts.root_paths) {
            Ok(records) => {
                tracing::info!(workloads = records.len(), "workloads loaded");
                self.declared = records.into_iter().map(Arc::new).collect();
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

    /// SPIRE says who a cgroup is, or that it is nobody. Whether that is another than it was.
    pub(super) fn attested(&mut self, said: Attestation) -> bool {
        if self.cgroups.id(&said.cgroup) != Some(said.cgroup_id) {
            // It has gone meanwhile; at its path there may be another one.
            return false;
        }
        let name = |(id, identity): (u64, Attested)| (id, identity.spiffe);
        let now = said.identity.map(|identity| (said.cgroup_id, identity));
        let before = match now.clone() {
            Some(now) => self.attested.insert(said.cgroup, now),
            None => self.attested.remove(&said.cgroup),
        };
        now.map(name) != before.map(name)
    }

    /// A cgroup has gone, and with it what SPIRE said of it. Whether it had said something.
    pub(super) fn forget_attested(&mut self, event: &CgroupEvent) -> bool {
        let CgroupEvent::Removed { path, id } = event else {
            return false;
        };
        let known = self.attested.get(path).is_some_and(|(known, _)| known == id);
        known && self.attested.remove(path).is_some()
    }

    /// Puts together what the sources say. Where they disagree is said and counted once.
    pub(super) fn put_together(&mut self) {
        let Merged { workloads, disputes } = merge(&self.declared, &self.attested);
        for dispute in disputes.iter().filter(|dispute| !self.disputes.contains(dispute)) {
            self.parts.metrics.node_event(NodeEvent::IdentityDisputed, 1);
            tracing::error!(
                cgroup = %dispute.cgroup.display(),
                file = %dispute.declared,
                spire = %dispute.attested,
                "the identity sources disagree: nobody is named by either until they agree"
            );
        }
        self.disputes = disputes;
        self.places = Places::new(workloads, self.cgroups.by_path(), self.parts.config.mode);
    }

    /// The identities that policy patterns are expanded for. They only grow, until a change of policy starts anew.
    /// Those that are new.
    pub(super) fn gather_identities(&mut self) -> HashSet<SpiffeId> {
        let mut new = HashSet::new();
        for placed in self.places.placed().iter() {
            let id = &placed.record.spiffe;
            if !self.identities.contains(id) {
                self.identities.insert(id.clone());
                new.insert(id.clone());
            }
        }
        new
    }

    /// Writes who is who into the kernel.
    pub(super) fn direct(&mut self) -> Result<Changes, AppError> {
        let mut directory = Directory::default();
        for address in netns::addresses().unwrap_or_default() {
            let host = Peer {
                identity: identity::HOST,
                flags: PEER_HERE,
                reserved: 0,
            };
            directory.peers.insert(address, host);
        }
        for placed in self.places.placed().iter() {
            let entry = entry(placed);
            // What is nested in it is found by it: it takes no room of its own.
            let here = self.cgroups.id(&placed.record.cgroup);
            let meant = |id: &u64| placed.record.cgroup_id.is_none_or(|meant| meant == *id);
            if let Some(id) = here.filter(meant) {
                directory.workloads.insert(id, entry);
            }
            let peer = Peer {
                identity: entry.identity,
                flags: PEER_HERE,
                reserved: 0,
            };
            let addresses = placed.record.addresses.iter();
            directory
                .peers
                .extend(addresses.map(|ip| (Address::from(*ip), peer)));
        }
        self.name_the_disputed(&mut directory.workloads);
        self.keep_the_lost(&mut directory.workloads);
        let before = self.parts.kernel.workloads();
        let new: Vec<u64> = directory
            .workloads
            .keys()
            .filter(|id| !before.contains_key(id))
            .copied()
            .collect();
        // A cgroup that is still there and no longer has an entry is what the one around it is.
        let fell_back = before
            .keys()
            .any(|id| !directory.workloads.contains_key(id) && self.cgroups.path(*id).is_some());
        // Whoever is attested runs already, and may have connections from when it was nobody.
        let attested = new.iter().any(|id| {
            let known = self.cgroups.path(*id).and_then(|path| self.attested.get(path));
            known.is_some_and(|(known, _)| known == id)
        });
        let directed = self.parts.kernel.direct(&directory)?;
        let workloads = self.parts.kernel.workloads();
        Ok(Changes {
            renamed: directed.renamed || fell_back || attested,
            resettled: new.iter().any(|id| self.cgroups.above(*id, workloads).is_some()),
        })
    }

    /// A cgroup that the sources disagree about is nobody, whatever is around it, and as strict as any of them would
    /// have it.
    fn name_the_disputed(&self, wanted: &mut HashMap<u64, Workload>) {
        for dispute in &self.disputes {
            if self.cgroups.id(&dispute.cgroup) != Some(dispute.cgroup_id) {
                continue;
            }
            let before = self.parts.kernel.workloads().get(&dispute.cgroup_id);
            let strict = before.is_some_and(|workload| workload.mode == MODE_ENFORCE)
                || [dispute.mode, Some(self.parts.config.mode)].contains(&Some(Mode::Enforce));
            let nobody = Workload {
                identity: identity::UNKNOWN,
                mode: if strict { MODE_ENFORCE } else { MODE_OBSERVE },
                reserved: [0; 7],
            };
            wanted.insert(dispute.cgroup_id, nobody);
        }
    }

    fn keep_the_lost(&self, wanted: &mut HashMap<u64, Workload>) {
        let lost = lost(self.parts.kernel.workloads(), &self.cgroups, wanted);
        wanted.extend(lost);
    }
}

/// A workload that was enforced upon stays so when its identity is lost: as long as its cgroup exists it is nobody, and
/// refused what nobody may do. Inside the cgroup of another one that is enforced upon it is that one.
fn lost(
    before: &HashMap<u64, Workload>,
    cgroups: &Cgroups,
    wanted: &HashMap<u64, Workload>,
) -> Vec<(u64, Workload)> {
    let is_lost = |id: u64| match cgroups.nearest(id, wanted) {
        Some(nearest) if nearest == id => false,
        Some(around) => wanted
            .get(&around)
            .is_some_and(|around| around.mode != MODE_ENFORCE),
        None => true,
    };
    before
        .iter()
        .filter(|(id, workload)| workload.mode == MODE_ENFORCE && cgroups.path(**id).is_some())
        .filter(|(id, _)| is_lost(**id))
        .map(|(id, workload)| {
            let nobody = Workload {
                identity: identity::UNKNOWN,
                ..*workload
            };
            (*id, nobody)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(identity: u64, mode: u8) -> Workload {
        Workload {
            identity,
            mode,
            reserved: [0; 7],
        }
    }

    #[test]
    fn what_was_enforced_stays_so_whatever_is_around_it() {
        let paths = [("r/pod", 1), ("r/pod/web", 2), ("r/job", 3)];
        let cgroups = Cgroups::new(paths.into_iter().map(|(path, id)| (path.into(), id)).collect());
        let (named, strict) = (identity::UNKNOWN + 7, MODE_ENFORCE);
        let before = HashMap::from([(2, workload(named, strict)), (3, workload(named, strict))]);
        let lost = |wanted: &HashMap<u64, Workload>| -> HashMap<u64, Workload> {
            lost(&before, &cgroups, wanted).into_iter().collect()
        };
        let nobody = workload(identity::UNKNOWN, strict);
        let around = HashMap::from([(1, workload(named, MODE_OBSERVE))]);
        assert_eq!(lost(&around), HashMap::from([(2, nobody), (3, nobody)]));
        let around = HashMap::from([(1, workload(named, strict))]);
        assert_eq!(lost(&around), HashMap::from([(3, nobody)]));
        // The file says so of itself: that is no loss.
        let itself = HashMap::from([(2, workload(named, MODE_OBSERVE)), (3, workload(named, strict))]);
        assert!(lost(&itself).is_empty());
    }
}
