// SPDX-License-Identifier: Apache-2.0
//! `zt-agent graph` at an engine that has recorded connections, in each of its forms.

use std::process::{Command, Output};

use serde_json::{Value, json};
use zt_agent::audit::record::Entry;
use zt_agent::audit::sqlite::{Durability, Settings, Store};
use zt_agent::audit::store::Sink as _;

use super::world::{Engine, Shared};

/// A connection as a node records it.
fn connection(number: u32, hour: u32, (from, to): (&str, &str), decision: &str) -> Entry {
    let party = |name: &str| match name {
        "world" => json!({ "spiffe_id": null, "entity": name }),
        name => json!({ "spiffe_id": format!("spiffe://hanzo.ai/k8s/{name}"), "entity": null }),
    };
    let (mut source, mut destination) = (party(from), party(to));
    for (field, value) in [
        ("pod", json!(null)),
        ("node", json!("n1")),
        ("address", json!(null)),
    ] {
        source[field] = value.clone();
        destination[field] = value;
    }
    for field in ["port", "pid", "comm"] {
        source[field] = json!(null);
    }
    destination["port"] = json!(443);
    let record = json!({
        "type": "decision", "id": uuid::Uuid::from_u128(u128::from(number)),
        "timestamp": format!("2026-02-23T{hour:02}:00:00Z"), "decision": decision, "source": source,
        "destination": destination, "policy_matched": null, "latency_us": 1.0, "cluster": "k8s", "protocol": "TCP",
        "hook": "connect", "observer": "source", "mode": "enforce", "enforced": true, "revision": 1, "reason": "no_rule",
        "proof": "none", "count": 1,
    });
    serde_json::from_value(record).expect("a record")
}

fn graph(engine: &Engine, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_zt-agent"));
    command
        .env_clear()
        .args(["graph", "--api", &engine.url()])
        .args(more);
    command.output().expect("runs")
}

fn text(engine: &Engine, more: &[&str]) -> String {
    let output = graph(engine, more);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{more:?}: {said}");
    String::from_utf8(output.stdout).expect("text")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_graph_of_an_engine_is_drawn_in_each_form() {
    let shared = Shared::new();
    let home = shared.below("e1");
    let settings = Settings {
        dsn: format!("sqlite://{}/audit.db", home.display()),
        max_disk_bytes: 1 << 30,
        retention_days: None,
        keys: Some(home.join("keys")),
        sync: Durability::default(),
    };
    let store = Store::open(settings).await.expect("opens");
    let entries = [
        connection(1, 10, ("shop/web", "shop/db"), "ALLOW"),
        connection(2, 11, ("shop/web", "world"), "DENY"),
        connection(3, 12, ("watch/probe", "shop/db"), "ALLOW"),
    ];
    store.append(&entries, None).await.expect("kept");
    store.close().await.expect("closes");
    let engine = shared.engine("e1").await;

    let table = text(&engine, &[]);
    assert_eq!(table.lines().count(), 4, "{table}");
    let answer: Value = serde_json::from_str(&text(&engine, &["-o", "json"])).expect("JSON");
    let over_http = engine.client().get("/v1/graph", &[]).await.expect("answers");
    assert_eq!(answer, over_http);
    assert_eq!(answer["edges"].as_array().map(Vec::len), Some(3));
    let dot = text(&engine, &["-o", "dot"]);
    assert!(dot.starts_with("digraph zt {"), "{dot}");
    for line in [
        "\"spiffe://hanzo.ai/k8s/shop/web\" [label=\"k8s/shop/web\"];",
        "\"spiffe://hanzo.ai/k8s/shop/web\" -> \"world\" [label=\"443/TCP\", color=red, tooltip=\"denied\"];",
    ] {
        assert!(dot.contains(line), "{dot}");
    }
    let mermaid = text(
        &engine,
        &[
            "-o",
            "mermaid",
            "--namespace",
            "shop",
            "--until",
            "2026-02-23T12:00:00Z",
        ],
    );
    assert_eq!(
        mermaid,
        "flowchart LR\n  n0[\"k8s/shop/db\"]\n  n1[\"k8s/shop/web\"]\n  n2[\"world\"]\n  \
         n1 -->|\"443/TCP\"| n0\n  n1 -.->|\"443/TCP denied\"| n2\n"
    );
    let watch = text(&engine, &["--namespace", "watch", "-o", "json"]);
    let watch: Value = serde_json::from_str(&watch).expect("JSON");
    assert_eq!(watch["edges"][0]["source"], "spiffe://hanzo.ai/k8s/watch/probe");

    let nobody = graph(&engine, &["--namespace", "nobody"]);
    assert!(nobody.status.success());
    let said =
        String::from_utf8_lossy(&nobody.stderr).into_owned() + &String::from_utf8_lossy(&nobody.stdout);
    assert!(said.contains("nobody has talked to anybody yet"), "{said}");
    let wrong = graph(
        &engine,
        &[
            "--since",
            "2026-02-24T00:00:00Z",
            "--until",
            "2026-02-23T00:00:00Z",
        ],
    );
    assert_eq!(wrong.status.code(), Some(1));
    assert_eq!(graph(&engine, &["--since", "soon"]).status.code(), Some(2));
    assert_eq!(graph(&engine, &["-o", "svg"]).status.code(), Some(2));
}
