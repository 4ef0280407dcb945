// SPDX-License-Identifier: Apache-2.0
//! Clients who take their time where it costs: with handshakes, with heads over TLS and the socket, with reading answers.

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::local::{counted, hasty, listen, over, serve};
use super::remote::remote_with;
use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

/// Reads until the other side ends it, in order or not.
async fn rest(stream: &mut (impl AsyncReadExt + Unpin)) -> Vec<u8> {
    let mut bytes = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .expect("cut off");
    bytes
}

#[tokio::test]
async fn answers_that_nobody_reads_end_their_connection() {
    let world = world().await;
    let (endpoint, address) = listen(hasty()).await;
    serve(&world, endpoint, u32::MAX);
    let whole = get(world.api, "/openapi.json").await.body.len();
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let asked = 1000;
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(asked);
    // More than the buffers of both sides hold.
    assert!(asked * whole > 16 << 20, "{whole}");
    let sending = stream.write_all(request.as_bytes());
    // Where the server reads no more, this waits for it: then the rest need not be sent.
    let _ = tokio::time::timeout(Duration::from_secs(1), sending).await;
    counted(&world, "unread_answer").await;
    let bytes = rest(&mut stream).await;
    assert!(
        bytes.len() < asked * whole,
        "{} of {}",
        bytes.len(),
        asked * whole
    );
    // Others are answered, and one who reads slowly but does read gets all.
    let mut slow = TcpStream::connect(address).await.expect("connects");
    let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    slow.write_all(request.as_bytes()).await.expect("written");
    assert!(rest(&mut slow).await.len() > whole);
}

#[tokio::test]
async fn handshakes_that_take_too_long_are_cut_off_and_counted() {
    let remote = remote_with(hasty()).await;
    // Nothing at all.
    let mut silent = TcpStream::connect(remote.address).await.expect("connects");
    assert_eq!(rest(&mut silent).await, b"");
    assert!(remote.refused("timeout").await);
    // The beginning of a greeting, and then a byte now and then.
    let mut slow = TcpStream::connect(remote.address).await.expect("connects");
    slow.write_all(&[0x16, 3, 1, 0x3f, 0xff, 1, 0])
        .await
        .expect("written");
    let (mut reading, mut writing) = slow.split();
    let dripping = async {
        while writing.write_all(&[0]).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = rest(&mut reading) => {}
        () = dripping => {}
    }
    let counted = async {
        let line = "zt_api_refused_total{cause=\"timeout\"} 2";
        while !get(remote.world.health, "/metrics").await.body.contains(line) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, counted).await.expect("counted");
}

#[tokio::test]
async fn slow_heads_are_cut_off_over_tls_and_over_the_socket() {
    let half = "GET /v1/status HTTP/1.1\r\nHost: x";
    // Time enough for the handshake on a busy machine.
    let limits = Limits {
        handshake_time: PATIENCE,
        ..hasty()
    };
    let remote = remote_with(limits).await;
    let shown = remote.authority.issue(&["spiffe://hanzo.ai/ops/alice"]);
    let answer = remote
        .ask(&remote.authority, Some(&shown), half)
        .await
        .expect("told");
    assert_eq!((answer.status, answer.code().as_str()), (408, "head_timeout"));
    assert!(remote.refused("slow_head").await);
    // Who shakes hands and says nothing is closed without a word.
    let connector = TlsConnector::from(Arc::new(remote.authority.client(Some(&shown))));
    let stream = TcpStream::connect(remote.address).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("name");
    let mut stream = connector.connect(name, stream).await.expect("shakes hands");
    assert_eq!(rest(&mut stream).await, b"");

    let world = world().await;
    let path = world.directory.path().join("agent.sock");
    let endpoint = bind_socket(&path).await.expect("binds").with_limits(hasty());
    serve(&world, endpoint, u32::MAX);
    let answer = over(&path, half).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("head_timeout"),
        "{answer}"
    );
    counted(&world, "slow_head").await;
    let body = "POST /v1/evaluate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{";
    let answer = over(&path, body).await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("body_timeout"),
        "{answer}"
    );
    counted(&world, "slow_body").await;
    assert_eq!(world.intake.stats().received_total(), 0);
}

/// Reads one answer, which says how long it is.
async fn one(stream: &mut TcpStream) -> String {
    let reading = async {
        let mut bytes = Vec::new();
        loop {
            let text = String::from_utf8_lossy(&bytes);
            if let Some((head, body)) = text.split_once("\r\n\r\n") {
                let mut lines = head.lines();
                let length = lines.find_map(|line| line.strip_prefix("content-length: "));
                if length.is_some_and(|length| length.parse() == Ok(body.len())) {
                    return text.into_owned();
                }
            }
            bytes.push(stream.read_u8().await.expect("goes on"));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.expect("answered")
}

#[tokio::test]
async fn who_is_refused_may_send_the_rest_and_ask_again() {
    let world = world().await;
    for (refused, status) in [
        // By the guard, by evaluation, and behind the router.
        ("POST /v1/evaluate HTTP/1.1\r\nHost: rebound.example\r\n", 403),
        (
            "POST /v1/evaluate HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n",
            415,
        ),
        (
            "PUT /v1/policies/core HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n",
            415,
        ),
        ("POST /v1/nothing HTTP/1.1\r\nHost: localhost\r\n", 404),
    ] {
        let mut stream = TcpStream::connect(world.api).await.expect("connects");
        let head = format!("{refused}Content-Length: 5\r\n\r\n");
        stream.write_all(head.as_bytes()).await.expect("written");
        // What is refused by its head is refused by now.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stream.write_all(b"12345").await.expect("written");
        let answer = one(&mut stream).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{refused}: {answer}"
        );
        let request = "GET /openapi.json HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.expect("written");
        let next = rest(&mut stream).await;
        assert!(next.starts_with(b"HTTP/1.1 200 "), "{refused}");
        // Who asks whether to send it is told, and by nothing but the answer.
        let mut asking = TcpStream::connect(world.api).await.expect("connects");
        let head = format!("{refused}Content-Length: 5\r\nExpect: 100-continue\r\n\r\n");
        asking.write_all(head.as_bytes()).await.expect("written");
        let answer = one(&mut asking).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{refused}: {answer}"
        );
    }
}
