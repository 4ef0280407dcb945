// SPDX-License-Identifier: Apache-2.0
//! What was to come into force later and never does: whoever makes the same change after that is who made it.

use super::interrupted::{so_many, start_again, write};
use super::records::{policy, publish, put};
use super::*;

/// Waits until it is seen what was in force at that revision.
async fn is_seen(world: &World, revision: u64) {
    let seen = world.state.changes().have_seen(revision);
    tokio::time::timeout(Duration::from_secs(30), seen)
        .await
        .expect("seen");
}

/// Has a caller's change wait for another document, and takes both back before it comes into force. Who records changes has seen that
/// when this returns.
async fn waited_in_vain(world: &World) -> tokio::task::JoinHandle<()> {
    let recording = tokio::spawn(record_changes(world.state.clone()));
    is_seen(world, 7).await;
    write(world, "q", "kind: [");
    world.snapshots.update(|next| {
        next.revision += 1;
        next.policy_error = Some(Arc::default());
    });
    is_seen(world, 8).await;
    let made = put(world, "p", &policy("p", 1)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    so_many(world, 1).await;
    let is_late = async || world.state.store.policy_late().await.expect("reads").is_some();
    assert!(is_late().await);

    for name in ["p.yaml", "q.yaml"] {
        std::fs::remove_file(world.policies().join(name)).expect("removed");
    }
    world.snapshots.update(|next| next.policy_error = None);
    let looked = async {
        while is_late().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looked)
        .await
        .expect("looked");
    recording
}

/// Somebody makes the same change with an editor.
fn made_by_hand(world: &World) {
    write(world, "p", &policy("p", 1));
    publish(world, &[policy("p", 1)]);
}

#[tokio::test]
async fn what_was_reverted_before_it_was_in_force_is_theirs_who_make_it_later() {
    let world = world().await;
    let recording = waited_in_vain(&world).await;
    made_by_hand(&world);
    let theirs = so_many(&world, 2).await.remove(1);
    assert_eq!(theirs["caller"], world.state.editor.place());
    assert_eq!(theirs["change"]["to"], world.state.snapshot().policies.digest());
    recording.abort();
}

#[tokio::test]
async fn what_was_reverted_before_it_was_in_force_is_found_when_somebody_makes_it_while_no_agent_runs() {
    let world = world().await;
    let recording = waited_in_vain(&world).await;
    recording.abort();
    assert!(recording.await.is_err());
    made_by_hand(&world);
    start_again(&world, 1).await.abort();
    let theirs = so_many(&world, 2).await.remove(1);
    let caller = theirs["caller"].as_str().expect("a caller");
    assert!(caller.ends_with(", found at start"), "{caller}");
}
