// SPDX-License-Identifier: Apache-2.0
//! Who is about to change policy is on disk before policy changes.

use std::sync::Arc;

use tokio::sync::oneshot;
use uuid::Uuid;

use super::announced::Announced;
use super::doubts::look;
use super::made::recorded_diff;
use super::under_way::UnderWay;
use super::will_come;
use crate::api::ApiState;
use crate::api::problem::ApiProblem;
use crate::api::recorded::MAX_WAIT;
use crate::audit::archive::ArchiveError;
use crate::audit::clock;
use crate::audit::intent::{Intent, Progress};
use crate::audit::record::Timestamp;
use crate::policy::AnyPolicy;
use crate::policy_dir::Plan;

/// Notes a change that is about to be made, under an id of its own. Where that cannot be done, the change is not made: nobody would
/// know whose it was, if the agent ended before it is recorded. One that `goes_back` is made all the same; whether it is noted or not, it
/// has one record, by its id. The note goes when the record is stored.
pub(in crate::api) async fn intend(
    state: &ApiState,
    plan: &Plan,
    (id, caller): (Uuid, &Arc<str>),
    goes_back: bool,
) -> Result<(), ApiProblem> {
    let digest = |policy: Option<&AnyPolicy>| policy.map(|policy| policy.digest().to_owned());
    let intent = Intent {
        id,
        progress: Progress::Begun,
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
        Ok(Ok(Ok(()))) => return Ok(()),
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
        return Ok(());
    }
    // It may have been noted all the same, and is not made.
    forget(state, Some(id)).await;
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
fn noted_apart(state: &ApiState, intent: Intent) -> oneshot::Receiver<Result<(), ArchiveError>> {
    let (answer, noted) = oneshot::channel();
    let state = state.clone();
    tokio::spawn(async move {
        if answer.send(state.store.note_intent(&intent).await).is_err() {
            forget(&state, Some(intent.id)).await;
        }
    });
    noted
}

/// Takes back the note of a change that was not made, if it has one. Where the store does not do that now, it is tried again.
pub(in crate::api) async fn forget(state: &ApiState, id: Option<Uuid>) {
    if let Some(id) = id {
        state.changes().is_to_go(id);
        has_gone(state, id).await;
    }
}

/// Takes back the notes that should have gone.
pub(super) async fn forget_again(state: &ApiState) {
    for id in state.changes().to_go() {
        // Who does not answer is waited for once.
        if !has_gone(state, id).await {
            return;
        }
    }
}

/// Has a note go, and whether it has.
async fn has_gone(state: &ApiState, id: Uuid) -> bool {
    let is_gone = answered(state.store.forget_intent(id), "that was not made stays for now").await;
    if is_gone {
        state.changes().has_gone(id);
    } else {
        state.changes().doubt();
    }
    is_gone
}

/// Marks a change as made: where policy is kept it was taken. So it is told of, whatever is there when the next run looks.
/// Whether the note says so, if there is one.
pub(in crate::api) async fn acknowledged(state: &ApiState, id: Option<Uuid>) -> bool {
    let Some(id) = id else { return true };
    let marking = state.store.mark_intent(id, Progress::Made);
    answered(marking, "does not say that it was made").await
}

/// Marks a change of which it is not known whether it is made, or stays so.
pub(in crate::api) async fn unsure(state: &ApiState, id: Option<Uuid>) {
    if let Some(id) = id {
        let marking = state.store.mark_intent(id, Progress::Doubtful);
        answered(marking, "does not say that writing it failed").await;
    }
}

/// Marks a change of which it is not known whether it is made, and has what came of it looked at again. Whether that is so: false where
/// it has come into force meanwhile as its caller's, who records it.
pub(in crate::api) async fn doubted(
    state: &ApiState,
    under_way: &UnderWay<'_>,
    announced: Option<Announced<'_>>,
) -> bool {
    unsure(state, Some(under_way.id())).await;
    // Whatever comes into force from here on is its caller's by the announcement, or by the note, at which others look now.
    under_way.pause();
    if announced.is_some_and(|announced| !announced.take_back()) {
        under_way.go_on();
        return false;
    }
    state.changes().doubt();
    true
}

/// Waits for the store; where that does not do it, the log says what is wrong with the note. Whether it has done it.
pub(super) async fn answered(work: impl Future<Output = Result<(), ArchiveError>>, otherwise: &str) -> bool {
    match tokio::time::timeout(MAX_WAIT, work).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::warn!(%error, "the note of a change of policy {otherwise}"),
        Err(_) => {
            tracing::warn!("the note of a change of policy {otherwise}: the audit store does not answer");
        }
    }
    false
}

/// What became of a change whose writing failed, as what is kept says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Left {
    /// It is made.
    Made,
    /// All is as it was.
    Nothing,
    /// It cannot be read, somebody else has changed it, or what was sent may arrive yet.
    Unknown,
}

/// Looks what a change has left that failed half-way. With its `id`, what somebody else wrote is not taken for it.
pub(in crate::api) async fn left(state: &ApiState, plan: &Plan, id: Option<Uuid>) -> Left {
    let Some(found) = look(state, &plan.name, &state.snapshot().policies).await else {
        return Left::Unknown;
    };
    let is_object = state.editor.keeps_objects();
    let after = plan.policy_after().map(AnyPolicy::digest);
    if is_object && id.is_some() && after.is_some() {
        return if found.written_by == id {
            Left::Made
        } else {
            Left::Unknown
        };
    }
    if found.digest.as_deref() == after {
        Left::Made
    } else if !is_object && found.digest.as_deref() == plan.policy_before().map(AnyPolicy::digest) {
        Left::Nothing
    } else {
        Left::Unknown
    }
}

/// When records are stored: the changes to these digests need no other record when they come into force. The notes of what the
/// records tell of go with them.
pub(super) fn once_stored(
    state: &ApiState,
    stored: oneshot::Receiver<()>,
    (late, told): (Vec<String>, Vec<Uuid>),
) {
    if late.is_empty() && told.is_empty() {
        return;
    }
    // Until then nobody else tells of them.
    state.changes().hold(&told);
    let state = state.clone();
    tokio::spawn(async move {
        if stored.await.is_ok() {
            for to in late {
                will_come(&state, &to).await;
            }
        }
        state.changes().let_go(&told);
    });
}
