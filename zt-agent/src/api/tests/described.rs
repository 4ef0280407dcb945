// SPDX-License-Identifier: Apache-2.0
//! The `OpenAPI` document says what is served, and what is served is as it says.

use super::*;
use crate::audit::Entry;
use crate::audit::store::Sink as _;
use crate::policy::{DenialAction, DeniedEdge, Stop, StopCause};
use crate::state::NodeModes;

/// What is wrong with `value` by a schema of the document.
fn faults(document: &Value, schema: &Value, value: &Value) -> Vec<String> {
    let mut root = schema.clone();
    root["components"] = document["components"].clone();
    let validator = jsonschema::draft202012::new(&root).expect("a schema");
    validator
        .iter_errors(value)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect()
}

/// The schema of an answer.
fn schema_of<'d>(document: &'d Value, method: &str, path: &str, status: u16, media_type: &str) -> &'d Value {
    let responses = &document["paths"][path][method]["responses"];
    let exact = &responses[status.to_string()];
    let class = &responses[format!("{}XX", status / 100)];
    let response = if exact.is_null() { class } else { exact };
    let schema = &response["content"][media_type]["schema"];
    assert!(
        !schema.is_null(),
        "{method} {path} {status} {media_type}: {response}"
    );
    schema
}

pub(super) fn check(document: &Value, method: &str, path: &str, reply: &Reply) {
    let media_type = reply
        .head
        .lines()
        .find_map(|line| line.strip_prefix("content-type: "));
    let media_type = media_type.expect("a type");
    let schema = schema_of(document, method, path, reply.status, media_type);
    let faults = faults(document, schema, &reply.json());
    assert!(faults.is_empty(), "{method} {path}: {faults:#?}\n{}", reply.body);
}

/// What has fields of its own: a policy's document, which has a schema of its own, and what was changed.
const FREE: [&str; 2] = ["document", "change"];

/// A schema and what it is made of.
fn parts<'d>(document: &'d Value, schema: &'d Value) -> Vec<&'d Value> {
    let several = ["allOf", "oneOf", "anyOf"].into_iter();
    let several = several.flat_map(|kind| schema[kind].as_array().into_iter().flatten());
    let referred = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next());
    let referred = referred.map(|name| &document["components"]["schemas"][name]);
    let below = several.chain(referred).flat_map(|schema| parts(document, schema));
    std::iter::once(schema).chain(below).collect()
}

/// Fields of an answer, and of what is in it, that none of its schemas names.
fn unnamed<'d>(document: &'d Value, schemas: &[&'d Value], value: &Value, at: &str) -> Vec<String> {
    let all: Vec<&Value> = schemas
        .iter()
        .flat_map(|schema| parts(document, schema))
        .collect();
    let those = |of: &dyn Fn(&'d Value) -> &'d Value| -> Vec<&'d Value> {
        all.iter()
            .map(|schema| of(schema))
            .filter(|found| found.is_object())
            .collect()
    };
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| !FREE.contains(&name.as_str()))
            .flat_map(|(name, value)| {
                let at = format!("{at}/{name}");
                let mut named = those(&|schema| &schema["properties"][name]);
                if named.is_empty() {
                    // A map says what is in it, whatever the names.
                    named = those(&|schema| &schema["additionalProperties"]);
                }
                if named.is_empty() {
                    return vec![at];
                }
                unnamed(document, &named, value, &at)
            })
            .collect(),
        Value::Array(items) => {
            let of_items = those(&|schema| &schema["items"]);
            let found = items
                .iter()
                .flat_map(|item| unnamed(document, &of_items, item, at));
            found.collect()
        }
        _ => Vec::new(),
    }
}

