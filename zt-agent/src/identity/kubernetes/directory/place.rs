// SPDX-License-Identifier: Apache-2.0
//! Where the pods of this node are, and what can be asked about them.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::Directory;
use crate::identity::WorkloadRecord;
use crate::identity::kubernetes::address::Resolved;
use crate::identity::kubernetes::known::Known;

impl Directory {
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
            let is_its = |address: &&IpAddr| matches!(self.claims.resolve(**address), Resolved::Here(whose) if whose == *pod);
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
            if !known.account.is_empty() {
                selectors.push(format!("sa:{}", known.account));
            }
        }
        (record.cgroup.clone(), selectors.into())
    }
}
