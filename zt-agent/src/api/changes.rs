// SPDX-License-Identifier: Apache-2.0
//! Every change of policy is recorded, whoever made it.
//!
//! What is changed over the API is recorded by the one who carries it out, as the caller's: from which digest to which
//! the directory was changed is known to them alone, who held its lock. What comes into force without having been
//! changed here (with an editor, by another engine that shares the directory, by the engine that is followed) is
//! recorded by [`record`], which takes one after the other what the single writer put in force, as that of whom it came
//! from. So that nothing is recorded twice, callers announce beforehand which policy will be theirs, by its digest.
//!
//! A change over the API is noted on disk before it is made, with its caller, and what is in force is kept: so a change has its
//! author and its difference also where the agent ended before it was recorded, or was not there ([`start`]).

mod announced;
mod doubts;
mod intent;
mod kept;
mod made;
mod noted;
mod start;
mod under_way;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};
use uuid::Uuid;

pub(super) use self::announced::Announced;
use self::announced::Announcements;
use self::doubts::Explained;
pub(super) use self::intent::{Left, acknowledged, doubted, forget, intend, left, unsure};
pub(super) use self::made::{MAX_STATEMENTS, made};
use self::made::{behind_owed, ids, policy_change};
pub(super) use self::noted::Noted;
use super::{ApiState, PolicyStore};
use crate::audit::archive::ArchiveError;
use crate::audit::clock;
use crate::audit::intent::Intent;
use crate::audit::record::Timestamp;
use crate::policy::PolicySet;
use crate::state::{InForce, Snapshot};

/// How long a change waits for those before it. One takes milliseconds where nothing is wrong.
const TURN_TIME: Duration = Duration::from_secs(10);
/// How long [`record`] may take to see a snapshot that others have seen.
const NOTICE_TIME: Duration = Duration::from_secs(5);

/// The changes under way.
#[derive(Debug, Default)]
pub(super) struct Changes {
    turn: Arc<AsyncMutex<()>>,
    announced: Mutex<Announcements>,
    /// The ids of those that are being made.
    under_way: Mutex<HashSet<Uuid>>,
    /// The ids of those whose records are handed over and may not be stored yet.
    handed: Mutex<HashSet<Uuid>>,
    /// The ids of those that were not made, and whose notes have to go yet.
    to_go: Mutex<HashSet<Uuid>>,
    /// Until when those may be made of which it is not known what came of them.
    arrive: Mutex<HashMap<Uuid, Instant>>,
    /// What came of some that were noted is to be looked at again.
    doubts: AtomicBool,
    /// The revision up to which [`record`] has seen what came into force.
    seen: watch::Sender<u64>,
    noted: Mutex<Noted>,
}

impl Changes {
    /// Waits until no other change is under way; `None` where that takes too long.
    pub(super) async fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        let turn = Arc::clone(&self.turn).lock_owned();
        tokio::time::timeout(TURN_TIME, turn).await.ok()
    }

    /// When policies came into force in this run, as far as [`record`] has seen it.
    pub(super) fn noted(&self) -> Noted {
        self.note(|noted, _| noted.clone())
    }

    /// Waits until [`record`] has seen what is in force at a revision.
    pub(super) async fn have_seen(&self, revision: u64) {
        let mut seen = self.seen.subscribe();
        // An error means that this is gone, and with it who asks.
        let _ = seen.wait_for(|seen| *seen >= revision).await;
    }

    fn note<T>(&self, note: impl FnOnce(&mut Noted, Timestamp) -> T) -> T {
        let mut noted = self.noted.lock().unwrap_or_else(PoisonError::into_inner);
        note(&mut noted, Timestamp(clock::now()))
    }

    /// Up to this revision it is seen what came into force.
    pub(super) fn has_seen(&self, revision: u64) {
        self.seen.send_if_modified(|seen| {
            let further = *seen < revision;
            *seen = (*seen).max(revision);
            further
        });
    }
}

