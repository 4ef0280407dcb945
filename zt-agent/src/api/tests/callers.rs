// SPDX-License-Identifier: Apache-2.0
//! Callers that change while the agent runs.

use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;

use super::remote::{GET, remote, rule};
use super::*;
use crate::caller::Role;

#[tokio::test]
async fn callers_change_under_way_and_who_lost_a_right_is_cut_off() {
    let remote = remote().await;
    let (reader, alice) = ("spiffe://hanzo.ai/audit/reader", "spiffe://hanzo.ai/ops/alice");
    let open = async |id: &str| {
        let shown = remote.authority.issue(&[id]);
        let connector = TlsConnector::from(Arc::new(remote.authority.client(Some(&shown))));
        let stream = TcpStream::connect(remote.address).await.expect("connects");
        let name = ServerName::try_from("localhost").expect("name");
        connector.connect(name, stream).await.expect("shakes hands")
    };
    let (mut readers, mut ops) = (open(reader).await, open(alice).await);
    let stream = "GET /v1/decisions/stream HTTP/1.1\r\nHost: x\r\n\r\n";
    readers.write_all(stream.as_bytes()).await.expect("written");
    let mut first = [0; 12];
    readers.read_exact(&mut first).await.expect("answered");
    assert_eq!(&first, b"HTTP/1.1 200");
    remote.configured.send_modify(|configured| {
        *configured = Arc::new(Configured {
            callers: Arc::from([rule("spiffe://hanzo.ai/ops/*", Role::Admin)]),
            ..Configured::default()
        });
    });
    // The stream has no end of its own.
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(30), readers.read_to_end(&mut rest)).await;
    assert!(ended.is_ok(), "the stream goes on");
    assert_eq!(
        remote.ask_as(reader, "GET", "/v1/status", "").await.code(),
        "caller_unknown"
    );
    // Of whom the same is said as before, nothing is cut off.
    ops.write_all(GET.as_bytes()).await.expect("written");
    let mut text = String::new();
    ops.read_to_string(&mut text).await.expect("answered");
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}
