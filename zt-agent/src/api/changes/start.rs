// SPDX-License-Identifier: Apache-2.0
//! What an agent finds when it starts: changes that an earlier run had begun and not recorded, and what was changed while none ran.

use std::sync::Arc;

use tokio::task::JoinError;
use uuid::Uuid;

use super::doubts::{Begun, begun, not_late};
use super::intent::{acknowledged, answered, forget_again, once_stored};
use super::kept::{keep, kept};
use super::made::{completed, ids, recorded_diff};
use super::{Noted, came_from, came_late, under_way};
use crate::api::ApiState;
use crate::audit::archive::ArchiveError;
use crate::audit::convert::PolicyChange;
use crate::audit::intent::{Intent, Progress};
use crate::audit::pipeline::ApiEvent;
use crate::policy::PolicySet;
use crate::state::InForce;

/// Records what was changed since the trail told last: with its caller where an earlier run had noted who was about to change it,
/// and otherwise as found.
pub(super) async fn found(state: &ApiState, first: &InForce) {
    let now = first.policies.digest();
    let told = match state.store.policy_told().await {
        Ok(told) => told,
        Err(error) => {
            state.changes().note(Noted::any_changed);
            tracing::error!(%error, "whether policy was changed while no agent ran cannot be told");
            return;
        }
    };
    keep(state, &first.policies, told.as_deref()).await;
    let noted = noted(state).await;
    let is_told = if let Some(told) = &told {
        came_late(state, now).await || told == now
    } else {
        if let Err(error) = state.store.note_policy(now).await {
            tracing::error!(%error, "the policy that the trail begins with could not be noted");
        }
        // A trail whose file was damaged may have lost that, and not the notes.
        noted.is_empty()
    };
    let found = begun(state, &first.policies, (noted, is_told)).await;
    found.settle(state);
    forget_again(state).await;
    if !matches!(state.store.policy_late().await, Ok(None)) {
        // What an earlier run had announced may not come into force any more.
        state.changes().doubt();
    }
    let late = found.late();
    let Begun { made, unclear, .. } = found;
    // What is in force may have been told already: then this tells of nothing that came into force.
    let completed = |intent: &Intent| {
        let in_force = !is_told && intent.to == first.policies.digest();
        completed(intent, first.revision, in_force)
    };
    let mut changes: Vec<PolicyChange> = made.iter().map(completed).collect();
    let all_begun = || -> Vec<Intent> { made.iter().chain(&unclear).cloned().collect() };
    let since = told.as_deref().filter(|_| !is_told);
    if let Some(told) = since {
        let before = kept(state, told).await;
        state.changes().note(|noted, at| match &before {
            Some(before) => noted.changed(before, &first.policies, at),
            None => noted.any_changed(at),
        });
        // What is begun leads from one to the next; what it does not explain was changed by somebody else.
        let explained = made.iter().fold(
            told,
            |at, intent| {
                if intent.from == at { intent.to.as_str() } else { at }
            },
        );
        if explained != now {
            changes.push(found_changed(
                state,
                first,
                (Some(told), before.as_ref()),
                all_begun(),
            ));
        } else if let Some(last) = changes.last_mut() {
            // Its notes have to go with a record, too.
            last.begun.extend_from_slice(&unclear);
        }
    } else if !unclear.is_empty() {
        changes.push(found_changed(state, first, (None, None), all_begun()));
    }
    for change in &changes {
        let (caller, from, to) = (&change.caller, &change.from, &change.to);
        tracing::info!(%caller, ?from, %to, "policy was changed, and the agent ended before it recorded that, or did not run");
    }
    hand_over(state, changes, (late, ids(&all_begun()))).await;
}

/// Looks again what came of changes that were noted, with the policies in force by which it looked. `None` where there is nothing to
/// look at, or the notes cannot be read now. What is in force is told by now.
pub(super) async fn look_again(state: ApiState, in_force: Arc<PolicySet>) -> Option<(Arc<PolicySet>, Begun)> {
    forget_again(&state).await;
    let noted = match under_way::noted(&state).await {
        Ok(noted) => noted,
        Err(error) => {
            tracing::warn!(%error, "what came of changes of policy that were begun cannot be told now: it is tried again");
            state.changes().doubt();
            return None;
        }
    };
    let mut found = begun(&state, &in_force, (noted, true)).await;
    found.not_late = not_late(&state, &in_force).await;
    Some((in_force, found))
}

