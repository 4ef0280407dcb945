// SPDX-License-Identifier: Apache-2.0
//! What became of a change is not always known at once: who was to write it may have lost the answer, or may have ended. Where
//! policies are objects, what a change wrote bears its id, and a write may arrive some time after it was sent. So a note is kept
//! until it can be seen what came of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::announced::{Taken, Waiting};
use super::under_way::noted_in_time;
use super::{Changes, NOTICE_TIME};
use crate::api::{ApiState, PolicyStore};
use crate::audit::intent::{Intent, Progress};
use crate::policy::{AnyPolicy, PolicySet};
use crate::policy_dir::{EditError, Sighting};

/// Between two looks at what is in doubt.
pub(super) const AGAIN: Duration = Duration::from_secs(2);

/// What became of a change that was noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was made, or nothing shows that it was not; it has no record.
    Made,
    /// It was not made.
    NotMade,
    /// Something else is there by now: it may have been made before.
    Unclear,
    /// It cannot be seen now, or may be made yet.
    Open,
}

/// What there is to see of a change.
#[derive(Clone, Copy, Debug)]
struct Seen<'s> {
    /// The digest of its policy in force.
    here: Option<&'s str>,
    /// The same where it is kept, and whether that is what the change wrote, if that can be told; `None` where it cannot be seen.
    there: Option<(Option<&'s str>, Option<bool>)>,
    /// The trail has told of what is in force.
    is_told: bool,
    /// A later change went on from it.
    is_followed: bool,
    /// It may be made yet.
    may_arrive: bool,
}

/// What became of changes that were noted and have no record.
#[derive(Default)]
pub(super) struct Begun {
    /// What was made, the oldest first.
    pub(super) made: Vec<Intent>,
    /// What of it comes into force later.
    coming: Vec<Intent>,
    /// What may have been made.
    pub(super) unclear: Vec<Intent>,
    not_made: Vec<Intent>,
    /// The announcements whose changes do not come into force any more.
    past: Vec<Waiting>,
    /// The digest of all policies that was noted to come into force later, and does not any more.
    pub(super) not_late: Option<String>,
    /// Something has to be looked at again.
    is_open: bool,
}

/// What notes say of policies that came into force, and that nobody is known to have changed.
#[derive(Default)]
pub(super) struct Explained {
    /// The changes that these are.
    pub(super) theirs: Vec<Intent>,
    /// Those that they may be.
    pub(super) perhaps: Vec<Intent>,
}

impl Changes {
    /// There is a note of which it is not known what came of it.
    pub(super) fn doubt(&self) {
        self.doubts.store(true, Ordering::SeqCst);
    }

    /// Whether there is one that nobody has looked at since.
    pub(super) fn take_doubts(&self) -> bool {
        self.doubts.swap(false, Ordering::SeqCst)
    }
}

/// Finds out what became of these changes, the oldest first.
pub(super) async fn begun(
    state: &ApiState,
    in_force: &Arc<PolicySet>,
    (noted, is_told): (Vec<Intent>, bool),
) -> Begun {
    let mut found = Begun::default();
    state.changes().only_may_arrive(&noted);
    // Before the look: what is left later it may not have seen.
    let left = state.changes().left();
    // All that is kept, at one moment.
    let kept = look_at(state, policies_of(&noted, &left), in_force).await;
    found.is_open = kept.is_none() && !left.is_empty();
    found.past = past(left, kept.as_ref(), in_force);
    let followed = followed(&noted);
    for (intent, is_followed) in noted.into_iter().zip(followed) {
        let here = in_force.get(&intent.policy).map(AnyPolicy::digest);
        let there = kept.as_ref().and_then(|kept| kept.get(&intent.policy));
        let there = there.map(|there| (there.digest.as_deref(), is_its(state, &intent, there)));
        let seen = Seen {
            here,
            there,
            is_told,
            is_followed,
            may_arrive: keeps_objects(state) && state.changes().may_arrive(intent.id),
        };
        match fate(&intent, seen) {
            Fate::Made => {
                let after = intent.after.as_deref();
                if here != after && there.is_none_or(|(there, _)| there == after) {
                    found.coming.push(intent.clone());
                }
                found.made.push(intent);
            }
            Fate::NotMade => found.not_made.push(intent),
            // Its note goes with the record that tells of it.
            Fate::Unclear => found.unclear.push(intent),
            Fate::Open => {
                let (caller, policy) = (&intent.caller, &intent.policy);
                tracing::debug!(%caller, policy, "what came of a change of policy that was begun cannot be told yet");
                found.is_open = true;
            }
        }
    }
    found
}

