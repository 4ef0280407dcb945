// SPDX-License-Identifier: Apache-2.0
//! Every change of policy is recorded, whoever made it: over the API, whose caller is known, or with an editor.
//!
//! What is recorded is what came into force: the snapshots are watched, and a caller has announced beforehand which
//! digest will be theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex as AsyncMutex, MutexGuard as AsyncGuard, oneshot, watch};

use super::ApiState;
use crate::audit::convert::PolicyChange;
use crate::audit::pipeline::ApiEvent;
use crate::policy::{PolicyDiff, PolicySet};
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
    caller: Arc<str>,
    done: oneshot::Sender<()>,
}

/// A change that was announced. Dropping it takes the announcement back.
pub(super) struct Announced<'c> {
    changes: &'c Changes,
    digest: String,
    done: oneshot::Receiver<()>,
}

impl Changes {
    /// Waits until no other change is under way.
    pub(super) async fn turn(&self) -> AsyncGuard<'_, ()> {
        self.turn.lock().await
    }

    /// The change to this digest will be that caller's.
    pub(super) fn announce(&self, digest: &str, caller: &Arc<str>) -> Announced<'_> {
        let (sender, done) = oneshot::channel();
        let announcement = Announcement {
            caller: Arc::clone(caller),
            done: sender,
        };
        self.announced().insert(digest.to_owned(), announcement);
        Announced {
            changes: self,
            digest: digest.to_owned(),
            done,
        }
    }

    fn announced(&self) -> MutexGuard<'_, BTreeMap<String, Announcement>> {
        self.announced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, digest: &str) -> Option<Announcement> {
        self.announced().remove(digest)
    }
}

impl Announced<'_> {
    /// Waits until the change is recorded, if it was one.
    pub(super) async fn recorded(mut self) {
        let waiting = self.changes.announced().contains_key(&self.digest);
        if waiting && tokio::time::timeout(RECORD_TIME, &mut self.done).await.is_err() {
            tracing::error!("a change of policy is in force and its record is late");
        }
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.changes.take(&self.digest);
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
        let announcement = state.changes().take(snapshot.policies.digest());
        let caller = announcement.as_ref().map_or_else(
            || Arc::from(BY_FILE),
            |announcement| Arc::clone(&announcement.caller),
        );
        write(&state, &snapshot, &policies, caller).await;
        policies = Arc::clone(&snapshot.policies);
        if let Some(announcement) = announcement {
            // The caller may have given up waiting.
            let _ = announcement.done.send(());
        }
    }
}

async fn write(state: &ApiState, snapshot: &Snapshot, before: &PolicySet, caller: Arc<str>) {
    let diff = snapshot.policies.diff_from(before);
    tracing::info!(
        %caller, from = diff.from, to = diff.to, revision = snapshot.revision,
        added = diff.added.len(), removed = diff.removed.len(), "policy changed"
    );
    let event = ApiEvent::PolicyChanged(PolicyChange {
        caller,
        from: Some(Arc::from(diff.from.as_str())),
        to: Arc::from(diff.to.as_str()),
        diff: recorded_diff(diff),
        revision: snapshot.revision,
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
