// SPDX-License-Identifier: Apache-2.0
//! Many nodes at one engine.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::world::{DEADLINE, Shared, policy};

/// More than a listener of a node has places for.
const NODES: usize = 700;

#[tokio::test(flavor = "multi_thread")]
async fn seven_hundred_nodes_keep_their_streams_and_hear_of_a_change() {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE).expect("limit");
    setrlimit(Resource::RLIMIT_NOFILE, most, most).expect("raised");
    let shared = Shared::new();
    let engine = shared.engine("e1").await;
    let client = engine.client();
    let mut feeds = Vec::new();
    for _ in 0..NODES {
        let mut feed = client.events("/v1/revisions/stream", &[]).await.expect("a feed");
        feed.next().await.expect("an event").expect("what is in force");
        feeds.push(feed);
    }
    let changed = engine
        .put("more", &policy("more", &[1]), None)
        .await
        .expect("committed");
    let digest = changed["digest"].as_str().expect("digest");
    for (number, feed) in feeds.iter_mut().enumerate() {
        let heard = async {
            // Heartbeats say again what is in force.
            while let Some(event) = feed.next().await.expect("goes on") {
                if event.data.contains(digest) {
                    return;
                }
            }
            panic!("feed {number} ended");
        };
        tokio::time::timeout(DEADLINE, heard)
            .await
            .expect("the change is told");
    }
}
