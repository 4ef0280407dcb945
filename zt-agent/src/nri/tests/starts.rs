// SPDX-License-Identifier: Apache-2.0
//! Containers that start: at once, later, and without a name.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;

use super::fake::{World, count, start};
use super::{UID, snapshot};
use crate::nri::messages::{
    START_CONTAINER, StartContainer, StateChange, Synchronize, Synchronized, UNIMPLEMENTED,
};
use crate::state::Snapshot;

/// Longer than any test may take.
const NEVER: Duration = Duration::from_secs(3600);

fn named() -> Arc<Snapshot> {
    Arc::new(snapshot(&format!("kubepods/burstable/pod{UID}"), true))
}

#[tokio::test]
async fn a_container_starts_at_once_where_its_pod_has_a_name() {
    let world = World::new(NEVER);
    world.snapshots.send_replace(named());
    let mut runtime = world.runtime(0).await;
    let call = runtime.start(UID).await;
    runtime.answers(call).await;
    // Older runtimes say it so.
    let message = start(UID);
    let event = StateChange {
        event: START_CONTAINER,
        pod: message.pod,
        container: message.container,
    };
    let call = runtime.call("StateChange", &event, 0).await;
    runtime.answers(call).await;
    let status = world
        .wait("two starts", |status| count(status, "named") == 2)
        .await;
    assert!(status.connected && status.waited.is_zero());
    assert_eq!((status.failures, status.holding), (0, 0));
}

#[tokio::test]
async fn a_container_waits_until_its_pod_has_a_name_and_nobody_else_does() {
    let world = World::new(NEVER);
    let mut runtime = world.runtime(0).await;
    let held = runtime.start(UID).await;
    // All else is answered meanwhile.
    let more = runtime.call("Synchronize", &Synchronize { more: true }, 0).await;
    let (call, response) = runtime.answer().await;
    assert_eq!(call, more);
    assert_eq!(
        Synchronized::decode(response.payload).expect("an answer"),
        Synchronized { more: true }
    );
    world.wait("one is held", |status| status.holding == 1).await;
    // Somebody else's name, and a name of a cgroup that is not there yet.
    let other = format!("kubepods/pod{}", UID.replace('2', "3"));
    world.snapshots.send_replace(Arc::new(snapshot(&other, true)));
    let mine = format!("kubepods/burstable/pod{UID}");
    world.snapshots.send_replace(Arc::new(snapshot(&mine, false)));
    let again = runtime.call("Synchronize", &Synchronize { more: false }, 0).await;
    runtime.answers(again).await;
    assert_eq!(world.health.status().holding, 1);
    world.snapshots.send_replace(named());
    runtime.answers(held).await;
    let status = world
        .wait("it has started", |status| count(status, "held") == 1)
        .await;
    assert!(!status.waited.is_zero());
    assert_eq!(status.holding, 0);
}

#[tokio::test]
async fn a_container_starts_without_a_name_when_the_wait_is_over() {
    let world = World::new(Duration::from_millis(60));
    let mut runtime = world.runtime(0).await;
    for _ in 0..2 {
        let call = runtime.start(UID).await;
        runtime.answers(call).await;
    }
    world
        .wait("two starts", |status| count(status, "unnamed") == 2)
        .await;
}

#[tokio::test]
async fn the_runtimes_own_patience_counts() {
    // Whether it says so when it configures the plugin, in milliseconds, or with the call, in nanoseconds.
    for (configured, with_call) in [(80, 0), (0, 80_000_000), (3_600_000, 80_000_000)] {
        let world = World::new(NEVER);
        let mut runtime = world.runtime(configured).await;
        let call = runtime.call("StartContainer", &start(UID), with_call).await;
        runtime.answers(call).await;
        world
            .wait("a start", |status| count(status, "unnamed") == 1)
            .await;
    }
}

#[tokio::test]
async fn what_is_not_managed_and_what_is_not_understood_answers_at_once() {
    let world = World::new(NEVER);
    let mut runtime = world.runtime(0).await;
    let mut elsewhere = start(UID);
    let pod = elsewhere.pod.as_mut().and_then(|pod| pod.linux.as_mut());
    pod.expect("a pod").cgroup_parent = "/elsewhere/pod".into();
    for message in [elsewhere, start("../.."), StartContainer::default()] {
        let call = runtime.call("StartContainer", &message, 0).await;
        runtime.answers(call).await;
    }
    world
        .wait("three starts", |status| count(status, "unmanaged") == 3)
        .await;
    // Events that nobody asked for, and the end of the runtime.
    for event in [0, 1, 5, 99, -1] {
        let event = StateChange {
            event,
            ..StateChange::default()
        };
        let call = runtime.call("StateChange", &event, 0).await;
        runtime.answers(call).await;
    }
    let call = runtime.call("Shutdown", &Synchronize::default(), 0).await;
    runtime.answers(call).await;
    let call = runtime.call("CreateContainer", &start(UID), 0).await;
    let (answered, response) = runtime.answer().await;
    assert_eq!(answered, call);
    assert_eq!(response.status.expect("a refusal").code, UNIMPLEMENTED);
}
