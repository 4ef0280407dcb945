// SPDX-License-Identifier: Apache-2.0
//! Policies that are not in force, judged by what was recorded.

use super::paged::{connection, recorded};
use super::remote::remote;
use super::*;

/// The same rule for another source, and the rule that is in force for another port.
fn candidate() -> String {
    let other = POLICY
        .replace("hanzo-core-policy", "candidate")
        .replace(IAM, CHAT);
    let port = POLICY.replace("hanzo-core-policy", "port").replace("5432", "80");
    format!("{other}---\n{port}")
}

async fn judge(world: &World, query: &str, body: &str) -> Reply {
    send(world.api, "POST", &format!("/v1/replay{query}"), YAML, body).await
}

/// What is in force, how it judges, what was recorded, and what is on disk.
async fn all(world: &World) -> (Value, Value, u64, Vec<(std::ffi::OsString, String)>) {
    let entries = std::fs::read_dir(world.policies()).expect("directory");
    let files = entries.map(|entry| {
        let entry = entry.expect("entry");
        let text = std::fs::read_to_string(entry.path()).expect("text");
        (entry.file_name(), text)
    });
    (
        get(world.api, "/v1/policies").await.json(),
        get(world.api, "/v1/replay").await.json(),
        world.intake.stats().received_total(),
        files.collect(),
    )
}

#[tokio::test]
async fn a_candidate_is_judged_in_place_of_what_is_in_force_and_changes_nothing() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    recorded(
        &world,
        &[
            connection(IAM, 5432, true, true),
            connection(IAM, 5432, true, true),
            connection(IAM, 80, true, true),
            connection(CHAT, 5432, false, true),
            connection(CHAT, 81, false, false),
        ],
    )
    .await;
    let before = all(&world).await;
    let reply = judge(&world, "", &candidate()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    described::check(&document, "post", "/v1/replay", &reply);
    let replay = reply.json();
    assert_eq!(
        (&replay["revision"], &replay["connections"], &replay["flows"]),
        (&json!(7), &json!(5), &json!(4))
    );
    // What was only observed went through, and is no change: it is denied as it was.
    assert_eq!(replay["would_deny"], json!({"flows": 2, "connections": 3}));
    assert_eq!(replay["newly_denied"], json!({"flows": 1, "connections": 2}));
    assert_eq!(replay["newly_allowed"], json!({"flows": 1, "connections": 1}));
    let changes = replay["changes"].as_array().expect("a list");
    let told = changes
        .iter()
        .map(|change| ["change", "source", "rule"].map(|field| &change[field]));
    assert_eq!(
        told.collect::<Vec<_>>(),
        [
            [&json!("newly_denied"), &json!(IAM), &Value::Null],
            [&json!("newly_allowed"), &json!(CHAT), &json!("candidate/rule-1")],
        ]
    );
    for change in changes {
        assert!(change["first_seen"].is_string() && change["last_seen"].is_string());
    }
    assert_eq!(all(&world).await, before);

    // What is in force, as a candidate, is judged as what is in force; JSON is a document, too.
    let own = world.state.snapshot().policies.all()[0].document().to_string();
    assert_eq!(post(world.api, "/v1/replay", &own).await.json(), before.1);
    // The range is that of the question.
    for (query, status, code) in [
        ("?namespace=none", 404, "nothing_recorded"),
        ("?until=2020-01-01T00:00:00Z", 404, "nothing_recorded"),
        ("?since=x", 400, "invalid_parameter"),
        ("?limit=1", 400, "invalid_parameter"),
    ] {
        let reply = judge(&world, query, &candidate()).await;
        assert_eq!((reply.status, reply.code().as_str()), (status, code), "{query}");
        described::check(&document, "post", "/v1/replay", &reply);
    }
}

#[tokio::test]
async fn a_candidate_with_mistakes_is_refused_as_a_change_is() {
    let world = world().await;
    let in_second = format!("{POLICY}---\n{}", POLICY.replace("[5432]", "[70000]"));
    for body in [
        POLICY.replace("[5432]", "[70000]"),
        POLICY.replace("rules:", "rule:"),
        "a: [".to_owned(),
        String::new(),
        // Two of one name.
        format!("{POLICY}---\n{POLICY}"),
        in_second.clone(),
    ] {
        let asked = judge(&world, "", &body).await;
        assert_eq!(
            (asked.status, asked.code().as_str()),
            (422, "invalid_policy"),
            "{body}"
        );
        let path = "/v1/policies/hanzo-core-policy?dry_run=true";
        let put = send(world.api, "PUT", path, YAML, &body).await;
        assert_eq!(asked.json(), put.json(), "{body}");
    }
    // Lines are those of all that was sent.
    let errors = judge(&world, "", &in_second).await.json()["errors"].take();
    let error = &errors[0];
    assert_eq!(
        (&error["file"], &error["line"], &error["field"]),
        (&json!("body"), &json!(27), &json!("spec.rules[0].to[0].ports[0]")),
        "{errors}"
    );
}

#[tokio::test]
async fn whoever_may_read_may_have_a_candidate_judged_and_nobody_else() {
    let remote = remote().await;
    recorded(&remote.world, &[connection(IAM, 5432, true, true)]).await;
    let policy = remote.world.state.snapshot().policies.all()[0]
        .document()
        .to_string();
    for id in ["spiffe://hanzo.ai/audit/reader", "spiffe://hanzo.ai/ops/alice"] {
        let reply = remote.ask_as(id, "POST", "/v1/replay", &policy).await;
        assert_eq!(reply.status, 200, "{id}: {}", reply.body);
    }
    for id in ["spiffe://hanzo.ai/app/web", "spiffe://hanzo.ai/nodes/worker-1"] {
        let reply = remote.ask_as(id, "POST", "/v1/replay", &policy).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (403, "role_insufficient"),
            "{id}"
        );
    }
}

#[tokio::test]
async fn where_this_node_stopped_is_not_where_a_candidate_stops() {
    let world = world().await;
    recorded(&world, &[connection(CHAT, 5432, true, true)]).await;
    world.snapshots.update(|next| {
        next.settings = Arc::new(Settings {
            most_stages: Some(0),
            ..Settings::default()
        });
    });
    let body = format!(
        "{}---
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {{name: r}}
spec:
  stage: all
  stages: [{{name: first, identities: ['{IAM}']}}, {{name: all, requirePolicy: true}}]
",
        POLICY.replace("defaultAction: DENY", "defaultAction: ALLOW")
    );
    let replay = judge(&world, "", &body).await.json();
    assert_eq!(
        (&replay["changes"][0]["change"], &replay["changes"][0]["rule"]),
        (&json!("newly_denied"), &json!("builtin/require-policy")),
        "{replay}"
    );
}
