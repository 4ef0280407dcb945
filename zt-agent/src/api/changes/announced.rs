// SPDX-License-Identifier: Apache-2.0
//! What callers announce that they will change: so whoever records what came into force knows whose it is, and that it is recorded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use super::{Changes, NOTICE_TIME};
use crate::policy::{AnyPolicy, PolicySet};
use crate::policy_dir::Sighting;

/// Of each policy, how many announcements are left at a time. The oldest ones go first.
const MOST_LEFT: usize = 8;

/// All that is announced.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    /// How many there have been.
    given: u64,
    /// By the name of the policy, the oldest first. One at the most is not left.
    of: BTreeMap<String, Vec<Announcement>>,
}

#[derive(Clone, Debug)]
struct Announcement {
    /// Which one it is.
    number: u64,
    /// The policy's digest as it will be; `None` where it will be gone.
    wanted: Option<String>,
    caller: Arc<str>,
    /// It comes into force some time, and is recorded by then.
    left: bool,
}

/// What of a change was announced.
pub(super) struct Taken {
    /// Whose it is.
    pub(super) callers: Vec<Arc<str>>,
    /// The policies that somebody else changed.
    pub(super) others: Vec<String>,
    /// The announcements of those that were left, and wanted something else.
    pub(super) passed: Vec<Waiting>,
    /// All of it was left: nobody records it when it comes into force.
    pub(super) is_left: bool,
}

/// An announcement that was left, and whose change has not come into force.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    /// The policy's name.
    pub(super) name: String,
    number: u64,
    wanted: Option<String>,
}

impl Waiting {
    /// Whether its change will not come into force any more: neither what is kept nor what is in force is that.
    pub(super) fn is_past(&self, kept: &BTreeMap<String, Sighting>, in_force: &PolicySet) -> bool {
        let here = in_force.get(&self.name).map(AnyPolicy::digest);
        let there = kept.get(&self.name);
        here != self.wanted.as_deref() && there.is_some_and(|there| there.digest != self.wanted)
    }
}

/// A change that was announced. Dropping it takes the announcement back.
pub(in crate::api) struct Announced<'c> {
    changes: &'c Changes,
    name: Option<String>,
    number: u64,
}

impl Announcements {
    /// Adds one, in the place of that which is not left if this is not, either. Its number.
    fn put(&mut self, name: &str, wanted: Option<&str>, caller: &Arc<str>, left: bool) -> u64 {
        self.given += 1;
        let all = self.of.entry(name.to_owned()).or_default();
        all.retain(|one| left || one.left);
        if all.len() >= MOST_LEFT
            && let Some(oldest) = all.iter().position(|one| one.left)
        {
            all.remove(oldest);
        }
        all.push(Announcement {
            number: self.given,
            wanted: wanted.map(str::to_owned),
            caller: Arc::clone(caller),
            left,
        });
        self.given
    }

    /// Takes the first one that wanted this. What was left before it does not come any more.
    fn take(&mut self, name: &str, wanted: Option<&String>) -> Option<Announcement> {
        let mut all = self.of.remove(name)?;
        let place = all.iter().position(|one| one.wanted.as_ref() == wanted);
        let taken = place.map(|place| all.remove(place));
        if let Some(taken) = &taken {
            all.retain(|one| !one.left || one.number > taken.number);
        }
        self.put_back(name, all);
        taken
    }

    /// Takes away the one of that number. Whether it was there.
    fn remove(&mut self, name: &str, number: u64) -> bool {
        let mut all = self.of.remove(name).unwrap_or_default();
        let before = all.len();
        all.retain(|one| one.number != number);
        let is_gone = all.len() < before;
        self.put_back(name, all);
        is_gone
    }

    fn put_back(&mut self, name: &str, all: Vec<Announcement>) {
        if !all.is_empty() {
            self.of.insert(name.to_owned(), all);
        }
    }

    /// Those of a policy that are left.
    fn left(&self, name: &str) -> impl Iterator<Item = Waiting> {
        let all = self.of.get(name).into_iter().flatten();
        all.filter(|one| one.left).map(move |one| Waiting {
            name: name.to_owned(),
            number: one.number,
            wanted: one.wanted.clone(),
        })
    }
}

