// SPDX-License-Identifier: Apache-2.0
//! Where the pods of this node are, and what can be asked about them.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Directory;
use crate::identity::WorkloadRecord;
use crate::identity::kubernetes::address::{Cgroup, Claim, Resolved};
use crate::identity::kubernetes::known::{Known, Part};

/// Of so many pods it is remembered that their cgroups are gone without a look at which of them are still known.
const MOST_GONE: usize = 1024;

impl Directory {
    /// Where a pod is reached. One of this node whose cgroup is gone is nobody there, until the API says whose that address is.
    pub(super) fn claim(&mut self, part: Part, pod: &Arc<str>, known: &Known) {
        let cgroup = match part {
            Part::Here if self.cgroups.has_gone(&known.cgroup_uid) => Cgroup::Gone,
            Part::Here if self.cgroups.is_there(&known.cgroup_uid) => Cgroup::There,
            _ => Cgroup::Unseen,
        };
        for address in &known.addresses {
            let claim = Claim {
                part,
                node: Arc::clone(&known.node),
                cgroup,
                pod: Arc::clone(pod),
                uid: Arc::clone(&known.uid),
                spiffe: known.spiffe.clone().filter(|_| cgroup != Cgroup::Gone),
            };
            self.claims.claim(*address, claim);
        }
    }

    /// The cgroup of the pod with this uid came or went.
    pub(super) fn cgroup_changed(&mut self, uid: &str) {
        self.here_changed = true;
        let is_its = |known: &&Known| *known.cgroup_uid == *uid;
        let all = self.here.iter().filter(|(_, known)| is_its(known));
        let its: Vec<(Arc<str>, Known)> = all.map(|(pod, known)| (Arc::clone(pod), known.clone())).collect();
        for (pod, known) in its {
            for address in &known.addresses {
                self.claims.release(*address, Part::Here, &pod);
            }
            self.claim(Part::Here, &pod, &known);
        }
        if self.cgroups.gone() > MOST_GONE {
            let known: HashSet<&str> = self.here.values().map(|known| &*known.cgroup_uid).collect();
            self.cgroups.forget_gone(|uid| known.contains(uid));
        }
    }

    /// The workloads of this node and where they are. A cgroup that two pods lay claim to is nobody's.
    pub(super) fn place(&mut self) -> Vec<Arc<WorkloadRecord>> {
        let mut by_cgroup: BTreeMap<&str, Vec<(&Arc<str>, &Known)>> = BTreeMap::new();
        for (pod, known) in &self.here {
            if !known.is_over {
                by_cgroup.entry(&known.cgroup_uid).or_default().push((pod, known));
            }
        }
        let mut workloads = Vec::new();
        let mut disputed = HashSet::new();
        for (uid, claimants) in by_cgroup {
            let [(pod, known)] = *claimants else {
                disputed.insert(Box::from(uid));
                continue;
            };
            let Some(spiffe) = &known.spiffe else { continue };
            let is_its = |address: &&IpAddr| matches!(self.claims.resolve(**address, &self.grounds).resolved, Resolved::Here(whose) if whose == *pod);
            let addresses: Vec<IpAddr> = known.addresses.iter().filter(is_its).copied().collect();
            for (index, cgroup) in self.cgroups.of(uid, known.qos).into_iter().enumerate() {
                workloads.push(Arc::new(WorkloadRecord {
                    spiffe: spiffe.clone(),
                    cgroup,
                    cgroup_id: None,
                    // Each address once.
                    addresses: if index == 0 { addresses.clone() } else { Vec::new() },
                    mode: None,
                    pod: Some(pod.to_string()),
                }));
            }
        }
        for uid in disputed.difference(&self.cgroups_disputed) {
            *self.refused.entry("cgroup_disputed").or_default() += 1;
            tracing::warn!(%uid, "more than one pod claims a cgroup: it has no identity until one is left");
        }
        self.cgroups_disputed = disputed;
        workloads
    }

    /// What SPIRE's `k8s` attestor would find out about a process of this workload.
    pub(super) fn selectors(&self, record: &WorkloadRecord) -> (PathBuf, Arc<[String]>) {
        let name = record.pod.as_deref().unwrap_or_default();
        let mut selectors = vec![format!("node-name:{}", self.node)];
        if let (Some(known), Some((namespace, pod))) = (self.here.get(name), name.split_once('/')) {
            selectors.push(format!("pod-uid:{}", known.cgroup_uid));
            selectors.push(format!("ns:{namespace}"));
            selectors.push(format!("pod-name:{pod}"));
            // Of a static pod, which has none, the attestor says so.
            selectors.push(format!("sa:{}", known.account));
        }
        (record.cgroup.clone(), selectors.into())
    }
}