#[tokio::test]
async fn answers_are_as_the_document_says() {
    let world = world().await;
    world.start_node();
    let document = get(world.api, "/openapi.json").await.json();
    assert_eq!(document["openapi"], json!("3.1.0"));
    let one = question(IAM, POSTGRES, 5432);
    let batch = json!({ "requests": [one, question(CHAT, POSTGRES, 5432)] });
    for body in [&one, &batch, &json!({}), &json!({"requests": []})] {
        let reply = post(world.api, "/v1/evaluate", &body.to_string()).await;
        check(&document, "post", "/v1/evaluate", &reply);
    }
    let policy = POLICY.replace("hanzo-core-policy", "other");
    for (method, name, body) in [
        ("PUT", "other?dry_run=true", policy.as_str()),
        ("PUT", "other", policy.as_str()),
        ("PUT", "other", "a: ["),
        ("GET", "other", ""),
        ("DELETE", "other", ""),
        ("GET", "nobody", ""),
    ] {
        let reply = send(world.api, method, &format!("/v1/policies/{name}"), YAML, body).await;
        check(&document, &method.to_lowercase(), "/v1/policies/{name}", &reply);
    }
    let replayed = send(world.api, "POST", "/v1/replay", YAML, "a: [").await;
    check(&document, "post", "/v1/replay", &replayed);
    let changed = post(world.api, "/v1/mode", r#"{"mode":"observe"}"#).await;
    check(&document, "post", "/v1/mode", &changed);
    in_a_rollout(&world);
    // And a connection, for the graph.
    let connection = Entry::Decision(crate::audit::sample::record());
    world
        .state
        .store
        .append(&[connection], None)
        .await
        .expect("stored");
    for path in [
        "/v1/policies",
        "/v1/audit",
        "/v1/graph",
        "/v1/status",
        "/v1/identities",
        "/v1/rollout",
        "/v1/rules",
        "/v1/replay",
        "/v1/recommend",
        "/v1/recommend/diff",
    ] {
        let reply = get(world.api, path).await;
        check(&document, "get", path, &reply);
        let schema = schema_of(&document, "get", path, 200, "application/json");
        let answer = reply.json();
        for (list, of) in [
            ("records", "/v1/audit"),
            ("nodes", "/v1/graph"),
            ("edges", "/v1/graph"),
        ] {
            let is_empty = answer[list].as_array().is_none_or(Vec::is_empty);
            assert!(of != path || !is_empty, "{path}: no {list} to look at");
        }
        assert_eq!(unnamed(&document, &[schema], &answer, ""), [""; 0], "{path}");
        let reply = get(world.api, &format!("{path}?surprise=1")).await;
        assert_eq!(reply.status, 400);
        check(&document, "get", path, &reply);
    }
}

/// The node stopped at the second of three stages and went back.
fn in_a_rollout(world: &World) {
    let text = format!(
        "{POLICY}---
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {{name: r}}
spec:
  stage: b
  stages:
    - {{name: a, identities: ['{IAM}']}}
    - {{name: b, identities: ['{POSTGRES}'], onDenials: {{perMinute: 1, action: rollback}}}}
    - {{name: c, identities: ['*'], canary: {{percent: 10, by: node}}}}
"
    );
    let settings = Settings {
        most_stages: Some(1),
        ..Settings::default()
    };
    let documents = [Document {
        file: "core.yaml".to_owned(),
        text,
    }];
    let policies = crate::policy::parse(&documents, &settings).expect("valid policy");
    let stage = &policies.rollout().expect("a rollout").stages[1];
    let stopped = Stop {
        rollout: "r".to_owned(),
        stage: stage.name.to_string(),
        definition: stage.digest(),
        action: DenialAction::Rollback,
        denials: 2,
        per_minute: 1,
        attempts: 40,
        attempts_per_minute: None,
        at: 1_772_442_645_000,
        edges: vec![DeniedEdge {
            source: IAM.to_owned(),
            destination: POSTGRES.to_owned(),
            port: 5432,
            protocol: "TCP".to_owned(),
            times: 40,
        }],
        cause: StopCause::Denials,
    };
    world.snapshots.update(|next| {
        next.modes = NodeModes::new(Mode::Observe.into(), &policies, &settings, "worker-3");
        next.stopped = Some(Arc::new(stopped));
        next.policies = Arc::new(policies);
    });
}

#[tokio::test]
async fn a_rollout_says_where_the_node_stopped() {
    let world = world().await;
    assert_eq!(get(world.api, "/v1/rollout").await.json()["rollout"], Value::Null);
    in_a_rollout(&world);
    let answer = get(world.api, "/v1/rollout").await.json();
    let rollout = &answer["rollout"];
    assert_eq!(
        (&rollout["stage"], &rollout["in_force"]),
        (&json!("b"), &json!("a"))
    );
    assert_eq!(rollout["stopped"]["at"], "2026-03-02T09:10:45Z");
    let stages = rollout["stages"].as_array().expect("stages");
    let states: Vec<&Value> = stages.iter().map(|stage| &stage["state"]).collect();
    assert_eq!(states, ["in_force", "stopped", "next"]);
    assert_eq!(
        (&stages[1]["selected"], &stages[1]["taken"]),
        (&json!(1), &json!(1))
    );
    // What the workload says of itself holds until a stage says otherwise.
    assert_eq!(
        rollout["workloads"],
        json!({ "total": 1, "enforced": 1, "newly_enforced": 0, "enforced_without_name": 0 })
    );
    assert_eq!(rollout["stopped"]["cause"], "denials");
    let edges = [json!({
        "source": IAM, "destination": POSTGRES, "port": 5432, "protocol": "TCP", "times": 40,
    })];
    assert_eq!(rollout["stopped"]["edges"], json!(edges));
}

#[tokio::test]
async fn a_node_that_stopped_goes_on_by_request() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let asked = r#"{"action":"resume"}"#;
    assert_eq!(post(world.api, "/v1/rollout", asked).await.code(), "no_rollout");
    in_a_rollout(&world);
    let resumed = post(world.api, "/v1/rollout", asked).await;
    check(&document, "post", "/v1/rollout", &resumed);
    assert_eq!(resumed.json()["stopped_at"], "b", "{}", resumed.body);
    assert!(world.node.resumed.load(Ordering::SeqCst));
    let refused = post(world.api, "/v1/rollout", r#"{"action":"stop"}"#).await;
    assert_eq!(refused.code(), "invalid_body");
}

#[tokio::test]
async fn every_route_is_described_and_every_description_served() {
    let world = world().await;
    let document = get(world.api, "/openapi.json").await.json();
    let paths = document["paths"].as_object().expect("paths");
    let names: Vec<&str> = paths.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "/",
            "/openapi.json",
            "/page/{file}",
            "/v1/audit",
            "/v1/decisions/stream",
            "/v1/evaluate",
            "/v1/graph",
            "/v1/identities",
            "/v1/mode",
            "/v1/nodes/{node}",
            "/v1/policies",
            "/v1/policies/{name}",
            "/v1/recommend",
            "/v1/recommend/diff",
            "/v1/replay",
            "/v1/revisions/stream",
            "/v1/rollout",
            "/v1/rules",
            "/v1/status"
        ]
    );
    for (path, operations) in paths {
        let target = path
            .replace("{name}", "x")
            .replace("{node}", "x")
            .replace("{file}", "x");
        for method in ["get", "put", "post", "delete", "patch"] {
            if path.ends_with("/stream") && method == "get" {
                // It has no end; other tests read it.
                continue;
            }
            let reply = send(world.api, &method.to_uppercase(), &target, "", "").await;
            let described = !operations[method].is_null();
            assert_eq!(reply.status != 405, described, "{method} {path}: {}", reply.body);
            if !described {
                assert_eq!(reply.code(), "method_not_allowed");
                assert!(reply.head.contains("\r\nallow: "), "{}", reply.head);
            }
            assert!(reply.status < 500, "{method} {path}: {}", reply.body);
        }
        for (method, operation) in operations.as_object().expect("operations") {
            assert!(
                operation["summary"].is_string(),
                "{method} {path} says what it does"
            );
        }
    }
}

