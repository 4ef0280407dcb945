// SPDX-License-Identifier: Apache-2.0
//! What becomes of a change that is on disk.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::api::ApiState;
use crate::policy::{AnyPolicy, Problem};
use crate::policy_dir::Plan;
use crate::state::Snapshot;

/// How long a change may take to come into force: a table of a million entries takes seconds.
const IN_FORCE_TIME: Duration = Duration::from_secs(10);
/// How often one looks at the disk while nothing comes into force.
const LOOK: Duration = Duration::from_secs(1);

/// What became of it.
pub(super) enum Settled {
    /// It is in force.
    InForce(Arc<Snapshot>),
    /// Somebody changed the policy again before this agent looked: the change was in force nowhere here.
    Replaced(Arc<Snapshot>),
    /// The node did not bring into force what is on disk.
    Refused(Arc<Snapshot>, Arc<Vec<Problem>>),
    /// It is on disk, and not in force after ten seconds.
    Late(Arc<Snapshot>),
    /// The agent is stopping.
    Stopping(Arc<Snapshot>),
}

/// Waits until it is known. `start` is what was in force before the change was written.
pub(super) async fn settle(
    state: &ApiState,
    plan: &Arc<Plan>,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
    start: &Arc<Snapshot>,
) -> Settled {
    let waiting = wait(state, plan, &mut snapshots, start);
    match tokio::time::timeout(IN_FORCE_TIME, waiting).await {
        Ok(settled) => settled,
        Err(_) => Settled::Late(state.snapshot()),
    }
}

/// The digest of the rollout in force once it has gone back, if that is what the plan does: this is not held up by what is wrong with
/// other documents.
pub(super) fn gone_back(plan: &Plan, start: &Snapshot) -> Option<String> {
    let in_force = start.policies.rollout()?;
    let Some(AnyPolicy::Rollout(said)) = plan.policy_after() else {
        return None;
    };
    let at = in_force.earlier_by(said)?;
    Some(in_force.at(at).digest().to_owned())
}

/// Waits until the rollout is in force that has this digest; `None` where that does not come about in time.
pub(super) async fn settled_back(
    wanted: &str,
    mut snapshots: watch::Receiver<Arc<Snapshot>>,
) -> Option<Arc<Snapshot>> {
    let is_back = |snapshot: &Arc<Snapshot>| {
        let rollout = snapshot.policies.rollout();
        rollout.is_some_and(|rollout| rollout.digest() == wanted)
    };
    let waiting = snapshots.wait_for(is_back);
    let settled = tokio::time::timeout(IN_FORCE_TIME, waiting).await.ok()?;
    settled.ok().map(|snapshot| Arc::clone(&snapshot))
}

async fn wait(
    state: &ApiState,
    plan: &Arc<Plan>,
    snapshots: &mut watch::Receiver<Arc<Snapshot>>,
    start: &Arc<Snapshot>,
) -> Settled {
    let wanted = plan.policy_after().map(AnyPolicy::digest);
    let before = [
        plan.policy_before().map(AnyPolicy::digest),
        start.policies.get(&plan.name).map(AnyPolicy::digest),
    ];
    let mut time_to_look = false;
    loop {
        let snapshot = Arc::clone(&snapshots.borrow_and_update());
        let now = snapshot.policies.get(&plan.name).map(AnyPolicy::digest);
        if let Some(error) = new_error(&snapshot, start) {
            return Settled::Refused(Arc::clone(&snapshot), Arc::clone(error));
        }
        if now == wanted && snapshot.policy_error.is_none() {
            return Settled::InForce(snapshot);
        }
        // Another version may be one that was on disk before this change and comes into force late, or one that
        // another process has written since: the disk knows.
        let surprise = now != wanted && !before.contains(&now);
        if (surprise || time_to_look) && is_replaced(state, plan, &snapshot).await {
            return Settled::Replaced(snapshot);
        }
        time_to_look = tokio::select! {
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return Settled::Stopping(snapshot);
                }
                false
            }
            () = tokio::time::sleep(LOOK) => true,
        };
    }
}

/// Why the node refused what is on disk, if it is for another reason than before.
fn new_error<'s>(snapshot: &'s Snapshot, start: &Snapshot) -> Option<&'s Arc<Vec<Problem>>> {
    let before = start.policy_error.as_ref();
    snapshot
        .policy_error
        .as_ref()
        .filter(|error| before.is_none_or(|before| !Arc::ptr_eq(before, error)))
}

/// Whether the policy on disk is no longer what the change made of it.
async fn is_replaced(state: &ApiState, plan: &Arc<Plan>, snapshot: &Arc<Snapshot>) -> bool {
    let (editor, plan, snapshot) = (state.editor.clone(), Arc::clone(plan), Arc::clone(snapshot));
    let looked = tokio::task::spawn_blocking(move || {
        let found = editor.on_disk(&plan.name, &snapshot.policies)?;
        Ok::<_, crate::policy_dir::EditError>(found.as_deref() != plan.policy_after().map(AnyPolicy::digest))
    });
    // What cannot be read now comes into force as an error, or is looked at again.
    matches!(looked.await, Ok(Ok(true)))
}
