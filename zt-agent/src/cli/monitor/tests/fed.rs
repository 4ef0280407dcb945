// SPDX-License-Identifier: Apache-2.0
//! What comes from an agent that goes away and comes back.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::cli::client::{ApiArgs, Client};
use crate::cli::monitor::STREAM;
use crate::cli::monitor::feed::feed;

const STATUS: &str = r#"{"node":"worker-3"}"#;

/// Answers as an agent does: its status, and a stream of these records that ends, which the next one goes on from.
async fn serve(listener: TcpListener, mut streams: Vec<String>) {
    streams.reverse();
    while let Ok((mut connection, _)) = listener.accept().await {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if connection.read_exact(&mut byte).await.is_err() {
                break;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let (media_type, body) = if head.contains(STREAM) {
            assert!(head.contains("?denied=true "), "{head}");
            match streams.pop() {
                Some(events) => ("text/event-stream", events),
                None => return,
            }
        } else {
            ("application/json", STATUS.to_owned())
        };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(answer.as_bytes()).await.expect("sent");
    }
}

#[tokio::test]
async fn what_comes_is_passed_on_whoever_goes_away_meanwhile() {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("bound");
    let address = listener.local_addr().expect("an address");
    let event = |record: &Value| format!("id: 1\ndata: {record}\n\n");
    let many: String = (0..3_000).map(|_| event(&record("ALLOW", true, 5432))).collect();
    let first =
        format!("{many}event: lagged\ndata: {{\"missed\":3}}\n\nevent: other\ndata: x\n\n: alive\n\n");
    let second = event(&record("DENY", true, 80));
    tokio::spawn(serve(listener, vec![first, second]));
    let client = Client::new(&ApiArgs {
        api: format!("http://{address}"),
        ..ApiArgs::default()
    });
    let client = client.expect("a client");
    let query = vec![("denied", "true".to_owned())];
    let events = client.events(STREAM, &query).await.expect("a stream");
    let (to, mut fed) = mpsc::channel(16);
    tokio::spawn(feed(client, query, events, to));
    let mut view = View::new();
    let mut links = Vec::new();
    // The last stream has ended, and no other is to be had.
    while !(view.sample.all == 3_004 && matches!(view.link, Link::Gone(_))) {
        let one = tokio::time::timeout(Duration::from_secs(60), fed.recv()).await;
        view.take(one.expect("in time").expect("it goes on for ever"));
        view.tick(Duration::ZERO);
        if links.last() != Some(&view.link) {
            links.push(view.link.clone());
        }
    }
    let ended = || Link::Gone("the agent ended the stream; it is stopping, or was restarted".to_owned());
    assert_eq!(links, [Link::Connected, ended(), Link::Again, ended()]);
    assert_eq!((view.sample.missed, view.sample.shown), (3, 3_001));
    assert_eq!(view.agent, "worker-3");
    assert_eq!(view.top().1, 1);
}