#[tokio::test]
async fn sql_in_every_text_finds_nothing_and_breaks_nothing() {
    let world = world().await;
    let asked = post(
        world.api,
        "/v1/evaluate",
        &question(IAM, POSTGRES, 5432).to_string(),
    )
    .await;
    assert_eq!(asked.status, 200);
    let injection = "%27%20OR%20%271%27=%271%27;%20DROP%20TABLE%20records;--";
    for name in ["source", "destination", "policy", "node"] {
        let reply = get(world.api, &format!("/v1/audit?{name}={injection}")).await;
        assert_eq!(
            (reply.status, reply.json()["records"].clone()),
            (200, json!([])),
            "{name}"
        );
    }
    for name in [
        "since", "until", "decision", "enforced", "port", "limit", "cursor", "type",
    ] {
        let reply = get(world.api, &format!("/v1/audit?{name}={injection}")).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_parameter"),
            "{name}"
        );
    }
    // There is a connection, and it is in no such namespace.
    let connection = Entry::Decision(crate::audit::sample::record());
    let stored = world.state.store.append(&[connection], None).await;
    stored.expect("stored");
    let reply = get(world.api, &format!("/v1/graph?namespace={injection}")).await;
    assert_eq!(reply.json()["edges"], json!([]));
    for path in ["/v1/replay", "/v1/recommend", "/v1/recommend/diff"] {
        assert_eq!(get(world.api, path).await.status, 200, "{path}");
        let reply = get(world.api, &format!("{path}?namespace={injection}")).await;
        let told = (reply.status, reply.code());
        assert_eq!(told, (404, "nothing_recorded".to_owned()), "{path}");
    }
    for path in [
        "/v1/audit?source=%ff",
        "/v1/audit?since=2026-01-01T00:00:00Z&until=x",
        "/v1/audit?cursor=t0",
    ] {
        assert_eq!(get(world.api, path).await.status, 400, "{path}");
    }
    world.intake.flush().await.expect("flushes");
    let records = get(world.api, "/v1/audit").await.json();
    assert_eq!(
        records["records"].as_array().map(Vec::len),
        Some(2),
        "the trail is as it was"
    );
}
