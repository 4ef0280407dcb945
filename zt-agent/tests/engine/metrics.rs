// SPDX-License-Identifier: Apache-2.0
//! What anybody makes up does not become a label.

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::world::{Engine, Shared, eventually, policy};

/// Names that nobody declared, of sources, destinations, operators, nodes and policies each.
const MADE_UP: usize = 10_000;
/// Questions of one request.
const BATCH: usize = 1000;

pub(super) async fn exposition(engine: &Engine) -> String {
    let mut stream = TcpStream::connect(engine.health).await.expect("connects");
    let request = "GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("answered");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.contains(" 200 "), "{head}");
    body.to_owned()
}

/// The series of one metric, with their values.
fn series<'t>(text: &'t str, name: &str) -> Vec<(&'t str, u64)> {
    let lines = text.lines().filter(|line| line.starts_with(name));
    lines
        .filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            Some((series, value.parse().ok()?))
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_names_that_somebody_makes_up_add_a_handful_of_series() {
    let shared = Shared::new();
    shared.write("core", &policy("core", &[5432]));
    let engine = shared.engine("e1").await;
    let api = engine.client();
    let question = |number: usize| -> Value {
        let id = |party: &str| json!(format!("spiffe://hanzo.ai/made-up/{party}-{number}"));
        json!({
            "source": {"spiffe_id": id("from")},
            "destination": {"spiffe_id": id("to"), "port": number % 60_000 + 1, "protocol": "TCP"},
        })
    };
    // One of each kind first: what these add is there before.
    for known in [
        json!({"requests": [question(0)]}),
        json!({"operator": {"role": "made-up-0"}, "target": {"service": "made-up-0", "action": "read"}}),
    ] {
        api.post("/v1/evaluate", &known).await.expect("answered");
    }
    let total = async || {
        let text = exposition(&engine).await;
        let counted: u64 = series(&text, "zt_decisions_total")
            .iter()
            .map(|(_, count)| count)
            .sum();
        (counted, text)
    };
    let recorded = async |wanted: usize| {
        eventually("every answer to be counted", || async {
            let (counted, text) = total().await;
            (counted == wanted as u64).then_some(text)
        })
        .await
    };
    let before = recorded(2).await;

    for first in (1..MADE_UP).step_by(BATCH) {
        let batch: Vec<Value> = (first..first + BATCH).map(question).collect();
        api.post("/v1/evaluate", &json!({ "requests": batch }))
            .await
            .expect("answered");
    }
    let digest = engine.digest().await.expect("digest");
    for number in (1..MADE_UP).step_by(10) {
        let operator = json!({
            "operator": {"role": format!("made-up-{number}")},
            "target": {"service": format!("made-up-{number}"), "action": "read"},
        });
        api.post("/v1/evaluate", &operator).await.expect("answered");
        let report = json!({"revision": 1, "digest": digest});
        api.put(&format!("/v1/nodes/made-up-{number}"), &report)
            .await
            .expect("noted");
        let refused = api.get(&format!("/v1/policies/made-up-{number}"), &[]).await;
        refused.expect_err("there is none");
    }
    let after = recorded(2 + MADE_UP + MADE_UP / 10).await;
    assert!(!after.contains("made-up"), "{after}");
    let names = |text: &str| -> Vec<String> {
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        samples
            .filter_map(|line| Some(line.rsplit_once(' ')?.0.to_owned()))
            .collect()
    };
    assert_eq!(names(&before), names(&after), "series came with the names");
}
