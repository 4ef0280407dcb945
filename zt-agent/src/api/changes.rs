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

mod intent;
mod kept;
mod noted;
mod start;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard, watch};

pub(super) use self::intent::{Left, forget, intend, left};
pub(super) use self::noted::Noted;
use super::recorded::{MAX_WAIT, Unrecorded, recorded};
use super::{ApiState, PolicyStore};
use crate::audit::archive::ArchiveError;
use crate::audit::clock;
use crate::audit::convert::PolicyChange;
use crate::audit::pipeline::ApiEvent;
use crate::audit::record::Timestamp;
use crate::policy::{PolicyDiff, PolicySet};
use crate::policy_dir::Plan;
use crate::state::{InForce, Snapshot};

/// How long a change waits for those before it. One takes milliseconds where nothing is wrong.
const TURN_TIME: Duration = Duration::from_secs(10);
/// How long [`record`] may take to see a snapshot that others have seen.
const NOTICE_TIME: Duration = Duration::from_secs(5);

/// Statements of each kind that a record spells out; it says how many there were.
pub(super) const MAX_STATEMENTS: usize = 500;

/// The changes under way.
#[derive(Debug, Default)]
pub(super) struct Changes {
    turn: Arc<AsyncMutex<()>>,
    announced: Mutex<BTreeMap<String, Announcement>>,
    /// The revision up to which [`record`] has seen what came into force.
    seen: watch::Sender<u64>,
    noted: Mutex<Noted>,
}

#[derive(Clone, Debug)]
struct Announcement {
    /// The policy's digest as it will be; `None` where it will be gone.
    wanted: Option<String>,
    caller: Arc<str>,
    /// It comes into force some time, and is recorded by then.
    left: bool,
}

/// What of a change was announced.
struct Taken {
    /// Whose it is.
    callers: Vec<Arc<str>>,
    /// The policies that somebody else changed.
    others: Vec<String>,
    /// All of it was left: nobody records it when it comes into force.
    is_left: bool,
}

/// A change that was announced. Dropping it takes the announcement back.
pub(super) struct Announced<'c> {
    changes: &'c Changes,
    name: Option<String>,
}

impl Changes {
    /// Waits until no other change is under way; `None` where that takes too long.
    pub(super) async fn turn(&self) -> Option<OwnedMutexGuard<()>> {
        let turn = Arc::clone(&self.turn).lock_owned();
        tokio::time::timeout(TURN_TIME, turn).await.ok()
    }

    /// The change of this policy to this digest will be that caller's.
    pub(super) fn announce(&self, name: &str, wanted: Option<&str>, caller: &Arc<str>) -> Announced<'_> {
        let announcement = Announcement {
            wanted: wanted.map(str::to_owned),
            caller: Arc::clone(caller),
            left: false,
        };
        self.announced().insert(name.to_owned(), announcement);
        Announced {
            changes: self,
            name: Some(name.to_owned()),
        }
    }

    fn announced(&self) -> MutexGuard<'_, BTreeMap<String, Announcement>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose announced changes are between these two, and what somebody changed besides.
    fn take(&self, before: &PolicySet, after: &PolicySet) -> Taken {
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
            is_left: true,
        };
        for name in names
            .into_iter()
            .filter(|name| before.get(*name) != after.get(*name))
        {
            let theirs = announced
                .get(name)
                .is_some_and(|one| one.wanted.as_ref() == after.get(name));
            let announcement = if theirs { announced.remove(name) } else { None };
            match announcement {
                Some(announcement) => {
                    taken.callers.push(announcement.caller);
                    taken.is_left &= announcement.left;
                }
                None => taken.others.push(name.clone()),
            }
        }
        taken
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

