// SPDX-License-Identifier: Apache-2.0
//! Who is about to change policy is on disk before policy changes.

use std::sync::Arc;

use tokio::sync::oneshot;

use super::{NOTICE_TIME, recorded_diff, will_come};
use crate::api::ApiState;
use crate::api::problem::ApiProblem;
use crate::api::recorded::MAX_WAIT;
use crate::audit::archive::ArchiveError;
use crate::audit::clock;
use crate::audit::intent::{Intended, Intent};
use crate::audit::record::Timestamp;
use crate::policy::{AnyPolicy, PolicySet};
use crate::policy_dir::Plan;

/// Notes a change that is about to be made. Where that cannot be done, the change is not made: nobody would know whose it was, if
/// the agent ended before it is recorded. One that `goes_back` is made all the same, and nothing is noted. The note goes when the record
/// is stored.
pub(in crate::api) async fn intend(
    state: &ApiState,
    plan: &Plan,
    caller: &Arc<str>,
    goes_back: bool,
) -> Result<Option<Intended>, ApiProblem> {
    let digest = |policy: Option<&AnyPolicy>| policy.map(|policy| policy.digest().to_owned());
    let intent = Intent {
        run: state.started,
        at: Timestamp(clock::now()),
        caller: Arc::clone(caller),
        policy: plan.name.clone(),
        before: digest(plan.policy_before()),
        after: digest(plan.policy_after()),
        from: plan.before.digest().to_owned(),
        to: plan.after.digest().to_owned(),
        diff: recorded_diff(plan.after.diff_from(&plan.before)),
    };
    let why = match tokio::time::timeout(MAX_WAIT, noted_apart(state, intent.clone())).await {
        Ok(Ok(Ok(intended))) => return Ok(Some(intended)),
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(_)) => "it broke off".to_owned(),
        Err(_) => format!("it did not answer within {} seconds", MAX_WAIT.as_secs()),
    };
    if goes_back {
        let policy = &plan.name;
        tracing::error!(
            policy,
            why,
            "the rollout goes back, though that cannot be noted before"
        );
        return Ok(None);
    }
    // It may have been noted all the same, and is not made.
    answered(state.store.forget_attempt(&intent)).await;
    tracing::error!(
        policy = plan.name,
        why,
        "a change of policy cannot be noted before it is made, and is not made"
    );
    let detail = format!(
        "nothing was changed: the audit store cannot note who is about to change policy ({why}); see the agent's log. What needs \
         no note: change it in {}, or have the node observe (`zt-agent mode observe --all`); a rollout goes back all the same",
        state.editor.place()
    );
    Err(ApiProblem::unavailable("audit_unavailable", detail))
}

/// Notes it in a task of its own, which is never given up half-way: the store may have to put a damaged file aside for it. A note for
/// which nobody waits any more goes again: the change is not made, or goes back without one.
fn noted_apart(state: &ApiState, intent: Intent) -> oneshot::Receiver<Result<Intended, ArchiveError>> {
    let (answer, noted) = oneshot::channel();
    let store = Arc::clone(&state.store);
    tokio::spawn(async move {
        if answer.send(store.note_intent(&intent).await).is_err() {
            answered(store.forget_attempt(&intent)).await;
        }
    });
    noted
}

/// Takes back the note of a change that was not made.
pub(in crate::api) async fn forget(state: &ApiState, intended: Option<Intended>) {
    let Some(intended) = intended else {
        return;
    };
    // What stays is found at the next start not to have been made.
    answered(state.store.forget_intent(intended)).await;
}

async fn answered(forgetting: impl Future<Output = Result<(), ArchiveError>>) {
    match tokio::time::timeout(MAX_WAIT, forgetting).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the note of a change of policy that was not made stays"),
        Err(_) => tracing::warn!(
            "the note of a change of policy that was not made stays: the audit store does not answer"
        ),
    }
}

/// What became of a change whose writing failed, as the disk says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Left {
    /// It is made.
    Made,
    /// All is as it was.
    Nothing,
    /// It cannot be read, or somebody else has changed it.
    Unknown,
}

/// Looks what a change has left that failed half-way.
pub(in crate::api) async fn left(state: &ApiState, plan: &Plan) -> Left {
    let (editor, known, name) = (state.editor.clone(), state.snapshot(), plan.name.clone());
    let looking = tokio::task::spawn_blocking(move || editor.on_disk(&name, &known.policies));
    let Ok(Ok(Ok(found))) = tokio::time::timeout(NOTICE_TIME, looking).await else {
        return Left::Unknown;
    };
    if found.as_deref() == plan.policy_after().map(AnyPolicy::digest) {
        Left::Made
    } else if found.as_deref() == plan.policy_before().map(AnyPolicy::digest) {
        Left::Nothing
    } else {
        Left::Unknown
    }
}

/// The changes that callers of this run had begun, of which nobody knew what became of them, and that are what has come into force of
/// `policies`: something else made them in the end, or somebody else did the same.
pub(super) async fn begun_here(
    state: &ApiState,
    (before, after): (&PolicySet, &PolicySet),
    policies: &[String],
) -> Vec<(Intended, Intent)> {
    let noted = match state.store.intents().await {
        Ok(noted) => noted,
        Err(error) => {
            tracing::error!(%error, "whether somebody had begun to change policy over the API cannot be told: it is told at the next start");
            return Vec::new();
        }
    };
    let is_it = |intent: &Intent| {
        let digest = |all: &PolicySet| all.get(&intent.policy).map(|policy| policy.digest().to_owned());
        intent.run == state.started
            && policies.contains(&intent.policy)
            && (&digest(before), &digest(after)) == (&intent.before, &intent.after)
    };
    noted.into_iter().filter(|(_, intent)| is_it(intent)).collect()
}

/// When records are stored: the changes to these digests need no other record when they come into force, and the notes of what the
/// records tell of go.
pub(super) fn once_stored(
    state: &ApiState,
    stored: oneshot::Receiver<()>,
    (late, told): (Vec<String>, Vec<(Intended, Intent)>),
) {
    if late.is_empty() && told.is_empty() {
        return;
    }
    let state = state.clone();
    tokio::spawn(async move {
        if stored.await.is_err() {
            return;
        }
        for to in late {
            will_come(&state, &to).await;
        }
        for (intended, _) in told {
            forget(&state, Some(intended)).await;
        }
    });
}
