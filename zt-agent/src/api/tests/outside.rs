// SPDX-License-Identifier: Apache-2.0
//! Questions about identities that nobody declared.

use super::*;

/// What nobody declared: an engine in a cluster knows the workloads of no node.
#[tokio::test]
async fn patterns_are_about_identities_that_nobody_declared() {
    let world = world().await;
    let rules = "
    - from: {spiffe: 'spiffe://hanzo.ai/hanzo-k8s/monitoring/*'}
      to: [{spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres, ports: [9187]}]
    - from: {spiffe: '*'}
      to: [{spiffe: spiffe://hanzo.ai/hanzo-k8s/hanzo/postgres, ports: [5432]}]
    - from: {spiffe: 'spiffe://hanzo.ai/hanzo-k8s/sandbox/*'}
      to: [{spiffe: '*', ports: [5432]}]
      action: DENY
";
    let text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: p}}\nspec:\n  rules:{rules}"
    );
    let documents = [Document {
        file: "p.yaml".to_owned(),
        text,
    }];
    let settings = Settings::default();
    let policies = crate::policy::parse(&documents, &settings).expect("valid policy");
    let table = crate::policy::compile(&policies, &BTreeSet::new(), &settings, 8).expect("compiles");
    world.snapshots.update(|snapshot| {
        snapshot.table = Arc::new(table);
        snapshot.policies = Arc::new(policies);
    });
    let of = |path: &str| format!("spiffe://hanzo.ai/hanzo-k8s/{path}");
    let cases = [
        // What a node's kernel says as soon as there is such a workload.
        (
            "monitoring/prometheus",
            "hanzo/postgres",
            9187,
            "ALLOW",
            "rule",
            json!("p/rule-1"),
        ),
        (
            "sandbox/job",
            "hanzo/postgres",
            5432,
            "DENY",
            "deny_rule",
            json!("p/rule-3"),
        ),
        (
            "sandbox/job",
            "other/thing",
            5432,
            "DENY",
            "deny_rule",
            json!("p/rule-3"),
        ),
        (
            "other/thing",
            "hanzo/postgres",
            5432,
            "ALLOW",
            "rule",
            json!("p/rule-2"),
        ),
        (
            "other/thing",
            "other/thing",
            1,
            "ALLOW",
            "rule",
            json!("builtin/self"),
        ),
        // What policy knows and does not allow, and what nobody has ever heard of.
        (
            "monitoring/prometheus",
            "hanzo/postgres",
            1,
            "DENY",
            "no_rule",
            json!(null),
        ),
        (
            "other/thing",
            "hanzo/postgres",
            1,
            "DENY",
            "unknown_source",
            json!(null),
        ),
        (
            "monitoring/prometheus",
            "other/thing",
            1,
            "DENY",
            "unknown_destination",
            json!(null),
        ),
    ];
    let requests: Vec<Value> = cases
        .iter()
        .map(|(source, destination, port, ..)| question(&of(source), &of(destination), *port))
        .collect();
    let answers = post(
        world.api,
        "/v1/evaluate",
        &json!({ "requests": requests }).to_string(),
    )
    .await;
    assert_eq!(answers.status, 200, "{}", answers.body);
    let answers = answers.json();
    for (index, (source, destination, port, decision, reason, rule)) in cases.into_iter().enumerate() {
        let answer = &answers["responses"][index];
        assert_eq!(
            (&answer["decision"], &answer["reason"], &answer["policy_matched"]),
            (&json!(decision), &json!(reason), &rule),
            "{source} -> {destination}:{port}"
        );
    }
    let trail = get(world.api, "/v1/audit?limit=100").await.json();
    let reasons: Vec<&Value> = trail["records"]
        .as_array()
        .expect("records")
        .iter()
        .map(|record| &record["reason"])
        .collect();
    assert!(reasons.contains(&&json!("unknown_source")), "{reasons:?}");
}
