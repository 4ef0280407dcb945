// SPDX-License-Identifier: Apache-2.0
//! Answers that take long are given one after the other, and few wait for them.

use super::*;

/// Waits until so many wait to have something judged.
async fn in_line(world: &World, wanted: usize) {
    let looking = async {
        while world.state.judging().line() != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), looking)
        .await
        .unwrap_or_else(|_| panic!("never {wanted} in line"));
}

#[tokio::test]
async fn who_waits_for_an_answer_is_not_let_wait_for_two() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let somebody = Arc::from("somebody else");
    let held = world.state.judging().take(&somebody).await.expect("a turn");
    let mut waits = TcpStream::connect(world.api).await.expect("connects");
    let ask = b"GET /v1/replay HTTP/1.1\r\nHost: localhost\r\n\r\n";
    waits.write_all(ask).await.expect("written");
    in_line(&world, 1).await;
    for path in ["/v1/replay", "/v1/recommend"] {
        let reply = get(world.api, path).await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "busy"), "{path}");
        assert!(reply.head.contains("\r\nretry-after: "), "{}", reply.head);
        described::check(&document, "get", path, &reply);
    }
    // What is counted is not kept waiting by what is judged.
    for path in ["/v1/rules", "/v1/graph"] {
        assert_eq!(get(world.api, path).await.status, 200, "{path}");
    }
    // Who has gone waits no longer.
    drop(waits);
    in_line(&world, 0).await;
    let api = world.api;
    let again = tokio::spawn(async move { get(api, "/v1/recommend").await.status });
    in_line(&world, 1).await;
    drop(held);
    assert_eq!(again.await.expect("asked"), 200);
}

#[tokio::test]
async fn many_who_have_something_counted_are_served_and_too_many_are_told() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let one: Arc<str> = Arc::from("one");
    let held = world.state.counting().take(&one).await.expect("a turn");
    let ask = |path: &'static str| tokio::spawn(get(world.api, path));
    let asked: Vec<_> = ["/v1/rules", "/v1/graph"]
        .repeat(6)
        .into_iter()
        .map(ask)
        .collect();
    let told = async {
        let metric = "zt_api_refused_total{cause=\"busy\"} 4";
        while !get(world.health, "/metrics").await.body.contains(metric) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(8), told)
        .await
        .expect("half of all places are one caller's");
    drop(held);
    let mut served = 0;
    for (path, reply) in ["/v1/rules", "/v1/graph"].repeat(6).into_iter().zip(asked) {
        let reply = reply.await.expect("asked");
        described::check(&document, "get", path, &reply);
        served += u32::from(reply.status == 200);
    }
    assert_eq!(served, 8);
}
