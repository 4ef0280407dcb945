// SPDX-License-Identifier: Apache-2.0
//! Whoever takes up room and time: idle connections, and nodes that say too much or take too little.

use tokio::net::TcpStream;

use super::lies::{Liar, hello};
use super::*;
use crate::peers::protocol::Message;

#[tokio::test]
async fn idle_connections_keep_no_agent_out() {
    let mut world = World::new(&["a", "b"], "*");
    // However long they stay.
    world.timing.handshake = Duration::from_secs(86_400);
    let b = world.start("b", HashMap::new());
    let mut idle = Vec::new();
    for _ in 0..300 {
        idle.push(TcpStream::connect(&b.address).await.expect("taken"));
    }
    b.until_status("some are sent away", |status| status.refused["crowded"] > 0)
        .await;
    let a = world.start("a", HashMap::new());
    a.says(&[("10.1.0.1", "iam")]);
    b.until_who("10.1.0.1", Some("w/iam")).await;
}

#[tokio::test]
async fn a_node_that_does_not_say_who_it_is_is_hung_up_upon() {
    let mut world = World::new(&["a", "b"], "*");
    world.timing.handshake = Duration::from_millis(500);
    world.timing.silence = Duration::from_secs(86_400);
    let b = world.start("b", HashMap::new());
    let shows = world.authority.mutual(&world.certificate("a"));
    loop {
        // A handshake that took too long is no answer.
        if let Ok(liar) = Liar::dial(&b, &shows).await {
            liar.until_hung_up().await;
        }
        if b.health.status().refused["silent"] > 0 {
            break;
        }
    }
}

#[tokio::test]
async fn a_node_may_not_say_more_by_connecting_anew() {
    let world = World::new(&["a", "b"], "*");
    let b = world.start("b", HashMap::new());
    let much = Message::Gone {
        addresses: vec![ip("10.1.0.1"); 32],
    };
    for turn in 0..3 {
        let mut liar = Liar::as_a(&world, &b).await;
        for _ in 0..300 {
            liar.say(&much).await;
        }
        liar.say(&Message::Whole {}).await;
        let after = b
            .until_status("it is heard or refused", |status| {
                status.refused["flood"] > 0 || status.connections > turn
            })
            .await;
        if after.refused["flood"] > 0 {
            assert!(turn > 0, "once is not too much");
            return;
        }
    }
    panic!("{:?}", b.health.status());
}

#[tokio::test]
async fn a_node_that_does_not_take_what_it_is_told_is_hung_up_upon() {
    let mut world = World::new(&["a", "b"], "*");
    // Longer than this test may be kept from saying something by what else the machine does.
    world.timing.silence = Duration::from_secs(8);
    let b = world.start("b", HashMap::new());
    // More than the buffers of both ends hold.
    let names: Vec<(String, String)> = (0..8000_u32)
        .map(|index| {
            let [_, _, high, low] = index.to_be_bytes();
            (
                format!("10.2.{high}.{low}"),
                format!("{}{index}", "x".repeat(1900)),
            )
        })
        .collect();
    let names: Vec<(&str, &str)> = names
        .iter()
        .map(|(address, name)| (address.as_str(), name.as_str()))
        .collect();
    b.says(&names);
    let shows = world.authority.mutual(&world.certificate("a"));
    let mut liar = Liar::dial(&b, &shows).await.expect("a certificate of ours");
    liar.say(&hello("a")).await;
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while b.health.status().refused["silent"] == 0 {
        liar.say(&Message::Beat {}).await;
        assert!(tokio::time::Instant::now() < deadline, "{:?}", b.health.status());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let status = b.health.status();
    let refusal = status.nodes["a"].refusal.as_deref();
    assert!(
        refusal.is_some_and(|refusal| refusal.contains("does not take")),
        "{status:?}"
    );
}