impl Begun {
    /// The digests of all policies with what was made and comes into force later.
    pub(super) fn late(&self) -> Vec<String> {
        self.coming.iter().map(|intent| intent.to.clone()).collect()
    }

    /// Goes by what was found, but for the records: what comes into force later is announced, the notes of what was not made are to go,
    /// and what has to wait is looked at again.
    pub(super) fn settle(&self, state: &ApiState) {
        for intent in &self.coming {
            // It is told by then.
            let after = intent.after.as_deref();
            state
                .changes()
                .announce_left(&intent.policy, after, &intent.caller);
        }
        for intent in &self.not_made {
            let (caller, policy) = (&intent.caller, &intent.policy);
            tracing::info!(%caller, policy, "a change of policy that was begun, and of which nobody knew what came of it, was not made");
            state.changes().is_to_go(intent.id);
        }
        if self.is_open || !self.not_made.is_empty() {
            state.changes().doubt();
        }
    }

    /// Withdraws what was announced and does not come into force any more.
    pub(super) fn withdraw(&self, state: &ApiState) {
        state.changes().withdraw(&self.past);
    }
}

/// The policies that these changes and announcements are of.
fn policies_of(noted: &[Intent], left: &[Waiting]) -> BTreeSet<String> {
    let noted = noted.iter().map(|intent| &intent.policy);
    noted.chain(left.iter().map(|one| &one.name)).cloned().collect()
}

/// The announcements whose changes do not come into force any more.
fn past(
    mut left: Vec<Waiting>,
    kept: Option<&BTreeMap<String, Sighting>>,
    in_force: &PolicySet,
) -> Vec<Waiting> {
    left.retain(|one| kept.is_some_and(|kept| one.is_past(kept, in_force)));
    left
}

/// Of each note, the oldest first, whether a later change went on from what it was to make: then it was made.
fn followed(noted: &[Intent]) -> Vec<bool> {
    let mut later = BTreeSet::new();
    let mut followed: Vec<bool> = noted
        .iter()
        .rev()
        .map(|intent| {
            let is_followed = later.contains(intent.to.as_str());
            later.insert(intent.from.as_str());
            is_followed
        })
        .collect();
    followed.reverse();
    followed
}

/// What became of a change that has no record.
fn fate(intent: &Intent, seen: Seen<'_>) -> Fate {
    let (before, after) = (intent.before.as_deref(), intent.after.as_deref());
    let Seen { here, is_told, .. } = seen;
    if intent.progress == Progress::Made || seen.is_followed {
        return Fate::Made;
    }
    let Some((there, is_its)) = seen.there else {
        // What is in force may be a copy of what was there before.
        return if is_told || here == before {
            Fate::Open
        } else {
            Fate::Unclear
        };
    };
    if is_its == Some(true) {
        return Fate::Made;
    }
    let is_as_before = here == before && there == before;
    if is_as_before && seen.may_arrive {
        return Fate::Open;
    }
    if is_as_before {
        return Fate::NotMade;
    }
    if is_its.is_none() && intent.progress == Progress::Begun {
        // Its agent ended while it made that: what is there is that, then. And where the trail has told of what is in force, no
        // other record will tell of it.
        let is_there = here == after || there == after;
        return if is_there || is_told {
            Fate::Made
        } else {
            Fate::Unclear
        };
    }
    // It seemed to fail, or what is there was written by somebody else.
    if there == before && seen.may_arrive || there == after && here != after {
        // What comes into force is told of, and whose it was.
        Fate::Open
    } else if is_told {
        Fate::NotMade
    } else {
        Fate::Unclear
    }
}

