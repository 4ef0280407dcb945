// SPDX-License-Identifier: Apache-2.0
//! Policies for operators: stored, listed, evaluated, recorded.

use super::*;

const PRODUCTION: &str = "
apiVersion: zt.hanzo.ai/v1
kind: OperatorAccessPolicy
metadata:
  name: production-access
spec:
  rules:
    - role: sre
      targets:
        - service: postgres
          actions: [read, write]
        - service: \"*\"
          actions: [logs, metrics]
    - role: oncall
      targets:
        - service: \"*\"
          actions: [read, write, restart]
      conditions:
        - requireMFA: true
        - requireIncident: true
";

/// What is asked, and what is answered: decision, reason and rule.
fn cases() -> Vec<(Value, &'static str, &'static str, Value)> {
    let ask = |operator: Value, service: &str, action: &str| json!({ "operator": operator, "target": { "service": service, "action": action } });
    vec![
        (
            ask(json!({"role": "sre"}), "postgres", "write"),
            "ALLOW",
            "rule",
            json!("production-access/rule-1"),
        ),
        (
            ask(json!({"role": "sre"}), "redis", "logs"),
            "ALLOW",
            "rule",
            json!("production-access/rule-1"),
        ),
        (
            ask(json!({"role": "sre"}), "redis", "write"),
            "DENY",
            "no_rule",
            json!(null),
        ),
        (
            ask(json!({"role": "sre", "mfa": true}), "postgres", "drop"),
            "DENY",
            "no_rule",
            json!(null),
        ),
        (
            ask(json!({"role": "intern"}), "postgres", "read"),
            "DENY",
            "no_rule",
            json!(null),
        ),
        (
            ask(json!({"role": "oncall"}), "chat", "restart"),
            "DENY",
            "mfa_required",
            json!("production-access/rule-2"),
        ),
        (
            ask(json!({"role": "oncall", "mfa": true}), "chat", "restart"),
            "DENY",
            "incident_required",
            json!("production-access/rule-2"),
        ),
        (
            ask(
                json!({"role": "oncall", "mfa": true, "incident": "INC-1"}),
                "chat",
                "restart",
            ),
            "ALLOW",
            "rule",
            json!("production-access/rule-2"),
        ),
        (
            ask(json!({"role": "oncall", "incident": "INC-1"}), "chat", "restart"),
            "DENY",
            "mfa_required",
            json!("production-access/rule-2"),
        ),
        (
            ask(json!({"role": "'; DROP TABLE records; --"}), "*", "read"),
            "DENY",
            "no_rule",
            json!(null),
        ),
    ]
}

#[tokio::test]
async fn operators_are_decided_on_and_recorded() {
    let world = world().await;
    world.start_node();
    let put = send(
        world.api,
        "PUT",
        "/v1/policies/production-access",
        YAML,
        PRODUCTION,
    )
    .await;
    assert_eq!(put.status, 200, "{}", put.body);
    let shown = get(world.api, "/v1/policies/production-access").await.json();
    assert_eq!(shown["kind"], json!("OperatorAccessPolicy"));
    assert_eq!(
        shown["document"]["spec"]["rules"][1]["conditions"],
        json!([{"requireIncident": true}, {"requireMFA": true}])
    );
    let cases = cases();
    for (body, decision, reason, rule) in &cases {
        let answer = post(world.api, "/v1/evaluate", &body.to_string()).await.json();
        assert_eq!(
            (&answer["decision"], &answer["reason"], &answer["policy_matched"]),
            (&json!(decision), &json!(reason), rule),
            "{body}"
        );
        assert_eq!(answer["revision"], json!(8));
    }
    let requests: Vec<_> = cases.iter().map(|(body, ..)| body.clone()).collect();
    let batch = json!({ "requests": [requests[0], question(IAM, POSTGRES, 5432)] });
    let answers = post(world.api, "/v1/evaluate", &batch.to_string()).await.json();
    assert_eq!(
        answers["responses"][0]["policy_matched"],
        json!("production-access/rule-1")
    );
    assert_eq!(
        answers["responses"][1]["policy_matched"],
        json!("hanzo-core-policy/rule-1")
    );

    world.intake.flush().await.expect("flushes");
    let records = get(world.api, "/v1/audit?source=operator:oncall&decision=allow")
        .await
        .json();
    let record = &records["records"][0];
    assert_eq!(record["destination"]["entity"], json!("service:chat:restart"));
    assert_eq!(
        (&record["mfa"], &record["incident"]),
        (&json!(true), &json!("INC-1")),
        "{record}"
    );
    let caller = record["caller"].as_str().expect("caller");
    assert!(caller.parse::<SocketAddr>().is_ok(), "the caller alone: {caller}");
    let denied = get(world.api, "/v1/audit?source=operator:oncall&decision=deny")
        .await
        .json();
    let brought = denied["records"].as_array().expect("records").iter();
    let brought: Vec<_> = brought
        .map(|record| (record["mfa"].clone(), record["incident"].clone()))
        .collect();
    assert_eq!(
        brought,
        [
            (json!(false), json!("INC-1")),
            (json!(true), json!(null)),
            (json!(false), json!(null))
        ]
    );
    let connects = get(world.api, "/v1/audit?port=5432").await.json();
    assert!(
        connects["records"][0].get("mfa").is_none(),
        "no operator's: {connects}"
    );
    let graph = get(world.api, "/v1/graph").await.json();
    assert_eq!(graph["edges"], json!([]), "what was only asked connects nobody");
}

#[tokio::test]
async fn requests_of_operators_that_make_no_sense() {
    let world = world().await;
    let target = json!({"service": "a", "action": "b"});
    for (body, field) in [
        (json!({"operator": {"role": "sre"}}), "target"),
        (json!({"target": target}), "operator"),
        (
            json!({"operator": {"role": ""}, "target": target}),
            "operator.role",
        ),
        (
            json!({"operator": {"role": "a\nb"}, "target": target}),
            "operator.role",
        ),
        (
            json!({"operator": {"role": "x".repeat(129)}, "target": target}),
            "operator.role",
        ),
        (
            json!({"operator": {"role": "sre", "incident": ""}, "target": target}),
            "operator.incident",
        ),
        (
            json!({"operator": {"role": "sre"}, "target": target, "source": {"spiffe_id": IAM}}),
            "operator",
        ),
        (
            json!({"requests": [{"operator": {"role": "sre"}, "target": {"service": "", "action": "b"}}]}),
            "requests[0].target.service",
        ),
    ] {
        let reply = post(world.api, "/v1/evaluate", &body.to_string()).await;
        assert_eq!(
            (reply.status, reply.code().as_str()),
            (400, "invalid_body"),
            "{body}"
        );
        assert_eq!(reply.json()["errors"][0]["field"], json!(field), "{body}");
    }
    let unknown = json!({"operator": {"role": "sre", "admin": true}, "target": target});
    assert_eq!(
        post(world.api, "/v1/evaluate", &unknown.to_string()).await.code(),
        "invalid_body"
    );
    assert!(
        get(world.api, "/v1/audit").await.json()["records"]
            .as_array()
            .is_some_and(Vec::is_empty)
    );
}