impl Changes {
    /// The change of this policy to this digest will be that caller's.
    pub(in crate::api) fn announce(
        &self,
        name: &str,
        wanted: Option<&str>,
        caller: &Arc<str>,
    ) -> Announced<'_> {
        let number = self.announced().put(name, wanted, caller, false);
        Announced {
            changes: self,
            name: Some(name.to_owned()),
            number,
        }
    }

    /// The change of this policy to this digest is that caller's, will come into force some time, and is recorded by then. Where
    /// the same is announced it is that.
    pub(super) fn announce_left(&self, name: &str, wanted: Option<&str>, caller: &Arc<str>) {
        let mut announced = self.announced();
        let mut all = announced.of.get(name).into_iter().flatten();
        if all.all(|one| one.wanted.as_deref() != wanted) {
            announced.put(name, wanted, caller, true);
        }
    }

    /// All announcements that are left.
    pub(super) fn left(&self) -> Vec<Waiting> {
        let announced = self.announced();
        announced
            .of
            .keys()
            .flat_map(|name| announced.left(name))
            .collect()
    }

    /// Whether nothing is announced.
    pub(super) fn is_nothing_announced(&self) -> bool {
        self.announced().of.is_empty()
    }

    fn announced(&self) -> MutexGuard<'_, Announcements> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose announced changes are between these two, and what somebody changed besides.
    pub(super) fn take(&self, before: &PolicySet, after: &PolicySet) -> Taken {
        let digests = |set: &PolicySet| -> BTreeMap<String, String> {
            let all = set.all().iter();
            all.map(|policy| (policy.name().to_owned(), policy.digest().to_owned()))
                .collect()
        };
        let (before, after) = (digests(before), digests(after));
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let mut announced = self.announced();
        let mut taken = Taken {
            callers: Vec::new(),
            others: Vec::new(),
            passed: Vec::new(),
            is_left: true,
        };
        for name in names
            .into_iter()
            .filter(|name| before.get(*name) != after.get(*name))
        {
            if let Some(theirs) = announced.take(name, after.get(name)) {
                taken.callers.push(theirs.caller);
                taken.is_left &= theirs.left;
                continue;
            }
            taken.passed.extend(announced.left(name));
            taken.others.push(name.clone());
        }
        taken
    }

    /// Withdraws these: their changes do not come into force any more.
    pub(super) fn withdraw<'w>(&self, past: impl IntoIterator<Item = &'w Waiting>) {
        let mut announced = self.announced();
        for one in past {
            announced.remove(&one.name, one.number);
        }
    }
}

