// SPDX-License-Identifier: Apache-2.0
//! What an agent finds when it starts: changes that an earlier run had begun and not recorded, and what was changed while none ran.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::intent::once_stored;
use super::kept::{keep, kept};
use super::{NOTICE_TIME, Noted, came_from, came_late, forget, recorded_diff};
use crate::api::{ApiState, PolicyStore};
use crate::audit::convert::PolicyChange;
use crate::audit::intent::{Intended, Intent};
use crate::audit::pipeline::ApiEvent;
use crate::policy::{AnyPolicy, PolicySet};
use crate::state::InForce;

/// What became of a change that an earlier run had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    /// It was made, or nothing shows that it was not; it has no record.
    Made,
    /// It was not made.
    NotMade,
    /// Something else is there by now: it may have been made before.
    Unclear,
}

/// What earlier runs had begun, and has no record.
#[derive(Default)]
struct Begun {
    /// What was made.
    made: Vec<Intent>,
    /// The digests of all policies with those of it that come into force later.
    late: Vec<String>,
    /// What may have been made.
    unclear: Vec<(Intended, Intent)>,
}

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
    let Begun { made, late, unclear } = begun(state, &first.policies, (noted, is_told)).await;
    let completed = |intent| completed(intent, first, is_told);
    let mut changes: Vec<PolicyChange> = made.iter().map(completed).collect();
    let all_begun = || -> Vec<Intent> {
        let unclear = unclear.iter().map(|(_, intent)| intent);
        made.iter().chain(unclear).cloned().collect()
    };
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
        }
    } else if !unclear.is_empty() {
        changes.push(found_changed(state, first, (None, None), all_begun()));
    }
    for change in &changes {
        let (caller, from, to) = (&change.caller, &change.from, &change.to);
        tracing::info!(%caller, ?from, %to, "policy was changed, and the agent ended before it recorded that, or did not run");
    }
    let events: Vec<ApiEvent> = changes.into_iter().map(ApiEvent::PolicyChanged).collect();
    if events.is_empty() {
        return;
    }
    let Ok(stored) = state.intake.hand_over(events).await else {
        tracing::error!("a change of policy could not be recorded: the agent is stopping");
        return;
    };
    // The notes of what was made go with their records.
    once_stored(state, stored, (late, unclear));
}

