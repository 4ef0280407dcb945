// SPDX-License-Identifier: Apache-2.0
//! Every change of policy is recorded, whoever made it: over the API, whose caller is known, or with an editor.
//!
//! What is recorded is what came into force: the snapshots are watched, and a caller has announced beforehand which
//! policy will be theirs, by its digest. What came into force at once may have been changed by several.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncGuard, oneshot, watch};

use super::ApiState;
use crate::audit::convert::PolicyChange;
use crate::audit::pipeline::ApiEvent;
use crate::policy::{PolicyDiff, PolicySet};
use crate::policy_dir::Plan;
use crate::state::Snapshot;

/// Who changed a policy that nobody announced: whoever may write to the directory.
const BY_FILE: &str = "file";
/// How long a caller waits for the record of their change.
const RECORD_TIME: Duration = Duration::from_secs(5);

/// Statements of each kind that a record spells out; it says how many there were.
const MAX_STATEMENTS: usize = 500;

/// The changes under way.
#[derive(Debug, Default)]
pub(super) struct Changes {
    turn: AsyncMutex<()>,
    announced: Mutex<BTreeMap<String, Announcement>>,
}

#[derive(Debug)]
struct Announcement {
    /// The policy's digest as it will be; `None` where it will be gone.
    wanted: Option<String>,
    caller: Arc<str>,
    done: oneshot::Sender<()>,
}

/// A change that was announced. Dropping it takes the announcement back.
pub(super) struct Announced<'c> {
    changes: &'c Changes,
    name: String,
    done: oneshot::Receiver<()>,
}

impl Changes {
    /// Waits until no other change is under way.
    pub(super) async fn turn(&self) -> AsyncGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The change of this policy to this digest will be that caller's.
    pub(super) fn announce(&self, name: &str, wanted: Option<&str>, caller: &Arc<str>) -> Announced<'_> {
        let (sender, done) = oneshot::channel();
        let announcement = Announcement {
            wanted: wanted.map(str::to_owned),
            caller: Arc::clone(caller),
            done: sender,
        };
        self.announced().insert(name.to_owned(), announcement);
        Announced {
            changes: self,
            name: name.to_owned(),
            done,
        }
    }

    fn announced(&self) -> MutexGuard<'_, BTreeMap<String, Announcement>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the announcements of what changed between these two; and whether somebody changed more than that.
    fn take(&self, before: &PolicySet, after: &PolicySet) -> (Vec<Announcement>, bool) {
        let digests = |set: &PolicySet| -> BTreeMap<String, String> {
            let all = set.all().iter();
            all.map(|policy| (policy.name().to_owned(), policy.digest().to_owned()))
                .collect()
        };
        let (before, after) = (digests(before), digests(after));
        let names: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
        let mut announced = self.announced();
        let mut taken = Vec::new();
        let mut more = false;
        for name in names
            .into_iter()
            .filter(|name| before.get(*name) != after.get(*name))
        {
            let theirs = announced
                .get(name)
                .is_some_and(|one| one.wanted.as_ref() == after.get(name));
            let announcement = if theirs { announced.remove(name) } else { None };
            more |= announcement.is_none();
            taken.extend(announcement);
        }
        (taken, more)
    }
}

impl Announced<'_> {
    /// Waits until the change is recorded, if it was one.
    pub(super) async fn recorded(mut self) {
        let waiting = self.changes.announced().contains_key(&self.name);
        if waiting && tokio::time::timeout(RECORD_TIME, &mut self.done).await.is_err() {
            tracing::error!("a change of policy is in force and its record is late");
        }
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.changes.announced().remove(&self.name);
    }
}

/// Records changes of policy until the agent stops.
pub async fn record(state: ApiState) {
    let mut snapshots: watch::Receiver<Arc<Snapshot>> = state.snapshots.clone();
    let mut policies: Arc<PolicySet> = Arc::clone(&snapshots.borrow_and_update().policies);
    // An error means that the node is gone, and with it all change.
    while snapshots.changed().await.is_ok() {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        if snapshot.policies.digest() == policies.digest() {
            continue;
        }
        let (announcements, more) = state.changes().take(&policies, &snapshot.policies);
        let engine = state
            .source
            .as_ref()
            .map(|source| format!("engine {}", source.borrow().url));
        let others = more.then_some(engine.as_deref().unwrap_or(BY_FILE));
        let callers = announcements
            .iter()
            .map(|announcement| &*announcement.caller)
            .chain(others);
        let caller: Arc<str> = callers.collect::<Vec<_>>().join(", ").into();
        write(&state, snapshot.revision, &policies, &snapshot.policies, caller).await;
        policies = Arc::clone(&snapshot.policies);
        for announcement in announcements {
            // The caller may have given up waiting.
            let _ = announcement.done.send(());
        }
    }
}

/// Records a change that was made, and was changed by another process before it came into force here.
pub(super) async fn superseded(state: &ApiState, plan: &Plan, revision: u64, caller: &Arc<str>) {
    write(state, revision, &plan.before, &plan.after, Arc::clone(caller)).await;
}

async fn write(state: &ApiState, revision: u64, before: &PolicySet, after: &PolicySet, caller: Arc<str>) {
    let diff = after.diff_from(before);
    tracing::info!(
        %caller, from = diff.from, to = diff.to, revision,
        added = diff.added.len(), removed = diff.removed.len(), "policy changed"
    );
    let event = ApiEvent::PolicyChanged(PolicyChange {
        caller,
        from: Some(Arc::from(diff.from.as_str())),
        to: Arc::from(diff.to.as_str()),
        diff: recorded_diff(diff),
        revision,
    });
    // It has happened: a trail that takes nothing more is the recorder's to count and to tell.
    if state.intake.record_api(vec![event]).await.is_err() {
        tracing::error!("the change of policy could not be recorded: the agent is stopping");
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
