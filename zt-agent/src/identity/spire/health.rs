// SPDX-License-Identifier: Apache-2.0
//! How things stand with SPIRE, for metrics, `/v1/status` and `/readyz`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lifecycle::Outside;
use crate::identity::since::now;

/// Identities that have a counter of rotations of their own; the rest are `other`.
const MOST_SERVICES: usize = 2000;
/// Cgroups without room that are remembered.
const MOST_CROWDED: usize = 16_384;
/// The label of the rest.
const OTHER: &str = "other";

/// Causes of what is not believed.
const REFUSALS: [&str; 8] = [
    "bundle",
    "expired",
    "flood",
    "not_one_identity",
    "too_many",
    "trust_domain",
    "unreadable",
    "untrusted",
];

/// What became of a cgroup that somebody runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// SPIRE has not given it an identity.
    Waiting,
    /// It has one.
    Named,
    /// It has one whose SVID has expired (`onExpiry: hold`).
    Held,
}

/// Why an identity was taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Withdrawal {
    /// SPIRE no longer has an entry for it.
    NoEntry,
    /// Its SVID expired.
    Expired,
    /// Nobody is in the cgroup any more who could be attested.
    NoProcess,
    /// Who asked SPIRE about it has failed: it is nobody until it is asked again.
    Failed,
}

impl Withdrawal {
    const ALL: [Self; 4] = [Self::NoEntry, Self::Expired, Self::NoProcess, Self::Failed];

    /// The label in metrics, and the cause in records.
    pub const fn cause(self) -> &'static str {
        match self {
            Self::NoEntry => "no_entry",
            Self::Expired => "expired",
            Self::NoProcess => "no_process",
            Self::Failed => "failed",
        }
    }
}

/// What is known, as a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether the SPIRE agent answers.
    pub connected: bool,
    /// Since when, or since when not; Unix nanoseconds.
    pub since: i64,
    /// Why it does not answer, or what it said last that is wrong with all of us.
    pub error: Option<Arc<str>>,
    /// Cgroups with an identity.
    pub named: usize,
    /// Cgroups in which somebody runs and that have none.
    pub waiting: usize,
    /// Cgroups whose identity is kept although its SVID has expired.
    pub expired: usize,
    /// The last SVID that was not believed, and why.
    pub refusal: Option<Arc<str>>,
    /// SVIDs that were not believed, and answers that were not understood, by cause.
    pub refused: BTreeMap<&'static str, u64>,
    /// Identities that were taken back, by cause.
    pub withdrawn: BTreeMap<&'static str, u64>,
    /// New SVIDs that live longer than they should, or have another kind of key, by cause.
    pub outside: BTreeMap<&'static str, u64>,
    /// New SVIDs of the same identity.
    pub rotations: BTreeMap<Arc<str>, u64>,
    /// How often the connection to the SPIRE agent was lost, or not to be had.
    pub failures: u64,
}

#[derive(Debug, Default)]
struct Inner {
    status: Status,
    standing: HashMap<u64, Standing>,
    /// Those that nobody is asked about, as too many are.
    crowded: HashSet<u64>,
    /// Whose SVIDs were said to be otherwise than they should be.
    told: HashSet<(Outside, Arc<str>)>,
}

/// How things stand with SPIRE. Everybody may look at any time.
#[derive(Debug, Default)]
pub struct Health(Mutex<Inner>);

impl Health {
    /// Nothing is known yet.
    pub fn new() -> Arc<Self> {
        let health = Self::default();
        {
            let status = &mut health.lock().status;
            status.since = now();
            status.error = Some(Arc::from("SPIRE has not answered yet"));
            status.refused = REFUSALS.into_iter().map(|cause| (cause, 0)).collect();
            let causes = Withdrawal::ALL.map(Withdrawal::cause);
            let outside = Outside::ALL.map(Outside::cause);
            status.outside = outside.into_iter().map(|cause| (cause, 0)).collect();
            status.withdrawn = causes.into_iter().map(|cause| (cause, 0)).collect();
        }
        Arc::new(health)
    }

    /// How things stand now.
    pub fn status(&self) -> Status {
        let inner = self.lock();
        let count = |wanted| inner.standing.values().filter(|found| **found == wanted).count();
        Status {
            named: count(Standing::Named),
            waiting: count(Standing::Waiting),
            expired: count(Standing::Held),
            ..inner.status.clone()
        }
    }

    pub(super) fn connected(&self) {
        let status = &mut self.lock().status;
        if !status.connected {
            status.connected = true;
            status.since = now();
        }
        status.error = None;
    }

