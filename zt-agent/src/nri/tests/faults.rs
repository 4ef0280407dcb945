// SPDX-License-Identifier: Apache-2.0
//! Runtimes that hang up, are silent, talk nonsense, or do not listen: the plugin comes back, and works.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;

use super::fake::{World, count, start};
use super::{UID, snapshot};
use crate::nri::messages::{RpcStatus, StartContainer};
use crate::nri::wire::MAX_MESSAGE;

const NEVER: Duration = Duration::from_secs(3600);

/// The plugin holds and lets go as if nothing had been.
async fn works(world: &World, failures: u64) {
    world.snapshots.send_replace(Arc::default());
    let mut runtime = world.runtime(0).await;
    let status = world.wait("a connection", |status| status.connected).await;
    assert!(status.failures >= failures, "{status:?}");
    let before = count(&status, "held");
    let call = runtime.start(UID).await;
    world.wait("one is held", |status| status.holding == 1).await;
    let named = snapshot(&format!("kubepods/pod{UID}"), true);
    world.snapshots.send_replace(Arc::new(named));
    runtime.answers(call).await;
    world
        .wait("it has started", |status| count(status, "held") == before + 1)
        .await;
}

#[tokio::test]
async fn a_runtime_that_hangs_up_or_refuses_is_tried_again() {
    let world = World::new(NEVER);
    // Before, during and after the registration, and with a container that waits.
    drop(world.accept().await);
    let mut refusing = world.accept().await;
    let reason = RpcStatus {
        code: 7,
        message: "not you".into(),
    };
    refusing.register(Some(reason)).await;
    refusing.leaves().await;
    let mut silent = world.accept().await;
    silent.register(None).await;
    drop(silent);
    let mut waiting = world.runtime(0).await;
    waiting.start(UID).await;
    world.wait("one is held", |status| status.holding == 1).await;
    drop(waiting);
    let status = world.wait("no connection", |status| !status.connected).await;
    assert_eq!((status.failures, status.holding), (4, 0));
    works(&world, 4).await;
}

#[tokio::test]
async fn nonsense_ends_the_connection_and_nothing_else() {
    let world = World::new(NEVER);
    let frame = |connection: u32, length: usize, rest: &[u8]| {
        let mut bytes = connection.to_be_bytes().to_vec();
        bytes.extend((length as u32).to_be_bytes());
        bytes.extend(rest);
        bytes
    };
    let nonsense = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
        vec![0xff; 64],
        // A frame of four gigabytes.
        frame(1, u32::MAX as usize, &[]),
        frame(1, MAX_MESSAGE + 11, &[]),
        // A message that is longer than its kind may be, in a frame that is not.
        frame(1, 10, &[0xff, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0]),
        // A call that is no message.
        frame(1, 13, &[0, 0, 0, 3, 0, 0, 0, 1, 1, 0, 0xff, 0xff, 0xff]),
    ];
    for (index, bytes) in nonsense.iter().enumerate() {
        let mut runtime = if index % 2 == 0 {
            world.accept().await
        } else {
            world.runtime(0).await
        };
        runtime.send(bytes).await;
        runtime.leaves().await;
    }
    works(&world, nonsense.len() as u64).await;
}

#[tokio::test]
async fn what_is_of_no_interest_is_passed_over() {
    let world = World::new(NEVER);
    let mut runtime = world.runtime(0).await;
    // Other connections, empty frames, kinds of messages that no call has, answers to what nobody asked.
    runtime.send(&[0, 0, 0, 9, 0, 0, 0, 3, 1, 2, 3]).await;
    runtime.send(&[0, 0, 0, 1, 0, 0, 0, 0]).await;
    for (connection, kind) in [(1, 3), (1, 2), (2, 1), (2, 9)] {
        runtime
            .send(&[
                0, 0, 0, connection, 0, 0, 0, 11, 0, 0, 0, 1, 0, 0, 0, 8, kind, 0, 0xff,
            ])
            .await;
    }
    world
        .snapshots
        .send_replace(Arc::new(snapshot(&format!("kubepods/pod{UID}"), true)));
    let call = runtime.start(UID).await;
    runtime.answers(call).await;
    assert_eq!(world.health.status().failures, 0);
}

#[tokio::test]
async fn a_runtime_that_never_configures_leaves() {
    let world = World::with(NEVER, Duration::from_millis(100));
    let mut runtime = world.accept().await;
    runtime.register(None).await;
    runtime.leaves().await;
    // One that says nothing at all.
    world.accept().await.leaves().await;
    let status = world.wait("two failures", |status| status.failures >= 2).await;
    assert!(!status.connected);
}

#[tokio::test]
async fn a_runtime_that_takes_no_answers_leaves() {
    let world = World::with(Duration::from_millis(10), Duration::from_millis(500));
    let mut runtime = world.runtime(0).await;
    let elsewhere = StartContainer {
        pod: None,
        ..start(UID)
    };
    let one = runtime.bytes("StartContainer", &elsewhere, 0);
    // As many as there is room for, until nobody is there any more.
    while runtime.stream.write_all(&one).await.is_ok() {}
    drop(runtime);
    let status = world.wait("a failure", |status| status.failures >= 1).await;
    assert!(count(&status, "unmanaged") > 0);
}
