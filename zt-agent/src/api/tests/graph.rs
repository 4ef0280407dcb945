// SPDX-License-Identifier: Apache-2.0
//! Who talks to whom, over HTTP: filters, names that nobody has, and as many edges as an answer may have.

use super::*;
use crate::audit::query::{HOUR, MAX_EDGES};
use crate::audit::record::{Entry, Outcome, Timestamp, party};
use crate::audit::sample;
use crate::audit::store::Sink as _;

const GRAFANA: &str = "spiffe://hanzo.ai/hanzo-k8s/monitoring/grafana";
/// 2026-02-23T14:00:00Z.
const START: i64 = 1_771_855_200_000_000_000;

/// A connection in an hour from the first on.
fn connection(number: u128, hour: i64, (from, to): (&str, &str), port: u16) -> Entry {
    let mut record = sample::record_of(&sample::decision(), number);
    record.timestamp = Timestamp(START + hour * HOUR + 1);
    (record.source.spiffe_id, record.source.entity) = party(Arc::from(from));
    (record.destination.spiffe_id, record.destination.entity) = party(Arc::from(to));
    record.destination.port = port;
    Entry::Decision(record)
}

/// One that policy denied, refused or not.
fn denied(number: u128, hour: i64, ends: (&str, &str), port: u16, enforced: bool) -> Entry {
    let Entry::Decision(mut record) = connection(number, hour, ends, port) else {
        panic!("a decision")
    };
    (record.decision, record.enforced, record.policy_matched) = (Outcome::Deny, enforced, None);
    Entry::Decision(record)
}

async fn keep(world: &World, entries: &[Entry]) {
    world.state.store.append(entries, None).await.expect("stored");
}

/// Each edge as text: its ends, port, and what became of it.
fn edges(graph: &Value) -> Vec<String> {
    let short = |id: &Value| {
        let id = id.as_str().expect("a name");
        id.rsplit('/').next().unwrap_or(id).to_owned()
    };
    let line = |edge: &Value| {
        let (from, to) = (short(&edge["source"]), short(&edge["destination"]));
        let counts = [&edge["allowed"], &edge["denied"], &edge["would_deny"]];
        format!(
            "{from}>{to}:{} {}/{}/{}",
            edge["port"], counts[0], counts[1], counts[2]
        )
    };
    graph["edges"]
        .as_array()
        .expect("edges")
        .iter()
        .map(line)
        .collect()
}

#[tokio::test]
async fn the_graph_is_of_the_time_and_the_namespace_that_are_asked_for() {
    let world = world().await;
    keep(
        &world,
        &[
            connection(1, 0, (IAM, POSTGRES), 5432),
            connection(2, 1, (IAM, POSTGRES), 5432),
            denied(3, 1, (CHAT, POSTGRES), 5432, true),
            denied(4, 2, (CHAT, POSTGRES), 5432, false),
            connection(5, 2, (GRAFANA, "world"), 443),
            connection(6, 3, (GRAFANA, IAM), 9090),
        ],
    )
    .await;
    let all = [
        "chat>postgres:5432 0/1/1",
        "iam>postgres:5432 2/0/0",
        "grafana>iam:9090 1/0/0",
        "grafana>world:443 1/0/0",
    ];
    for (query, wanted) in [
        ("", &all[..]),
        (
            "?since=2026-02-23T15:30:00Z&until=2026-02-23T15:30:01Z",
            &["chat>postgres:5432 0/1/0", "iam>postgres:5432 1/0/0"],
        ),
        ("?since=2026-02-23T17:00:00Z", &["grafana>iam:9090 1/0/0"]),
        ("?until=2026-02-23T15:00:00Z", &["iam>postgres:5432 1/0/0"]),
        ("?since=2026-02-24T00:00:00Z", &[]),
        ("?until=2026-02-23T14:00:00Z", &[]),
        ("?namespace=monitoring", &all[2..]),
        (
            "?namespace=hanzo",
            &[
                "chat>postgres:5432 0/1/1",
                "iam>postgres:5432 2/0/0",
                "grafana>iam:9090 1/0/0",
            ],
        ),
        ("?namespace=monitoring&since=2026-02-23T17:00:00Z", &all[2..3]),
        // Nobody's, a part of one, another segment of the path, another case, and a pattern.
        ("?namespace=nobody", &[]),
        ("?namespace=hanz", &[]),
        ("?namespace=hanzo-k8s", &[]),
        ("?namespace=Monitoring", &[]),
        ("?namespace=*", &[]),
    ] {
        let reply = get(world.api, &format!("/v1/graph{query}")).await;
        assert_eq!(reply.status, 200, "{query}: {}", reply.body);
        assert_eq!(edges(&reply.json()), wanted, "{query}");
    }
    let graph = get(world.api, "/v1/graph?namespace=monitoring").await.json();
    assert_eq!(
        graph["nodes"],
        json!([
            { "id": IAM, "kind": "workload" },
            { "id": GRAFANA, "kind": "workload" },
            { "id": "world", "kind": "entity" },
        ])
    );
    assert_eq!(
        (&graph["edges"][0]["first_seen"], &graph["edges"][0]["last_seen"]),
        (
            &json!("2026-02-23T17:00:00.000000001Z"),
            &json!("2026-02-23T17:00:00.000000001Z")
        )
    );
    for (query, named) in [
        ("?since=yesterday", "since"),
        ("?until=2026-02-30T00:00:00Z", "until"),
        ("?since=2026-02-24T00:00:00Z&until=2026-02-23T00:00:00Z", "until"),
        ("?namespaces=hanzo", "namespaces"),
    ] {
        let reply = get(world.api, &format!("/v1/graph{query}")).await;
        assert_eq!(reply.status, 400, "{query}: {}", reply.body);
        let errors = reply.json()["errors"].to_string();
        assert!(errors.contains(named), "{query}: {errors}");
    }
}

#[tokio::test]
async fn a_graph_has_so_many_edges_and_not_one_more() {
    let world = world().await;
    let edge = |number: usize| {
        let from = if number < 65_536 { IAM } else { CHAT };
        connection(number as u128, 0, (from, "world"), (number % 65_536) as u16)
    };
    for first in (0..MAX_EDGES).step_by(10_000) {
        let entries: Vec<Entry> = (first..first + 10_000).map(edge).collect();
        keep(&world, &entries).await;
    }
    let reply = get(world.api, "/v1/graph").await;
    assert_eq!(reply.status, 200, "{}", reply.code());
    assert_eq!(reply.body.matches("\"first_seen\"").count(), MAX_EDGES);
    keep(&world, &[connection(1 << 20, 1, (GRAFANA, "world"), 443)]).await;
    let reply = get(world.api, "/v1/graph").await;
    assert_eq!((reply.status, reply.code().as_str()), (400, "too_much"));
    assert!(
        reply.body.contains("100,000") || reply.body.contains("100000"),
        "{}",
        reply.body
    );
    // Narrowed as it says.
    for query in ["?namespace=monitoring", "?since=2026-02-23T15:00:00Z"] {
        let reply = get(world.api, &format!("/v1/graph{query}")).await;
        assert_eq!(edges(&reply.json()), ["grafana>world:443 1/0/0"], "{query}");
    }
}