impl Announced<'_> {
    /// Waits until what came into force up to that revision has been seen by [`record`](super::record): then the announcement has
    /// served. Where that takes too long it is left.
    pub(in crate::api) async fn seen(self, revision: u64) {
        self.seen_within(NOTICE_TIME, revision).await;
    }

    async fn seen_within(self, time: Duration, revision: u64) {
        let mut seen = self.changes.seen.subscribe();
        let waiting = seen.wait_for(|seen| *seen >= revision);
        let is_late = tokio::time::timeout(time, waiting).await.is_err();
        if is_late {
            tracing::warn!(revision, "what came into force is looked at late");
            // Its caller records it.
            self.leave();
        }
    }

    /// Takes the announcement back. Whether it was still there: if not, what was announced has come into force.
    pub(in crate::api) fn take_back(mut self) -> bool {
        self.remove()
    }

    /// Leaves the announcement: the change will come into force some time.
    pub(in crate::api) fn leave(mut self) {
        let Some(name) = self.name.take() else {
            return;
        };
        let mut announced = self.changes.announced();
        let all = announced.of.get_mut(&name).into_iter().flatten();
        for own in all.filter(|one| one.number == self.number) {
            own.left = true;
        }
    }

    fn remove(&mut self) -> bool {
        let name = self.name.take();
        name.is_some_and(|name| self.changes.announced().remove(&name, self.number))
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::sample::of_ports;

    fn caller(name: &str) -> Arc<str> {
        Arc::from(name)
    }

    fn digest(set: &PolicySet) -> Option<&str> {
        set.get("p").map(AnyPolicy::digest)
    }

    fn callers(taken: &Taken) -> Vec<&str> {
        taken.callers.iter().map(|caller| &**caller).collect()
    }

    #[test]
    fn each_announcement_is_its_caller_s_alone() {
        let (a, b) = (of_ports(&[("p", 1)]), of_ports(&[("p", 2)]));
        let changes = Changes::default();
        let live = changes.announce("p", digest(&b), &caller("live"));
        changes.announce_left("p", digest(&b), &caller("earlier"));
        let taken = changes.take(&a, &b);
        assert_eq!((callers(&taken), taken.is_left), (vec!["live"], false));
        // It was taken: what is announced since stays.
        changes.announce_left("p", digest(&b), &caller("earlier"));
        assert!(!live.take_back());
        let taken = changes.take(&a, &b);
        assert_eq!((callers(&taken), taken.is_left), (vec!["earlier"], true));

        let first = changes.announce("p", digest(&b), &caller("first"));
        let second = changes.announce("p", digest(&b), &caller("second"));
        first.leave();
        let taken = changes.take(&a, &b);
        assert_eq!((callers(&taken), taken.is_left), (vec!["second"], false));
        drop(second);
        assert!(changes.announce("p", digest(&b), &caller("third")).take_back());
        assert_eq!(changes.take(&a, &b).others, ["p"]);
    }

    #[tokio::test]
    async fn what_is_seen_late_is_left_and_not_somebody_else_s() {
        let (a, b) = (of_ports(&[("p", 1)]), of_ports(&[("p", 2)]));
        let changes = Changes::default();
        let announced = changes.announce("p", digest(&b), &caller("somebody"));
        announced.seen_within(Duration::ZERO, 1).await;
        let taken = changes.take(&a, &b);
        assert_eq!((callers(&taken), taken.is_left), (vec!["somebody"], true));

        changes.has_seen(1);
        let announced = changes.announce("p", digest(&b), &caller("somebody"));
        announced.seen_within(Duration::from_secs(30), 1).await;
        assert_eq!(changes.take(&a, &b).others, ["p"], "it has served");
    }

    /// What is kept of the policy.
    fn kept(set: &PolicySet) -> BTreeMap<String, Sighting> {
        let sighting = Sighting {
            digest: digest(set).map(str::to_owned),
            written_by: None,
        };
        BTreeMap::from([("p".to_owned(), sighting)])
    }

    #[test]
    fn what_was_left_and_passed_by_goes_unless_it_is_what_is_kept() {
        let [a, b, c] = [1, 2, 3].map(|port| of_ports(&[("p", port)]));
        let changes = Changes::default();
        changes.announce("p", digest(&b), &caller("somebody")).leave();
        let taken = changes.take(&a, &c);
        assert_eq!(taken.others, ["p"]);
        let [passed] = taken.passed.as_slice() else {
            panic!("one: {:?}", taken.passed)
        };
        assert!(!passed.is_past(&kept(&b), &c), "it comes late");
        assert!(!passed.is_past(&kept(&c), &b), "it came");
        assert!(!passed.is_past(&BTreeMap::new(), &c), "nobody has looked");
        assert!(passed.is_past(&kept(&c), &c) && passed.is_past(&kept(&a), &c));
        assert_eq!(callers(&changes.take(&c, &b)), ["somebody"]);
        assert!(changes.is_nothing_announced());

        changes.announce("p", digest(&b), &caller("somebody")).leave();
        let passed = changes.take(&a, &c).passed;
        // Whoever is changing it is none of that.
        let live = changes.announce("p", digest(&b), &caller("somebody else"));
        changes.withdraw(&passed);
        assert!(changes.left().is_empty() && changes.take(&a, &c).passed.is_empty());
        assert_eq!(callers(&changes.take(&c, &b)), ["somebody else"]);
        assert!(!live.take_back());
    }

    #[test]
    fn what_is_left_stays_beside_what_is_announced_after_it() {
        let [a, b, c] = [1, 2, 3].map(|port| of_ports(&[("p", port)]));
        let changes = Changes::default();
        changes.announce("p", digest(&b), &caller("first")).leave();
        let second = changes.announce("p", digest(&c), &caller("second"));
        assert_eq!(callers(&changes.take(&a, &b)), ["first"]);
        assert_eq!(callers(&changes.take(&b, &c)), ["second"]);
        assert!(!second.take_back());

        // What was left before what comes does not come any more.
        changes.announce("p", digest(&b), &caller("first")).leave();
        changes.announce("p", digest(&c), &caller("second")).leave();
        assert_eq!(callers(&changes.take(&a, &c)), ["second"]);
        assert_eq!(changes.take(&c, &b).others, ["p"]);
        for port in 2..100 {
            let set = of_ports(&[("p", port)]);
            changes.announce("p", digest(&set), &caller("many")).leave();
        }
        assert!(changes.left().len() <= MOST_LEFT);
    }
}