/// Goes by what was found then: changes that turn out to have been made are recorded, and announcements withdrawn whose changes do not come
/// any more. Where something else has come into force since, it is looked at again.
pub(super) async fn looked_again(
    state: &ApiState,
    looked: Result<Option<(Arc<PolicySet>, Begun)>, JoinError>,
    (in_force, revision): (&Arc<PolicySet>, u64),
) {
    let found = match looked {
        Ok(Some((before, found))) if Arc::ptr_eq(&before, in_force) => found,
        Ok(None) => return,
        Ok(Some(_)) => {
            state.changes().doubt();
            return;
        }
        Err(error) => {
            tracing::error!(%error, "looking what came of changes of policy broke off: it is tried again");
            state.changes().doubt();
            return;
        }
    };
    found.settle(state);
    found.withdraw(state);
    // What was announced in an earlier run may wait for other documents yet.
    if let Some(late) = &found.not_late
        && state.changes().is_nothing_announced()
        && state.snapshot().policy_error.is_none()
    {
        nothing_is_late(state, late, in_force.digest()).await;
    }
    for intent in &found.made {
        let (caller, from, to) = (&intent.caller, &intent.from, &intent.to);
        tracing::info!(%caller, from, to, "a change of policy was made, of which nobody knew that");
    }
    let told = ids(&found.made);
    // Nobody else tells of them. Where their records are not stored, they are known to have been made.
    state.changes().hold(&told);
    for intent in &found.made {
        // Who does not answer is waited for once.
        if intent.progress != Progress::Made && !acknowledged(state, Some(intent.id)).await {
            break;
        }
    }
    let changes = found.made.iter().map(|intent| completed(intent, revision, false));
    // Where the trail has told of what is in force, nothing is unclear.
    hand_over(state, changes.collect(), (found.late(), told)).await;
}

/// What is noted as `late` does not come into force any more: what somebody does later is theirs, also where it is the same. Where the
/// trail has not told of what is in force, the record of that says so.
async fn nothing_is_late(state: &ApiState, late: &str, in_force: &str) {
    let noted = async {
        let is_told = state.store.policy_told().await?.as_deref() == Some(in_force);
        if is_told && state.store.policy_late().await?.as_deref() == Some(late) {
            state.store.note_policy(in_force).await?;
        }
        Ok::<_, ArchiveError>(())
    };
    if !answered(noted, "that does not come into force any more stays for now").await {
        state.changes().doubt();
    }
}

/// Has changes recorded. Until they are stored, nobody else tells of what `told` has.
async fn hand_over(state: &ApiState, changes: Vec<PolicyChange>, (late, told): (Vec<String>, Vec<Uuid>)) {
    let events: Vec<ApiEvent> = changes.into_iter().map(ApiEvent::PolicyChanged).collect();
    if events.is_empty() {
        return;
    }
    let Ok(stored) = state.intake.hand_over(events).await else {
        tracing::error!("a change of policy could not be recorded: the agent is stopping");
        return;
    };
    // The notes of what was made go with their records.
    once_stored(state, stored, (late, told));
}

/// The changes that earlier runs had noted and not recorded, the oldest first.
async fn noted(state: &ApiState) -> Vec<Intent> {
    match state.store.intents().await {
        // Those of this run are under way.
        Ok(mut noted) => {
            noted.retain(|intent| intent.run != state.started);
            noted
        }
        Err(error) => {
            tracing::error!(
                %error,
                "whether an earlier run had begun to change policy cannot be told: what it changed is recorded as found"
            );
            Vec::new()
        }
    }
}

/// The record of what somebody changed of whom nothing is known. `told` is what the trail told last, and the copy of it; `begun` is
/// what is known to have been begun by then.
fn found_changed(
    state: &ApiState,
    first: &InForce,
    (told, before): (Option<&str>, Option<&PolicySet>),
    begun: Vec<Intent>,
) -> PolicyChange {
    PolicyChange {
        caller: format!("{}, found at start", came_from(state)).into(),
        from: told.map(Arc::from),
        to: first.policies.digest().into(),
        diff: before.map_or(serde_json::Value::Null, |before| {
            recorded_diff(first.policies.diff_from(before))
        }),
        revision: first.revision,
        in_force: true,
        begun,
        noted: None,
    }
}
