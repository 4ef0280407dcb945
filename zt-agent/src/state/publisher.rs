// SPDX-License-Identifier: Apache-2.0
//! The one sender of snapshots, and the policies that came into force with them.
//!
//! Whoever watches snapshots sees the newest one and may miss others. Policies are kept in order until they are taken as
//! well, so that each change of them is recorded, however fast they come.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use super::Snapshot;
use crate::policy::PolicySet;

/// Most policies that wait to be taken. A set of them may be large.
const MOST_WAITING: usize = 16;

/// Publishes snapshots. Only one task does.
#[derive(Debug)]
pub struct Publisher {
    snapshots: watch::Sender<Arc<Snapshot>>,
    policies: Arc<PoliciesInForce>,
}

/// The policies that came into force, in order, until they are taken.
#[derive(Debug, Default)]
pub struct PoliciesInForce(Mutex<VecDeque<InForce>>);

/// Policies that came into force.
#[derive(Clone, Debug)]
pub struct InForce {
    /// The revision under which they first were.
    pub revision: u64,
    /// The policies.
    pub policies: Arc<PolicySet>,
}

impl Publisher {
    pub(super) fn new(snapshots: watch::Sender<Arc<Snapshot>>) -> Self {
        Self {
            snapshots,
            policies: Arc::default(),
        }
    }

    /// Publishes what is in force now.
    pub fn publish(&self, snapshot: Snapshot) {
        let is_other = self.snapshots.borrow().policies.digest() != snapshot.policies.digest();
        // First: who sees the snapshot finds its policies.
        if is_other {
            self.policies.add(InForce {
                revision: snapshot.revision,
                policies: Arc::clone(&snapshot.policies),
            });
        }
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// What was published last.
    pub fn newest(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// Where policies wait to be taken.
    pub fn policies(&self) -> Arc<PoliciesInForce> {
        Arc::clone(&self.policies)
    }

    /// Publishes what is in force now, changed.
    #[cfg(test)]
    pub(crate) fn update(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut next = Snapshot::clone(&self.snapshots.borrow());
        change(&mut next);
        self.publish(next);
    }
}

impl PoliciesInForce {
    fn add(&self, next: InForce) {
        let mut waiting = self.lock();
        if waiting.len() >= MOST_WAITING {
            // Memory is bounded: the change to the last one and the change to this one become one.
            waiting.pop_back();
            tracing::warn!(
                revision = next.revision,
                "policy changes faster than it is recorded: the record of a change will be about several"
            );
        }
        waiting.push_back(next);
    }

    /// The oldest one that nobody has taken.
    pub fn take(&self) -> Option<InForce> {
        self.lock().pop_front()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<InForce>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::super::channel;
    use super::*;
    use crate::policy::sample::of_ports;

    #[test]
    fn each_change_waits_in_order_and_the_last_ones_are_joined_where_there_are_too_many() {
        let (publisher, snapshots) = channel(Snapshot::default());
        let waiting = publisher.policies();
        let publish = |revision: u64, port| {
            publisher.update(|snapshot| {
                snapshot.revision = revision;
                snapshot.policies = Arc::new(of_ports(&[("p", port)]));
            });
        };
        publish(1, 1);
        publish(2, 2);
        // The same by another text, or another snapshot, is no change.
        publish(3, 2);
        publish(4, 1);
        let taken: Vec<u64> = std::iter::from_fn(|| waiting.take())
            .map(|one| one.revision)
            .collect();
        assert_eq!(taken, [1, 2, 4]);
        for port in 1..=MOST_WAITING as u16 + 5 {
            publish(u64::from(port) + 100, port + 100);
        }
        let taken: Vec<InForce> = std::iter::from_fn(|| waiting.take()).collect();
        assert_eq!(taken.len(), MOST_WAITING);
        let last = taken.last().expect("some");
        assert_eq!(last.policies.digest(), snapshots.borrow().policies.digest());
    }
}
