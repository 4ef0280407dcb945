// SPDX-License-Identifier: Apache-2.0
//! Live decisions, and stopping.

use super::*;
use crate::audit::Entry;

/// A client of the stream.
struct Events {
    stream: TcpStream,
    read: String,
}

impl Events {
    async fn open(to: SocketAddr, path: &str) -> Self {
        let mut stream = TcpStream::connect(to).await.expect("connects");
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sends");
        let mut events = Self {
            stream,
            read: String::new(),
        };
        events.until("\r\n\r\n").await;
        assert!(
            events
                .read
                .to_ascii_lowercase()
                .contains("content-type: text/event-stream"),
            "{}",
            events.read
        );
        events.read.clear();
        events
    }

    /// Reads until `text` has come.
    async fn until(&mut self, text: &str) {
        let mut buffer = [0; 4096];
        while !self.read.contains(text) {
            let read = tokio::time::timeout(Duration::from_secs(20), self.stream.read(&mut buffer));
            let count = read
                .await
                .unwrap_or_else(|_| panic!("no `{text}` in {}", self.read))
                .expect("reads");
            assert_ne!(count, 0, "no `{text}` before the end of {}", self.read);
            self.read.push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    }
}

#[tokio::test]
async fn a_stream_is_not_cut_for_others_who_only_keep_connections() {
    let world = world().await;
    let limits = Limits {
        connections: 4,
        ..Limits::default()
    };
    let (endpoint, address) = local::listen(limits).await;
    local::serve(&world, endpoint, u32::MAX);
    let mut stream = Events::open(address, "/v1/decisions/stream").await;
    let mut idle = Vec::new();
    for _ in 0..20 {
        // Each has asked for something, and so has a place.
        let mut connection = TcpStream::connect(address).await.expect("connects");
        let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
        connection.write_all(request.as_bytes()).await.expect("sends");
        let mut first = [0; 12];
        connection.read_exact(&mut first).await.expect("answers");
        assert_eq!(&first, b"HTTP/1.1 200");
        idle.push(connection);
    }
    let ask = question(IAM, POSTGRES, 5432).to_string();
    assert_eq!(post(world.api, "/v1/evaluate", &ask).await.status, 200);
    stream.until("\"port\":5432").await;
}

#[tokio::test]
async fn decisions_come_as_they_are_made() {
    let world = world().await;
    let mut all = Events::open(world.api, "/v1/decisions/stream").await;
    let mut denied = Events::open(world.api, "/v1/decisions/stream?denied=true").await;
    let path = "/v1/decisions/stream?identity=spiffe://hanzo.ai/hanzo-k8s/*/chat";
    let mut chat = Events::open(world.api, path).await;
    post(
        world.api,
        "/v1/evaluate",
        &question(IAM, POSTGRES, 5432).to_string(),
    )
    .await;
    post(world.api, "/v1/evaluate", &question(IAM, POSTGRES, 1).to_string()).await;
    post(
        world.api,
        "/v1/evaluate",
        &question(CHAT, POSTGRES, 2).to_string(),
    )
    .await;
    all.until("\"port\":2,").await;
    denied.until("\"port\":2,").await;
    chat.until("\"port\":2,").await;
    let ports = |events: &Events| -> Vec<bool> {
        [5432, 1, 2]
            .map(|port| events.read.contains(&format!("\"port\":{port},")))
            .into()
    };
    assert_eq!(ports(&all), [true, true, true]);
    assert_eq!(ports(&denied), [false, true, true]);
    assert_eq!(ports(&chat), [false, false, true]);

    let line = |name: &str| {
        chat.read
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .expect("line")
            .to_owned()
    };
    let record: Entry = serde_json::from_str(&line("data: ")).expect("a record");
    assert_eq!(record.id().to_string(), line("id: "));
}

#[tokio::test]
async fn a_slow_client_is_told_what_it_missed_and_holds_up_nobody() {
    let world = world().await;
    let mut slow = Events::open(world.api, "/v1/decisions/stream").await;
    // More than the sockets' buffers and the memory for slow clients hold, without a read in between.
    let batch = json!({ "requests": vec![question(IAM, POSTGRES, 5432); 1000] }).to_string();
    for _ in 0..30 {
        assert_eq!(post(world.api, "/v1/evaluate", &batch).await.status, 200);
    }
    world.intake.flush().await.expect("flushes");
    assert_eq!(world.intake.stats().stored_total(), 30_000);
    slow.until("event: lagged").await;
    slow.until("data: {\"missed\":").await;
}

#[tokio::test]
async fn stopping_ends_streams_and_takes_no_more() {
    let world = world().await;
    let mut events = Events::open(world.api, "/v1/decisions/stream").await;
    world.stopping.send_replace(true);
    tokio::time::timeout(Duration::from_secs(10), world.serving)
        .await
        .expect("in time")
        .expect("well");
    let mut rest = Vec::new();
    events.stream.read_to_end(&mut rest).await.expect("ends");
    assert!(
        TcpStream::connect(world.api).await.is_err(),
        "nobody listens any more"
    );
}
