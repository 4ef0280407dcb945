// SPDX-License-Identifier: Apache-2.0
//! How long a new cgroup is nobody: from when it is seen until the kernel knows who is in it. Until then `unknownWorkload` holds.

use std::collections::HashMap;
use std::time::Instant;

use zt_common::identity;

use super::Node;
use crate::cgroup::CgroupEvent;
use crate::config::IdentitySource;

/// Cgroups whose wait is measured at a time. Beyond them none is, so that cgroups that nobody ever names cost little.
const MOST: usize = 4096;

/// New cgroups that the kernel knows nobody of, and since when they are there.
#[derive(Debug, Default)]
pub(super) struct Naming(HashMap<u64, Instant>);

impl Naming {
    fn appeared(&mut self, id: u64, at: Instant) {
        if self.0.len() < MOST {
            self.0.entry(id).or_insert(at);
        }
    }

    fn gone(&mut self, id: u64) {
        self.0.remove(&id);
    }

    /// Takes out those that `is_known`, with their waits up to `now`.
    fn take(&mut self, now: Instant, mut is_known: impl FnMut(u64) -> bool) -> Vec<(u64, f64)> {
        let known = self.0.extract_if(|id, _| is_known(*id));
        known
            .map(|(id, since)| (id, now.saturating_duration_since(since).as_secs_f64()))
            .collect()
    }
}

impl Node {
    /// A cgroup came or went, as was seen `at`.
    pub(super) fn note_cgroup(&mut self, event: &CgroupEvent, at: Instant) {
        match event {
            CgroupEvent::Created { id, .. } => self.naming.appeared(*id, at),
            CgroupEvent::Removed { id, .. } => self.naming.gone(*id),
        }
    }

    /// Looks which new cgroups the kernel knows by now, and takes down how long that took.
    pub(super) fn note_named(&mut self) {
        if self.naming.0.is_empty() {
            return;
        }
        let workloads = self.parts.kernel.workloads();
        let cgroups = &self.cgroups;
        let is_somebody = |id| {
            let entry = workloads.get(&id);
            entry.is_some_and(|entry| entry.identity != identity::UNKNOWN)
        };
        // A container is whoever its pod is, from its first moment.
        let mut inherits = Vec::new();
        let named = self.naming.take(Instant::now(), |id| {
            let above = cgroups.above(id, workloads).is_some_and(is_somebody);
            if above {
                inherits.push(id);
            }
            above || is_somebody(id)
        });
        for (id, wait) in named {
            if !inherits.contains(&id) {
                self.parts.metrics.named(self.source_of(id), wait);
            }
        }
    }

    /// Which source says who is in a cgroup. SPIRE is the one that counts where two do.
    fn source_of(&self, id: u64) -> &'static str {
        let path = self.cgroups.path(id).unwrap_or_else(|| std::path::Path::new(""));
        let source = if self.attested.contains_key(path) {
            IdentitySource::Spire
        } else if self.declared.iter().any(|declared| declared.cgroup == path) {
            IdentitySource::File
        } else {
            IdentitySource::Kubernetes
        };
        source.name()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_wait_is_from_when_a_cgroup_was_seen_first_and_counts_once() {
        let start = Instant::now();
        let mut naming = Naming::default();
        naming.appeared(1, start);
        naming.appeared(1, start + Duration::from_secs(1));
        naming.appeared(2, start);
        naming.appeared(3, start);
        naming.gone(3);
        let now = start + Duration::from_secs(2);
        assert_eq!(naming.take(now, |id| id != 2), [(1, 2.0)]);
        assert_eq!(naming.take(now, |id| id != 2), []);
        assert_eq!(naming.take(now, |_| true), [(2, 2.0)]);
    }

    #[test]
    fn who_is_never_named_costs_little() {
        let mut naming = Naming::default();
        for id in 0..2 * MOST as u64 {
            naming.appeared(id, Instant::now());
        }
        assert_eq!(naming.0.len(), MOST);
    }
}
