// SPDX-License-Identifier: Apache-2.0
//! Who is who on this node: declared workloads, the cgroups that are theirs, and the addresses at which they are reached.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use zt_common::abi::{MODE_ENFORCE, MODE_OBSERVE, Workload};
use zt_common::names::{MAX_PEERS, MAX_WORKLOADS};

use super::numbers::Numbers;
use super::{Node, level};
use crate::audit::convert::IdentityChange;
use crate::audit::pipeline::ApiEvent;
use crate::cgroup::{self, CgroupEvent};
use crate::config::{Config, IdentitySource};
use crate::identity::merge::{Merged, Said, merge};
use crate::identity::spire::Attestation;
use crate::identity::{Mode, WorkloadRecord, file as identity_file};
use crate::kernel::ManagedRoot;
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
pub(super) fn entry(placed: &Placed, numbers: &Numbers) -> Workload {
    Workload {
        identity: numbers.workload(&placed.record.spiffe),
        mode: match placed.mode {
            Mode::Enforce => MODE_ENFORCE,
            Mode::Observe => MODE_OBSERVE,
        },
        reserved: [0; 7],
    }
}

impl Node {
    /// The workloads file changed. Whether there is something new to put together.
    pub(super) fn workloads_changed(&mut self, contents: &identity_file::Contents) -> bool {
        match read(contents, &self.parts.config, &self.parts.root_paths) {
            Ok(records) => {
                tracing::info!(workloads = records.len(), "workloads loaded");
                let declared: Vec<_> = records.into_iter().map(Arc::new).collect();
                self.file_is_new |= self.declared != declared;
                self.declared = declared;
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
        let before = match said.identity.clone() {
            Ok(identity) => self
                .attested
                .insert(said.cgroup.clone(), (said.cgroup_id, identity)),
            Err(_) => self.attested.remove(&said.cgroup),
        };
        let before = before
            .filter(|(id, _)| *id == said.cgroup_id)
            .map(|(_, identity)| identity.spiffe);
        let (now, cause) = match said.identity {
            Ok(identity) => (Some(identity.spiffe), "renamed"),
            Err(withdrawal) => (None, withdrawal.cause()),
        };
        if now == before {
            return false;
        }
        // Who was nobody before is no news to an auditor: every workload begins so.
        if let Some(from) = before {
            self.record_identity(IdentityChange {
                caller: "spire",
                cgroup: said.cgroup.display().to_string(),
                from: Some(from.text()),
                to: now.map(|to| to.text()),
                cause,
                says: None,
                revision: self.revision,
            });
        }
        true
    }

    /// Has it recorded that a workload is no longer who it was. Where there is no room for it, it is counted as lost.
    fn record_identity(&self, change: IdentityChange) {
        self.parts.intake.note(ApiEvent::IdentityChanged(change));
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
        let sources = &self.parts.config.identity;
        let Merged {
            workloads,
            disputes,
            nobody,
            unnamed,
        } = merge(&Said {
            file: &self.declared,
            pods: &self.pods,
            spire: sources.has(IdentitySource::Spire).then_some(&self.attested),
        });
        for dispute in disputes.iter().filter(|dispute| !self.disputes.contains(dispute)) {
            self.parts.metrics.node_event(NodeEvent::IdentityDisputed, 1);
            tracing::error!(
                cgroup = %dispute.cgroup.display(),
                file = dispute.file.as_ref().map(SpiffeId::as_str),
                kubernetes = dispute.kubernetes.as_ref().map(SpiffeId::as_str),
                spire = dispute.spire.as_ref().map(SpiffeId::as_str),
                "the identity sources disagree: nobody is named by either until they agree"
            );
            self.record_identity(IdentityChange {
                caller: "sources",
                cgroup: dispute.cgroup.display().to_string(),
                from: None,
                to: None,
                cause: "disputed",
                says: Some(serde_json::json!({
                    "file": dispute.file.as_ref().map(SpiffeId::as_str),
                    "kubernetes": dispute.kubernetes.as_ref().map(SpiffeId::as_str),
                    "spire": dispute.spire.as_ref().map(SpiffeId::as_str),
                })),
                revision: self.revision,
            });
        }
        self.disputes = disputes;
        self.nobody = nobody;
        self.unnamed.set(&unnamed, &self.modes);
        self.waiting = unnamed;
        self.note_enforced();
        self.places = Places::new(workloads, self.cgroups.by_path(), &self.modes);
    }

    /// Notes who enforces by which name, before that may be lost.
    fn note_enforced(&mut self) {
        for placed in self.places.placed().iter() {
            if placed.mode == Mode::Enforce
                && let Some(id) = self.cgroup_of(placed)
            {
                self.enforced_as.note(id, &placed.record);
            }
        }
    }

    /// The identities that policy patterns are expanded for. They only grow, until a change of policy starts anew.
    /// Those that are new.
    pub(super) fn gather_identities(&mut self) -> HashSet<SpiffeId> {
        let mut new = HashSet::new();
        let here = self.places.placed().iter().map(|placed| &placed.record.spiffe);
        let elsewhere = self.elsewhere.identities().chain(self.fronting.workloads());
        for id in here.chain(elsewhere) {
            if !self.identities.contains(id) {
                self.identities.insert(id.clone());
                new.insert(id.clone());
            }
        }
        new
    }
}
