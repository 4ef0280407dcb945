// SPDX-License-Identifier: Apache-2.0
//! Whether what is known of a collection is what there is, and since when it is so, or not so.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::identity::since::now;

/// What is known about following one collection, as a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What is known may be older than what there is: the last known holds.
    pub stale: bool,
    /// Since when it is so, or not so; Unix nanoseconds.
    pub since: i64,
    /// Whether the collection was ever listed whole, in this agent's life.
    pub listed: bool,
    /// Why it is stale, or what went wrong last.
    pub error: Option<Arc<str>>,
    /// Objects that there are.
    pub objects: u64,
    /// Lists that were read whole.
    pub lists: u64,
    /// Watches that were opened.
    pub watches: u64,
    /// Events that were taken.
    pub events: u64,
    /// Events and objects that are not understood, and were passed over.
    pub unreadable: u64,
    /// Attempts that failed, and watches that broke.
    pub failures: u64,
}

/// How following each collection stands, by the name of the collection. Everybody may look at any time.
#[derive(Debug, Default)]
pub struct Freshness(Mutex<BTreeMap<&'static str, Status>>);

impl Freshness {
    /// How each stands now.
    pub fn all(&self) -> Vec<(&'static str, Status)> {
        self.lock()
            .iter()
            .map(|(name, status)| (*name, status.clone()))
            .collect()
    }

    /// Since when, and why, something is not known to be so any more; of those that are stale, whichever is so for longest.
    pub fn stale(&self) -> Option<(&'static str, Status)> {
        let mut stale: Vec<_> = self.all();
        stale.retain(|(_, status)| status.stale);
        stale.into_iter().min_by_key(|(_, status)| status.since)
    }

    /// When all of these collections were last known to be so: now, where they are. `before` is what it is where one was
    /// never listed.
    pub(super) fn heard(&self, names: &[&str], before: Option<SystemTime>) -> Option<SystemTime> {
        let all = self.lock();
        let of_these = || all.iter().filter(|(name, _)| names.contains(*name));
        let stale = || of_these().map(|(_, status)| status).filter(|status| status.stale);
        if stale().any(|status| !status.listed) {
            return before;
        }
        let since = stale().map(|status| status.since).min();
        since.map_or_else(
            || Some(SystemTime::now()),
            |since| UNIX_EPOCH.checked_add(Duration::from_nanos(since.try_into().ok()?)),
        )
    }

    /// A collection is not followed any more, and nobody goes by it.
    pub(super) fn end(&self, name: &str) {
        self.lock().remove(name);
    }

    /// A collection is going to be followed: nothing is known yet.
    pub(crate) fn begin(&self, name: &'static str) {
        self.with(name, |status| {
            status.stale = true;
            status.since = now();
            status.error = Some(Arc::from("it has not been listed yet"));
        });
    }

    /// Everything is known, and what happens is heard.
    pub(super) fn fresh(&self, name: &'static str) -> bool {
        let mut was_stale = false;
        self.with(name, |status| {
            was_stale = status.stale;
            if status.stale {
                status.stale = false;
                status.since = now();
            }
            status.error = None;
        });
        was_stale
    }

    /// What happens is not heard any more. Whether it was before.
    pub(super) fn stale_since_now(&self, name: &'static str, why: &str) -> bool {
        let mut was_fresh = false;
        self.with(name, |status| {
            was_fresh = !status.stale;
            if was_fresh {
                status.stale = true;
                status.since = now();
            }
            status.failures += 1;
            status.error = Some(Arc::from(why));
        });
        was_fresh
    }

    pub(super) fn with(&self, name: &'static str, change: impl FnOnce(&mut Status)) {
        change(self.lock().entry(name).or_default());
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Status>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_state_is_kept() {
        let freshness = Freshness::default();
        freshness.begin("pods");
        assert_eq!(freshness.stale().expect("nothing is known yet").0, "pods");
        assert!(freshness.fresh("pods"));
        assert!(!freshness.fresh("pods"));
        assert!(freshness.stale().is_none());
        assert!(freshness.stale_since_now("pods", "gone"));
        let since = freshness.stale().expect("stale").1.since;
        assert!(!freshness.stale_since_now("pods", "still gone"));
        let (_, status) = freshness.stale().expect("stale");
        assert_eq!((status.since, status.failures), (since, 2));
        assert_eq!(status.error.as_deref(), Some("still gone"));
    }

    #[test]
    fn what_was_heard_was_heard_until_it_was_stale() {
        let freshness = Freshness::default();
        let long_ago = Some(UNIX_EPOCH + Duration::from_secs(7));
        freshness.begin("pods");
        freshness.begin("services");
        assert_eq!(
            freshness.heard(&["pods"], long_ago),
            long_ago,
            "nothing was heard yet"
        );
        freshness.with("pods", |status| status.listed = true);
        freshness.fresh("pods");
        assert!(
            freshness
                .heard(&["pods"], None)
                .is_some_and(|heard| Some(heard) > long_ago)
        );
        freshness.with("pods", |status| {
            (status.stale, status.since) = (true, 9_000_000_000);
        });
        assert_eq!(
            freshness.heard(&["pods"], long_ago),
            Some(UNIX_EPOCH + Duration::from_secs(9))
        );
    }
}
