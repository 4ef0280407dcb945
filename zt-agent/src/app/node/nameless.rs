// SPDX-License-Identifier: Apache-2.0
//! Which pods of this node have no name, and why: for people who wonder.

use std::collections::HashSet;
use std::ops::Bound;
use std::path::Path;

use super::Node;
use crate::api::UnnamedStatus;
use crate::config::{IdentitySource, UnknownWorkload};
use crate::identity::kubernetes::pod_of;

/// Pods that are told of.
const MOST: usize = 1000;

impl Node {
    /// The pods that are here and have no name, and how many more there are than are told of.
    pub(super) fn nameless(&self) -> (Vec<UnnamedStatus>, usize) {
        let mut found = self.disputed_pods();
        let disputed: HashSet<String> = found.iter().filter_map(|one| one.pod.clone()).collect();
        let named = self
            .places
            .placed()
            .iter()
            .filter(|placed| !placed.cgroup_ids.is_empty());
        let named: HashSet<&str> = named.filter_map(|placed| placed.record.pod.as_deref()).collect();
        let waiting = self.waiting.iter().filter(|record| {
            let pod = record.pod.as_deref().unwrap_or_default();
            // One container is enough for the others to be asked about by themselves.
            self.cgroups.id(&record.cgroup).is_some() && !named.contains(pod) && !disputed.contains(pod)
        });
        found.extend(waiting.map(|record| UnnamedStatus {
            pod: record.pod.clone(),
            name: Some(record.spiffe.to_string()),
            ..self.unnamed_status(&record.cgroup, "waiting_for_spire")
        }));
        if self.parts.config.identity.has(IdentitySource::Kubernetes) {
            let told: HashSet<&Path> = self.pods.iter().map(|pod| pod.cgroup.as_path()).collect();
            let untold = self.cgroups.by_path().iter().filter(|(path, id)| {
                pod_of(path, &self.parts.root_paths).is_some()
                    && !told.contains(path.as_path())
                    && self.places.declared(path).is_none()
                    && self.cgroups.above(**id, self.parts.kernel.workloads()).is_none()
            });
            found.extend(untold.map(|(path, _)| self.unnamed_status(path, "untold")));
        }
        let more = found.len().saturating_sub(MOST);
        found.truncate(MOST);
        (found, more)
    }

    fn disputed_pods(&self) -> Vec<UnnamedStatus> {
        let pods = self.disputes.iter().filter_map(|dispute| {
            let pod = self
                .pods
                .iter()
                .find(|pod| dispute.cgroup.starts_with(&pod.cgroup))?;
            Some(UnnamedStatus {
                pod: pod.pod.clone(),
                name: Some(pod.spiffe.to_string()),
                ..self.unnamed_status(&dispute.cgroup, "disputed")
            })
        });
        pods.collect()
    }

    fn unnamed_status(&self, path: &Path, why: &'static str) -> UnnamedStatus {
        let inside = self
            .cgroups
            .by_path()
            .range::<Path, _>((Bound::Included(path), Bound::Unbounded))
            .take_while(|(cgroup, _)| cgroup.starts_with(path));
        let denies = self.parts.config.unknown_workload == UnknownWorkload::Deny;
        UnnamedStatus {
            cgroup: path.display().to_string(),
            pod: None,
            name: None,
            why,
            left_alone: self.unnamed.reason(path).filter(|_| denies),
            cgroups: inside.map(|(_, id)| *id).collect(),
        }
    }
}