/// The changes that were begun, of which nobody knew what became of them, and that are what has come into force and nobody had
/// announced. The notes of those are to go that turn out not to have been made, since somebody else did the same. Announcements that
/// were left are withdrawn where something else has come into force and is kept: that was changed since.
pub(super) async fn explained(
    state: &ApiState,
    (before, after): (&PolicySet, &Arc<PolicySet>),
    taken: &Taken,
) -> Explained {
    let mut explained = Explained::default();
    let mut noted = noted_in_time(state, "somebody had begun to change policy over the API").await;
    noted.retain(|intent| is_what_came(intent, (before, after), &taken.others));
    let kept = look_at(state, policies_of(&noted, &taken.passed), after).await;
    // What cannot be seen may come into force yet.
    let past = past(taken.passed.clone(), kept.as_ref(), after);
    state.changes().withdraw(&past);
    for intent in noted {
        let there = kept.as_ref().and_then(|kept| kept.get(&intent.policy));
        let is_its = there.and_then(|there| is_its(state, &intent, there));
        let is_another_s = is_its == Some(false) && there.is_some_and(|there| there.digest == intent.after);
        if is_its == Some(true) {
            explained.theirs.push(intent);
        } else if is_another_s {
            let (caller, policy) = (&intent.caller, &intent.policy);
            tracing::info!(%caller, policy, "a change of policy that was begun was not made: somebody else did the same");
            state.changes().is_to_go(intent.id);
            state.changes().doubt();
        } else {
            explained.perhaps.push(intent);
        }
    }
    explained
}

/// Whether a change that is not known to have been made would have had one of these policies become what it is.
fn is_what_came(intent: &Intent, (before, after): (&PolicySet, &PolicySet), policies: &[String]) -> bool {
    let digest = |all: &PolicySet| all.get(&intent.policy).map(|policy| policy.digest().to_owned());
    intent.progress != Progress::Made
        && policies.contains(&intent.policy)
        && (&digest(before), &digest(after)) == (&intent.before, &intent.after)
}

/// A policy where it is kept, which may be another than the one in force; `None` where that cannot be seen now.
pub(super) async fn look(state: &ApiState, policy: &str, known: &Arc<PolicySet>) -> Option<Sighting> {
    let names = BTreeSet::from([policy.to_owned()]);
    look_at(state, names, known).await?.remove(policy)
}

/// The same of several policies, all as they are kept at one moment.
async fn look_at(
    state: &ApiState,
    names: BTreeSet<String>,
    known: &Arc<PolicySet>,
) -> Option<BTreeMap<String, Sighting>> {
    if names.is_empty() {
        return Some(BTreeMap::new());
    }
    // An engine's is not ours to change.
    if state.kept == PolicyStore::Engine {
        let in_force = names.into_iter().map(|name| {
            let digest = known.get(&name).map(|policy| policy.digest().to_owned());
            let sighting = Sighting {
                digest,
                written_by: None,
            };
            (name, sighting)
        });
        return Some(in_force.collect());
    }
    let (editor, known) = (state.editor.clone(), Arc::clone(known));
    seen_in_time(move || editor.look_at(names, &known)).await
}

/// What was told of and was to come into force later, where something else is kept by now: it does not come any more.
pub(super) async fn not_late(state: &ApiState, known: &Arc<PolicySet>) -> Option<String> {
    let late = match state.store.policy_late().await {
        Ok(late) => late?,
        Err(error) => {
            tracing::warn!(%error, "whether a change of policy comes into force late cannot be told now: it is tried again");
            state.changes().doubt();
            return None;
        }
    };
    if state.kept == PolicyStore::Engine {
        return Some(late);
    }
    let (editor, known) = (state.editor.clone(), Arc::clone(known));
    let Some(kept) = seen_in_time(move || editor.all_on_disk(&known)).await else {
        state.changes().doubt();
        return None;
    };
    (kept != late).then_some(late)
}

/// What there is to see; `None` where it cannot be seen now.
async fn seen_in_time<T: Send + 'static>(
    look: impl FnOnce() -> Result<T, EditError> + Send + 'static,
) -> Option<T> {
    let looking = tokio::task::spawn_blocking(look);
    match tokio::time::timeout(NOTICE_TIME, looking).await {
        Ok(Ok(Ok(found))) => Some(found),
        _ => None,
    }
}

/// Whether what is there is what this change wrote; `None` where that cannot be told: a file does not say so, nor does what is gone.
fn is_its(state: &ApiState, intent: &Intent, there: &Sighting) -> Option<bool> {
    (keeps_objects(state) && intent.after.is_some()).then(|| there.written_by == Some(intent.id))
}

/// Whether policies are kept as objects, whose keeper takes them over a network.
fn keeps_objects(state: &ApiState) -> bool {
    state.kept != PolicyStore::Engine && state.editor.keeps_objects()
}

#[cfg(test)]
mod tests;
