// SPDX-License-Identifier: Apache-2.0
//! What came of changes is looked at again while an agent runs.

use super::interrupted::{about_to_put, write};
use super::records::{meddle, policy};
use super::*;
use crate::audit::intent::Progress;
use crate::audit::sqlite::tests::REFUSE;

/// Waits until it is seen what was in force at that revision.
pub(super) async fn is_seen(state: &ApiState, revision: u64) {
    let seen = state.changes().have_seen(revision);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("seen");
}

/// Has this agent look again: a document was not valid, and is.
pub(super) async fn look_again(world: &World, agent: &ApiState) {
    world.snapshots.update(|next| {
        next.revision += 1;
        next.policy_error = Some(Arc::default());
    });
    is_seen(agent, world.state.snapshot().revision).await;
    world.snapshots.update(|next| next.policy_error = None);
}

#[tokio::test]
async fn what_is_seen_to_have_been_made_is_known_to_have_been_though_its_record_is_not_stored() {
    let world = world().await;
    let recording = tokio::spawn(record_changes(world.state.clone()));
    is_seen(&world.state, 7).await;
    meddle(&world, REFUSE).await;
    let id = about_to_put(&world, "alice", "p", policy("p", 1)).await;
    write(&world, "p", &policy("p", 1));
    look_again(&world, &world.state).await;
    let known = async {
        loop {
            let noted = world.state.store.intents().await.expect("reads");
            let [one] = noted.as_slice() else {
                panic!("its note stays: {noted:?}")
            };
            assert_eq!(one.id, id);
            if one.progress == Progress::Made {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), known)
        .await
        .expect("known");
    recording.abort();
}
