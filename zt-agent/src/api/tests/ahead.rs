// SPDX-License-Identifier: Apache-2.0
//! What is judged of very many addresses, and as at a stage that is still to come.

use std::net::{IpAddr, Ipv4Addr};

use super::paged::{connection, recorded};
use super::*;
use crate::audit::Entry;
use crate::audit::record::party;
use crate::policy::PolicySet;

/// Addresses that call: more than there may be different connections in an answer.
const CLIENTS: u32 = 20_100;

/// A connection from an address of the world.
fn from_world(number: u32) -> Entry {
    let Entry::Decision(mut record) = connection(IAM, 5432, true, true) else {
        unreachable!("a connection is a decision")
    };
    (record.source.spiffe_id, record.source.entity) = party("world".into());
    record.source.address = Some(IpAddr::from(Ipv4Addr::from_bits(0xcb00_0000 + number)));
    Entry::Decision(record)
}

#[tokio::test]
async fn an_ingress_of_very_many_addresses_is_judged_and_recommended_for() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let all: Vec<Entry> = (0..CLIENTS).map(from_world).collect();
    for some in all.chunks(4096) {
        recorded(&world, some).await;
    }
    // The policy in force names no network; a candidate tells the first 256 of them from the others.
    let networks = POLICY.replace(
        "spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/iam",
        "cidr: 203.0.0.0/24",
    );
    let (in_force, candidate) = (
        get(world.api, "/v1/replay").await,
        send(world.api, "POST", "/v1/replay", YAML, &networks).await,
    );
    for (reply, method, flows, denied) in [
        (&in_force, "get", 1, CLIENTS),
        (&candidate, "post", 2, CLIENTS - 256),
    ] {
        assert_eq!(reply.status, 200, "{}", reply.body);
        described::check(&document, method, "/v1/replay", reply);
        let replay = reply.json();
        assert_eq!(
            (&replay["flows"], &replay["connections"]),
            (&json!(flows), &json!(CLIENTS))
        );
        assert_eq!(replay["newly_denied"], json!({"flows": 1, "connections": denied}));
        let change = &replay["changes"][0];
        assert_eq!(
            (&change["source"], &change["address_count"]),
            (&json!("world"), &json!(denied))
        );
        assert_eq!(change["addresses"].as_array().map(Vec::len), Some(16));
        assert_eq!(replay["recorded_by"], json!("this_node"));
    }
    let reply = get(world.api, "/v1/recommend").await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let advice = reply.json();
    assert_eq!(
        (&advice["flows"], &advice["connections"], &advice["rules"]),
        (&json!(1), &json!(CLIENTS), &json!(1))
    );
    let policy = advice["policy"].as_str().expect("a text");
    assert!(policy.contains("- from: {entity: world}"), "{policy}");
}

/// Whoever reaches the database, and a rollout at one of its stages, or at none.
fn with_rollout(stage: &str) -> Arc<PolicySet> {
    let policy = POLICY.replace("spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/iam", "spiffe: \"*\"");
    let text = format!(
        "{policy}---
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {{name: r}}
spec:
  {stage}
  stages: [{{name: first, identities: ['{CHAT}']}}, {{name: all, requirePolicy: true}}]
"
    );
    let document = Document {
        file: "p.yaml".to_owned(),
        text,
    };
    Arc::new(crate::policy::parse(&[document], &Settings::default()).expect("valid"))
}

#[tokio::test]
async fn what_the_next_stage_refuses_is_known_before() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    recorded(
        &world,
        &[
            connection(CHAT, 5432, true, true),
            connection(CHAT, 5432, true, true),
            connection(IAM, 80, true, true),
        ],
    )
    .await;
    let judged = async |query: &str| {
        let reply = get(world.api, &format!("/v1/replay{query}")).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        described::check(&document, "get", "/v1/replay", &reply);
        let replay = reply.json();
        let denied = replay["denied"].as_array().expect("a list").iter();
        let by_stage: Vec<bool> = denied.map(|row| row["by_stage"] == true).collect();
        assert_eq!(replay["would_deny"]["flows"], json!(by_stage.len()));
        // What is compared with what was said then is what is in force.
        let in_force = usize::from(replay["stage"].is_null() && by_stage.len() == 2);
        assert_eq!(replay["newly_denied"]["flows"], json!(1 + in_force));
        (replay["stage"].clone(), by_stage)
    };
    let set = |stage: &str| world.snapshots.update(|next| next.policies = with_rollout(stage));

    set("stage: first");
    // Nobody names chat, whom `*` lets reach the database until then; the other one no rule allows anyway.
    assert_eq!(judged("").await, (json!("all"), vec![true, false]));
    assert_eq!(judged("?stage=all").await, (json!("all"), vec![true, false]));
    assert_eq!(judged("?stage=first").await, (json!("first"), vec![false]));
    set("description: at none");
    assert_eq!(judged("").await, (json!("first"), vec![false]));
    assert_eq!(judged("?stage=all").await, (json!("all"), vec![true, false]));
    // Where the node stopped short of the last stage, that is what comes next.
    set("stage: all");
    assert_eq!(judged("").await, (Value::Null, vec![false, false]));
    world.snapshots.update(|next| {
        next.settings = Arc::new(Settings {
            most_stages: Some(1),
            ..Settings::default()
        });
    });
    assert_eq!(judged("").await, (json!("all"), vec![true, false]));

    let refused = async |query: &str| {
        let reply = get(world.api, &format!("/v1/replay{query}")).await;
        described::check(&document, "get", "/v1/replay", &reply);
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_parameter"),
            "{query}"
        );
        reply.json()["errors"][0]["message"]
            .as_str()
            .expect("a text")
            .to_owned()
    };
    let message = refused("?stage=None").await;
    assert!(message.contains("which has first, all"), "{message}");
    world
        .snapshots
        .update(|next| next.policies = Arc::new(PolicySet::default()));
    let message = refused("?stage=first").await;
    assert!(message.contains("there is no rollout"), "{message}");
    // Stages are those of the policy in force.
    for path in ["/v1/recommend?stage=first", "/v1/graph?stage=first"] {
        assert_eq!(get(world.api, path).await.status, 400, "{path}");
    }
}