    /// The SPIRE agent does not answer. Whether it did before.
    pub(super) fn disconnected(&self, error: &str) -> bool {
        let status = &mut self.lock().status;
        let before = status.connected;
        if before {
            status.connected = false;
            status.since = now();
        }
        status.failures += 1;
        status.error = Some(Arc::from(error));
        before
    }

    pub(super) fn refused(&self, cause: &'static str, why: &str) {
        debug_assert!(REFUSALS.contains(&cause), "{cause}");
        let status = &mut self.lock().status;
        *status.refused.entry(cause).or_default() += 1;
        status.refusal = Some(Arc::from(why));
    }

    pub(super) fn withdrawn(&self, withdrawal: Withdrawal) {
        let status = &mut self.lock().status;
        *status.withdrawn.entry(withdrawal.cause()).or_default() += 1;
    }

    /// Counts a new SVID of the same identity.
    pub fn rotated(&self, service: &Arc<str>) {
        let rotations = &mut self.lock().status.rotations;
        if let Some(count) = rotations.get_mut(service) {
            *count += 1;
            return;
        }
        let label = if rotations.len() < MOST_SERVICES {
            Arc::clone(service)
        } else {
            Arc::from(OTHER)
        };
        *rotations.entry(label).or_default() += 1;
    }

    /// A new SVID is not as it should be. Whether that is to be told: once for each identity.
    pub(super) fn outside(&self, outside: Outside, service: &Arc<str>) -> bool {
        let mut inner = self.lock();
        *inner.status.outside.entry(outside.cause()).or_default() += 1;
        inner.told.len() < MOST_SERVICES && inner.told.insert((outside, Arc::clone(service)))
    }

    /// What has become of a cgroup; `None` where nobody runs in it.
    pub(super) fn stands(&self, cgroup: u64, standing: Option<Standing>) {
        let known = &mut self.lock().standing;
        match standing {
            Some(standing) => known.insert(cgroup, standing),
            None => known.remove(&cgroup),
        };
    }

    /// Whether there is room to ask about a cgroup.
    pub(super) fn crowded(&self, cgroup: u64, is_out: bool) {
        let crowded = &mut self.lock().crowded;
        if !is_out {
            crowded.remove(&cgroup);
        } else if crowded.len() < MOST_CROWDED {
            crowded.insert(cgroup);
        }
    }

    /// Whether SPIRE is not asked about one of these cgroups, as there is no room.
    pub fn has_no_room_for(&self, cgroups: &[u64]) -> bool {
        let crowded = &self.lock().crowded;
        cgroups.iter().any(|cgroup| crowded.contains(cgroup))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_state_is_kept_and_cgroups_are_counted_by_theirs() {
        let health = Health::new();
        assert!(!health.status().connected);
        assert!(health.status().error.is_some());
        health.connected();
        let since = health.status().since;
        health.connected();
        assert_eq!(health.status().since, since);
        assert!(health.disconnected("gone"));
        assert!(!health.disconnected("still gone"));
        let status = health.status();
        assert_eq!(
            (status.failures, status.error.as_deref()),
            (2, Some("still gone"))
        );

        health.stands(1, Some(Standing::Waiting));
        health.stands(2, Some(Standing::Named));
        health.stands(1, Some(Standing::Held));
        health.stands(3, Some(Standing::Named));
        health.stands(3, None);
        let status = health.status();
        assert_eq!((status.named, status.waiting, status.expired), (1, 0, 1));
    }

    #[test]
    fn a_cgroup_without_room_is_known_until_there_is_some() {
        let health = Health::new();
        health.crowded(7, true);
        assert!(health.has_no_room_for(&[6, 7]) && !health.has_no_room_for(&[6]));
        health.crowded(7, false);
        assert!(!health.has_no_room_for(&[6, 7]));
        for cgroup in 0..2 * MOST_CROWDED as u64 {
            health.crowded(cgroup, true);
        }
        assert_eq!(health.lock().crowded.len(), MOST_CROWDED);
    }

    #[test]
    fn what_is_otherwise_is_counted_always_and_told_once() {
        let health = Health::new();
        let iam = Arc::from("spiffe://hanzo.ai/iam");
        assert!(health.outside(Outside::Key, &iam));
        assert!(!health.outside(Outside::Key, &iam));
        assert!(health.outside(Outside::Lifetime, &iam));
        let counted = health.status().outside;
        assert_eq!((counted["key"], counted["lifetime"]), (2, 1));
    }

    #[test]
    fn rotations_are_bounded() {
        let health = Health::new();
        for number in 0..MOST_SERVICES + 5 {
            health.rotated(&Arc::from(format!("spiffe://hanzo.ai/{number}")));
        }
        let rotations = health.status().rotations;
        assert_eq!(rotations.len(), MOST_SERVICES + 1);
        assert_eq!(rotations.get(OTHER), Some(&5));
    }
}