impl Announced<'_> {
    /// Waits until what came into force up to that revision has been seen by [`record`]: then the announcement has
    /// served.
    pub(super) async fn seen(self, revision: u64) {
        let mut seen = self.changes.seen.subscribe();
        let waiting = seen.wait_for(|seen| *seen >= revision);
        if tokio::time::timeout(NOTICE_TIME, waiting).await.is_err() {
            tracing::warn!(
                revision,
                "what came into force is recorded late, and may be recorded twice"
            );
        }
    }

    /// Leaves the announcement: the change will come into force some time.
    pub(super) fn leave(mut self) {
        let name = self.name.take();
        if let Some(name) = name
            && let Some(left) = self.changes.announced().get_mut(&name)
        {
            left.left = true;
        }
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            self.changes.announced().remove(name);
        }
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
    loop {
        while let Some(next) = state.policies_in_force.take() {
            came_into_force(&state, &before, &next).await;
            // Not before: who waits for this records after it.
            state.changes().has_seen(next.revision);
            before = next.policies;
        }
        // Its policies were taken above, if they were others.
        state.changes().has_seen(newest.revision);
        // An error means that the node is gone, and with it all change.
        if snapshots.changed().await.is_err() {
            return;
        }
        newest = Arc::clone(&snapshots.borrow_and_update());
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
    if taken.others.is_empty() {
        if taken.is_left && !taken.callers.is_empty() {
            // Told before, whatever other documents were not valid by then and are what they were again.
            told(state, now.policies.digest()).await;
        } else {
            came_late(state, now.policies.digest()).await;
        }
        return;
    }
    // What came into force at once may have been changed by several.
    let from = came_from(state);
    let all = std::iter::once(from.as_str()).chain(taken.callers.iter().map(|caller| &**caller));
    let caller: Arc<str> = all.collect::<Vec<_>>().join(", ").into();
    let begun = intent::begun_here(state, (before, &now.policies), &taken.others).await;
    let mut change = policy_change(before, &now.policies, &caller, now.revision, true);
    change.begun = begun.iter().map(|(_, intent)| intent.clone()).collect();
    // It has happened: a trail that does not take it is the recorder's to count and to tell.
    let event = ApiEvent::PolicyChanged(change);
    if let Ok(stored) = state.intake.hand_over(vec![event]).await {
        intent::once_stored(state, stored, (Vec::new(), begun));
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

/// Records a change that a caller made, and waits until the record is stored.
pub(super) async fn made(
    state: &ApiState,
    plan: &Plan,
    revision: u64,
    in_force: bool,
    caller: &Arc<str>,
) -> Result<(), Unrecorded> {
    let change = policy_change(&plan.before, &plan.after, caller, revision, in_force);
    recorded(state, vec![ApiEvent::PolicyChanged(change)], MAX_WAIT).await
}

fn policy_change(
    before: &PolicySet,
    after: &PolicySet,
    caller: &Arc<str>,
    revision: u64,
    in_force: bool,
) -> PolicyChange {
    let diff = after.diff_from(before);
    tracing::info!(
        %caller, from = diff.from, to = diff.to, revision, in_force,
        added = diff.added.len(), removed = diff.removed.len(), "policy changed"
    );
    PolicyChange {
        caller: Arc::clone(caller),
        from: Some(Arc::from(diff.from.as_str())),
        to: Arc::from(diff.to.as_str()),
        diff: recorded_diff(diff),
        revision,
        in_force,
        begun: Vec::new(),
    }
}

/// The difference as it is recorded: a change of a whole policy must not become a record of megabytes.
fn recorded_diff(mut diff: PolicyDiff) -> serde_json::Value {
    let (added, removed) = (diff.added.len(), diff.removed.len());
    diff.added.truncate(MAX_STATEMENTS);
    diff.removed.truncate(MAX_STATEMENTS);
    diff.policies.truncate(MAX_STATEMENTS);
    // Texts and lists: nothing in it can fail to be JSON.
    let mut value = serde_json::to_value(diff).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.insert("added_total".to_owned(), added.into());
        fields.insert("removed_total".to_owned(), removed.into());
    }
    value
}
