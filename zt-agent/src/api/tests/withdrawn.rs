// SPDX-License-Identifier: Apache-2.0
//! What was to come into force later and never does: whoever makes the same change after that is who made it.

use super::interrupted::{about_to_put, forgotten, later, so_many, start, start_again, write};
use super::looked::{is_seen, look_again};
use super::records::{policy, publish, put};
use super::*;

/// Has a caller's change wait for another document, `q`.
async fn waits(world: &World) -> tokio::task::JoinHandle<()> {
    let recording = tokio::spawn(record_changes(world.state.clone()));
    is_seen(&world.state, 7).await;
    write(world, "q", "kind: [");
    world.snapshots.update(|next| {
        next.revision += 1;
        next.policy_error = Some(Arc::default());
    });
    is_seen(&world.state, 8).await;
    let made = put(world, "p", &policy("p", 1)).await;
    assert_eq!(made.status, 202, "{}", made.body);
    so_many(world, 1).await;
    assert!(is_late(world).await);
    recording
}

/// Whether something is noted to come into force later.
async fn is_late(world: &World) -> bool {
    world.state.store.policy_late().await.expect("reads").is_some()
}

/// Takes these documents away. Then nothing is wrong any more.
fn take_away(world: &World, names: &[&str]) {
    for name in names {
        std::fs::remove_file(world.policies().join(format!("{name}.yaml"))).expect("removed");
    }
    world.snapshots.update(|next| next.policy_error = None);
}

/// Waits until nothing is noted to come into force later.
async fn nothing_is_late(world: &World) {
    let looked = async {
        while is_late(world).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looked)
        .await
        .expect("looked");
}

/// Has a caller's change wait for another document, and takes both back before it comes into force. Who records changes has seen that
/// when this returns.
async fn waited_in_vain(world: &World) -> tokio::task::JoinHandle<()> {
    let recording = waits(world).await;
    take_away(world, &["p", "q"]);
    nothing_is_late(world).await;
    recording
}

/// The agent ends.
async fn ends(recording: tokio::task::JoinHandle<()>) {
    recording.abort();
    assert!(recording.await.is_err());
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
    ends(waited_in_vain(&world).await).await;
    made_by_hand(&world);
    start_again(&world, 1).await.abort();
    is_found(&world).await;
}

/// It is recorded as what the agent found when it started.
async fn is_found(world: &World) {
    let theirs = so_many(world, 2).await.remove(1);
    let caller = theirs["caller"].as_str().expect("a caller");
    assert!(caller.ends_with(", found at start"), "{caller}");
}

#[tokio::test]
async fn what_was_reverted_while_no_agent_ran_is_found_when_somebody_makes_it_later() {
    let world = world().await;
    ends(waits(&world).await).await;
    take_away(&world, &["p", "q"]);
    let recording = start_again(&world, 1).await;
    nothing_is_late(&world).await;
    ends(recording).await;
    made_by_hand(&world);
    start_again(&world, 2).await.abort();
    is_found(&world).await;
}

#[tokio::test]
async fn what_an_agent_finds_on_its_way_has_one_record() {
    let world = world().await;
    ends(waits(&world).await).await;
    take_away(&world, &["q"]);
    let again = later(&world, 1);
    let recording = start(&again).await;
    // It goes after the look that finds that nothing came of it.
    about_to_put(&world, "alice", "r", policy("r", 2)).await;
    look_again(&world, &again).await;
    forgotten(&world).await;
    assert!(is_late(&world).await);
    ends(recording).await;
    publish(&world, &[policy("p", 1)]);
    start_again(&world, 2).await.abort();
    so_many(&world, 1).await;
    assert!(!is_late(&world).await);
}
