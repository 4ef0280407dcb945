// SPDX-License-Identifier: Apache-2.0
//! Answers that are asked for once more: those that contradict, those of before the clock jumped.

use std::sync::atomic::AtomicUsize;

use super::*;

#[tokio::test]
async fn a_new_subscription_that_contradicts_twice_takes_no_name_away() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(world.say(IAM));
    assert_eq!(world.next_name().await, IAM);
    fake.stop().await;
    // As SPIRE does while the kubelet restarts: the process is there, its selectors are not.
    let later = answer([world.authority.svid(&[IAM], 2 * HOUR)]);
    let left = Arc::new(AtomicUsize::new(2));
    let fake = world.fake(Answer::Stumble(left, answer([]), later));
    assert_eq!(world.next_name().await, IAM);
    fake.stop().await;
    // It is somebody else, and remains so.
    let fake = world.fake(world.say(CHAT));
    assert_eq!(world.next_name().await, CHAT);
    // On a stream that is open SPIRE knows what it says.
    fake.answer(Answer::Say(answer([])));
    world.next_is_nobody().await;
}

#[tokio::test]
async fn after_an_svid_has_expired_it_is_asked_again() {
    let mut world = World::new(OnExpiry::Withdraw);
    let fake = world.fake(Answer::Say(answer([world.authority.svid(&[IAM], 15)])));
    assert_eq!(world.next_name().await, IAM);
    // Not on the open stream: as far as SPIRE is concerned, nothing has expired.
    let next = world.say(IAM);
    fake.script.send_if_modified(|script| {
        script.answer = next;
        false
    });
    world.next_is_nobody().await;
    assert_eq!(world.next_name().await, IAM);
}
