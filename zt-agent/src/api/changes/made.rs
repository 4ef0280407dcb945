// SPDX-License-Identifier: Apache-2.0
//! The records of changes.

use std::sync::Arc;

use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use super::intent::once_stored;
use super::under_way::noted_in_time;
use crate::api::ApiState;
use crate::api::recorded::{MAX_WAIT, Unrecorded};
use crate::audit::convert::PolicyChange;
use crate::audit::intent::{Intent, Progress};
use crate::audit::pipeline::{ApiEvent, NotRecorded};
use crate::policy::{PolicyDiff, PolicySet};
use crate::policy_dir::Plan;

/// Statements of each kind that a record spells out; it says how many there were.
pub(in crate::api) const MAX_STATEMENTS: usize = 500;

/// Records a change that a caller made, behind those that were made before it and have no record, and waits until that is stored.
pub(in crate::api) async fn made(
    state: &ApiState,
    plan: &Plan,
    id: Uuid,
    (revision, in_force): (u64, bool),
    caller: &Arc<str>,
) -> Result<(), Unrecorded> {
    let mut change = policy_change(&plan.before, &plan.after, caller, revision, in_force);
    change.noted = Some(id);
    let (events, mut told) = behind_owed(state, change).await;
    told.push(id);
    let deadline = Instant::now() + MAX_WAIT;
    let late = Unrecorded::Late(MAX_WAIT);
    let handed = timeout_at(deadline, state.intake.hand_over(events)).await;
    let mut stored = handed.map_err(|_| late)??;
    // Until they are stored nobody else tells of them, whoever waits for that.
    state.changes().hold(&told);
    if let Ok(outcome) = timeout_at(deadline, &mut stored).await {
        state.changes().let_go(&told);
        return outcome.map_err(|_| NotRecorded::NotStored.into());
    }
    once_stored(state, stored, (Vec::new(), told));
    Err(late)
}

/// A change behind those that were made before and have no record, since storing that failed: the trail tells of them in their order.
/// And the ids of these.
pub(super) async fn behind_owed(state: &ApiState, change: PolicyChange) -> (Vec<ApiEvent>, Vec<Uuid>) {
    let mut owed = noted_in_time(state, "an earlier change of policy has no record").await;
    owed.retain(|intent| intent.progress == Progress::Made && Some(intent.id) != change.noted);
    // They are told of before what has taken their place.
    let mut changes: Vec<PolicyChange> = owed
        .iter()
        .map(|intent| completed(intent, change.revision, false))
        .collect();
    changes.push(change);
    let events = changes.into_iter().map(ApiEvent::PolicyChanged).collect();
    (events, ids(&owed))
}

/// The ids of changes.
pub(super) fn ids(noted: &[Intent]) -> Vec<Uuid> {
    noted.iter().map(|intent| intent.id).collect()
}

/// The record of a change that was made before, as it was noted.
pub(super) fn completed(intent: &Intent, revision: u64, in_force: bool) -> PolicyChange {
    PolicyChange {
        caller: Arc::clone(&intent.caller),
        from: Some(intent.from.as_str().into()),
        to: intent.to.as_str().into(),
        diff: intent.diff.clone(),
        revision,
        in_force,
        begun: vec![intent.clone()],
        noted: Some(intent.id),
    }
}

pub(super) fn policy_change(
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
        noted: None,
    }
}

/// The difference as it is recorded: a change of a whole policy must not become a record of megabytes.
pub(super) fn recorded_diff(mut diff: PolicyDiff) -> serde_json::Value {
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