/// Records changes of policy that nobody made over this API, until the agent stops.
pub async fn record(state: ApiState) {
    let mut snapshots: watch::Receiver<Arc<Snapshot>> = state.snapshots.clone();
    let mut newest = Arc::clone(&snapshots.borrow_and_update());
    // What came into force first may have been followed by others already.
    let first = state.policies_in_force.take().unwrap_or_else(|| InForce {
        revision: newest.revision,
        policies: Arc::clone(&newest.policies),
    });
    state.changes().note(Noted::begin);
    // Before anybody's change of it is recorded.
    start::found(&state, &first).await;
    state.changes().has_seen(first.revision);
    let mut before: Arc<PolicySet> = first.policies;
    let mut look = interval(doubts::AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut looks = JoinSet::new();
    let mut looked = None;
    loop {
        while let Some(next) = state.policies_in_force.take() {
            came_into_force(&state, &before, &next).await;
            // Not before: who waits for this records after it.
            state.changes().has_seen(next.revision);
            before = next.policies;
        }
        // Its policies were taken above, if they were others.
        state.changes().has_seen(newest.revision);
        // Now, when all is taken that was in force by the look.
        if let Some(looked) = looked.take() {
            start::looked_again(&state, looked, (&before, newest.revision)).await;
        }
        tokio::select! {
            // An error means that the node is gone, and with it all change.
            changed = snapshots.changed() => if changed.is_err() {
                return;
            },
            // Apart: what does not answer holds up nothing here.
            _ = look.tick(), if looks.is_empty() => if state.changes().take_doubts() {
                looks.spawn(start::look_again(state.clone(), Arc::clone(&before)));
            },
            Some(found) = looks.join_next() => looked = Some(found),
        }
        let waited = newest.policy_error.is_some();
        newest = Arc::clone(&snapshots.borrow_and_update());
        if waited && newest.policy_error.is_none() {
            // What waited for that has come into force, or does not come any more.
            state.changes().doubt();
        }
    }
}

/// Records that policy came into force, if somebody else changed it than those who record that themselves.
async fn came_into_force(state: &ApiState, before: &PolicySet, now: &InForce) {
    if now.policies.digest() == before.digest() {
        return;
    }
    // Before the trail tells of it: by what it told last, the next start finds what this was.
    kept::keep(state, &now.policies, Some(before.digest())).await;
    let changes = state.changes();
    changes.note(|noted, at| noted.changed(before, &now.policies, at));
    let taken = changes.take(before, &now.policies);
    if !changes.left().is_empty() {
        // It may not come into force any more.
        changes.doubt();
    }
    if taken.others.is_empty() {
        if taken.is_left && !taken.callers.is_empty() {
            // Told before, whatever other documents were not valid by then and are what they were again.
            told(state, now.policies.digest()).await;
        } else {
            came_late(state, now.policies.digest()).await;
        }
        return;
    }
    let Explained { theirs, perhaps } = doubts::explained(state, (before, &now.policies), &taken).await;
    // What came into force at once may have been changed by several.
    let is_theirs = |policy: &String| theirs.iter().any(|intent| intent.policy == *policy);
    let from = (!taken.others.iter().all(is_theirs)).then(|| came_from(state));
    let known = taken
        .callers
        .iter()
        .chain(theirs.iter().map(|intent| &intent.caller));
    let all = from.as_deref().into_iter().chain(known.map(|caller| &**caller));
    let caller: Arc<str> = all.collect::<Vec<_>>().join(", ").into();
    let mut change = policy_change(before, &now.policies, &caller, now.revision, true);
    // This is the record of one that is all there is.
    change.noted = match (&from, taken.callers.as_slice(), theirs.as_slice()) {
        (None, [], [one]) => Some(one.id),
        _ => None,
    };
    let begun: Vec<Intent> = theirs.into_iter().chain(perhaps).collect();
    change.begun.clone_from(&begun);
    // It has happened: a trail that does not take it is the recorder's to count and to tell.
    let (events, mut told) = behind_owed(state, change).await;
    told.extend(ids(&begun));
    if let Ok(stored) = state.intake.hand_over(events).await {
        intent::once_stored(state, stored, (Vec::new(), told));
    } else {
        tracing::error!("a change of policy could not be recorded: the agent is stopping");
    }
}

/// Notes that the policy in force is told.
async fn told(state: &ApiState, now: &str) {
    if let Err(error) = state.store.note_policy(now).await {
        tracing::error!(%error, "a change of policy that came into force late may be recorded twice");
    }
}

/// Whether the change to this policy was recorded before it came into force, and needs no other record.
async fn came_late(state: &ApiState, now: &str) -> bool {
    let noted = async {
        let late = state.store.policy_late().await?.is_some_and(|late| late == now);
        if late {
            state.store.note_policy(now).await?;
        }
        Ok::<_, ArchiveError>(late)
    };
    match noted.await {
        Ok(late) => late,
        Err(error) => {
            tracing::error!(%error, "whether a change of policy was recorded before cannot be told");
            false
        }
    }
}

/// Notes that a recorded change will come into force some time: it is not found as another one then.
pub(super) async fn will_come(state: &ApiState, to: &str) {
    if let Err(error) = state.store.note_late(to).await {
        tracing::error!(%error, "a change of policy that comes into force late may be recorded twice");
    }
}

/// Where policy comes from that nobody changed over this API.
fn came_from(state: &ApiState) -> String {
    match (&state.source, state.kept) {
        (Some(source), PolicyStore::Engine) => format!("engine {}", source.borrow().url),
        _ => state.editor.place(),
    }
}
