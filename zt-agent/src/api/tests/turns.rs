// SPDX-License-Identifier: Apache-2.0
//! Answers that take long are given one after the other, and few wait for them.

use futures::FutureExt as _;
use tokio::net::TcpListener;

use super::*;
use crate::audit::archive;
use crate::audit::spool::WhenFull;

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
    for path in ["/v1/replay", "/v1/recommend", "/v1/recommend/diff"] {
        let reply = get(world.api, path).await;
        assert_eq!((reply.status, reply.code().as_str()), (503, "busy"), "{path}");
        assert!(reply.head.contains("\r\nretry-after: "), "{}", reply.head);
        described::check(&document, "get", path, &reply);
    }
    let reply = send(world.api, "POST", "/v1/replay", YAML, POLICY).await;
    assert_eq!((reply.status, reply.code().as_str()), (503, "busy"));
    described::check(&document, "post", "/v1/replay", &reply);
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
    // Its turn came, and nothing is recorded.
    assert_eq!(again.await.expect("asked"), 404);
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

/// A world whose records are on a server that takes connections and says nothing.
async fn world_of_a_silent_server() -> (World, TcpListener) {
    let server = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let directory = tempfile::tempdir().expect("directory");
    let archive = Archive::open(archive::Settings {
        dsn: format!("postgres://engine@{}/zt", server.local_addr().expect("bound")),
        read_dsn: None,
        maintain_dsn: None,
        spool: directory.path().join("spool.db"),
        max_disk_bytes: 1 << 30,
        api_share: 100,
        when_full: WhenFull::Oldest,
        retention_days: 1,
        keys: None,
        sync: sqlite::Durability::default(),
    });
    let archive = archive.await.expect("opens");
    let world = world_in(directory, archive, |policies| {
        Editor::new(policies, Settings::default())
    });
    (world.await, server)
}

#[tokio::test]
async fn a_turn_lasts_as_long_as_the_question_though_its_client_has_gone() {
    let somebody = Arc::from("somebody else");
    for (method, path, body) in [
        ("GET", "/v1/graph", ""),
        ("GET", "/v1/rules", ""),
        ("GET", "/v1/replay", ""),
        ("GET", "/v1/recommend", ""),
        ("GET", "/v1/recommend/diff", ""),
        ("POST", "/v1/replay", POLICY),
    ] {
        let (world, server) = world_of_a_silent_server().await;
        let turns = match path {
            "/v1/graph" | "/v1/rules" => world.state.counting(),
            _ => world.state.judging(),
        };
        let mut client = TcpStream::connect(world.api).await.expect("connects");
        let ask = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/yaml\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        client.write_all(ask.as_bytes()).await.expect("written");
        let asked = tokio::time::timeout(Duration::from_secs(30), server.accept());
        let asked = asked.await.expect("the server is asked").expect("accepts");
        // The API has seen that it goes when it has closed the connection, too.
        client.shutdown().await.expect("says that it goes");
        let mut said = Vec::new();
        let closed = tokio::time::timeout(Duration::from_secs(30), client.read_to_end(&mut said));
        closed.await.expect("closed").expect("closed in order");
        assert_eq!(said, b"", "{method} {path}");
        assert!(
            turns.take(&somebody).now_or_never().is_none(),
            "{method} {path}: the next is asked while the server is at it"
        );
        // The server gives up.
        drop((asked, server));
        drop(turns.take(&somebody).await.expect("a turn"));
        drop(world);
    }
}