/// The changes that earlier runs had noted and not recorded, the oldest first.
async fn noted(state: &ApiState) -> Vec<(Intended, Intent)> {
    match state.store.intents().await {
        // Those of this run are under way.
        Ok(noted) => {
            let earlier = |(_, intent): &(Intended, Intent)| intent.run != state.started;
            noted.into_iter().filter(earlier).collect()
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

/// What became of the changes that were noted. The notes of those that were not made go.
async fn begun(
    state: &ApiState,
    in_force: &Arc<PolicySet>,
    (noted, is_told): (Vec<(Intended, Intent)>, bool),
) -> Begun {
    let mut found = Begun::default();
    // Each is looked at once, however many wanted to change it.
    let mut kept: BTreeMap<String, Option<String>> = BTreeMap::new();
    let followed = followed(&noted);
    for ((intended, intent), is_followed) in noted.into_iter().zip(followed) {
        let here = in_force.get(&intent.policy).map(AnyPolicy::digest);
        let there = if let Some(there) = kept.get(&intent.policy) {
            there.clone()
        } else {
            let there = on_disk(state, &intent.policy, in_force).await;
            kept.insert(intent.policy.clone(), there.clone());
            there
        };
        let there = there.as_deref();
        match fate(&intent, (here, there), is_told, is_followed) {
            Fate::Made => {
                let after = intent.after.as_deref();
                if there == after && here != after {
                    // It comes into force later, and is told by then.
                    let announced = state.changes().announce(&intent.policy, after, &intent.caller);
                    announced.leave();
                    found.late.push(intent.to.clone());
                }
                found.made.push(intent);
            }
            Fate::NotMade => {
                let (caller, policy) = (&intent.caller, &intent.policy);
                tracing::info!(%caller, policy, "a change of policy that was begun before the agent ended was not made");
                forget(state, Some(intended)).await;
            }
            // With the record that tells of it.
            Fate::Unclear => found.unclear.push((intended, intent)),
        }
    }
    found
}

/// Of each note, the oldest first, whether a later change went on from what it was to make: then it was made.
fn followed(noted: &[(Intended, Intent)]) -> Vec<bool> {
    let mut later = BTreeSet::new();
    let mut followed: Vec<bool> = noted
        .iter()
        .rev()
        .map(|(_, intent)| {
            let is_followed = later.contains(intent.to.as_str());
            later.insert(intent.from.as_str());
            is_followed
        })
        .collect();
    followed.reverse();
    followed
}

/// What became of a change, by the digest of its policy: as it is in force `here`, and as it is `there`, where it is kept. `is_told`: the
/// trail has told of what is in force. `is_followed`: a later change went on from it. As the note is there, it has no record.
fn fate(
    intent: &Intent,
    (here, there): (Option<&str>, Option<&str>),
    is_told: bool,
    is_followed: bool,
) -> Fate {
    let (before, after) = (intent.before.as_deref(), intent.after.as_deref());
    if is_followed || here == after && !is_told || there == after && here != after {
        return Fate::Made;
    }
    if here == before && there == before {
        return Fate::NotMade;
    }
    // Where the trail has told of what is in force, no other record will tell of it.
    if is_told { Fate::Made } else { Fate::Unclear }
}

/// The digest of a policy where it is kept, which may be another than the one in force; that one where nothing else is known.
async fn on_disk(state: &ApiState, policy: &str, in_force: &Arc<PolicySet>) -> Option<String> {
    let here = in_force.get(policy).map(|policy| policy.digest().to_owned());
    // An engine's is not ours to change.
    if state.kept == PolicyStore::Engine {
        return here;
    }
    let (editor, known, policy) = (state.editor.clone(), Arc::clone(in_force), policy.to_owned());
    let looking = tokio::task::spawn_blocking(move || editor.on_disk(&policy, &known));
    match tokio::time::timeout(NOTICE_TIME, looking).await {
        Ok(Ok(Ok(found))) => found,
        _ => here,
    }
}

/// The record of a change that an earlier run had made. What is in force may have been told already: then this tells of nothing that
/// came into force.
fn completed(intent: &Intent, first: &InForce, is_told: bool) -> PolicyChange {
    PolicyChange {
        caller: Arc::clone(&intent.caller),
        from: Some(intent.from.as_str().into()),
        to: intent.to.as_str().into(),
        diff: intent.diff.clone(),
        revision: first.revision,
        in_force: !is_told && intent.to == first.policies.digest(),
        begun: vec![intent.clone()],
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::record::Timestamp;

    fn intent(before: Option<&str>, after: Option<&str>, from: &str, to: &str) -> Intent {
        Intent {
            run: 1,
            at: Timestamp(1),
            caller: Arc::from("somebody"),
            policy: "p".to_owned(),
            before: before.map(str::to_owned),
            after: after.map(str::to_owned),
            from: from.to_owned(),
            to: to.to_owned(),
            diff: serde_json::Value::Null,
        }
    }

    #[test]
    fn what_became_of_a_change_is_told_by_what_is_there() {
        let (a, b, c) = (Some("a"), Some("b"), Some("c"));
        for (change, here, there, is_told, wanted) in [
            ((a, b), b, b, false, Fate::Made),
            ((None, b), b, b, false, Fate::Made),
            ((a, None), None, None, false, Fate::Made),
            // It waits for other documents, or the policy in force is a copy.
            ((a, b), a, b, true, Fate::Made),
            ((a, b), a, b, false, Fate::Made),
            ((a, b), a, a, true, Fate::NotMade),
            ((a, b), a, a, false, Fate::NotMade),
            ((None, b), None, None, false, Fate::NotMade),
            // It has no record, whoever has told of what is there.
            ((a, b), b, b, true, Fate::Made),
            ((a, b), c, c, true, Fate::Made),
            ((a, b), c, c, false, Fate::Unclear),
            ((a, b), None, None, false, Fate::Unclear),
        ] {
            let intent = intent(change.0, change.1, "from", "to");
            assert_eq!(
                fate(&intent, (here, there), is_told, false),
                wanted,
                "{intent:?} {here:?} {there:?} {is_told}"
            );
            assert_eq!(fate(&intent, (here, there), is_told, true), Fate::Made);
        }
    }

    #[test]
    fn what_a_later_change_went_on_from_was_made() {
        let noted: Vec<(Intended, Intent)> = [("a", "b"), ("b", "c"), ("x", "a"), ("c", "b"), ("b", "d")]
            .into_iter()
            .zip(1..)
            .map(|((from, to), row)| {
                let noted = Intended {
                    row,
                    run: 1,
                    at: Timestamp(1),
                };
                (noted, intent(None, None, from, to))
            })
            .collect();
        // What comes before it does not show that.
        assert_eq!(followed(&noted), [true, true, false, true, false]);
    }
}
