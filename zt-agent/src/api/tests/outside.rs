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
    // Source, destination, port, and the answer: decision, reason and rule.
    let cases = "
        monitoring/prometheus hanzo/postgres 9187 ALLOW rule p/rule-1
        sandbox/job hanzo/postgres 5432 DENY deny_rule p/rule-3
        sandbox/job other/thing 5432 DENY deny_rule p/rule-3
        other/thing hanzo/postgres 5432 ALLOW rule p/rule-2
        other/thing other/thing 1 ALLOW rule builtin/self
        monitoring/prometheus hanzo/postgres 1 DENY no_rule -
        other/thing hanzo/postgres 1 DENY unknown_source -
        monitoring/prometheus other/thing 1 DENY unknown_destination -
    ";
    let cases: Vec<[&str; 6]> = cases
        .lines()
        .filter_map(|line| line.split_whitespace().collect::<Vec<_>>().try_into().ok())
        .collect();
    assert_eq!(cases.len(), 8);
    let requests: Vec<Value> = cases
        .iter()
        .map(|[source, destination, port, ..]| {
            question(&of(source), &of(destination), port.parse().expect("port"))
        })
        .collect();
    let answers = post(
        world.api,
        "/v1/evaluate",
        &json!({ "requests": requests }).to_string(),
    )
    .await;
    assert_eq!(answers.status, 200, "{}", answers.body);
    let answers = answers.json();
    for (index, case) in cases.iter().enumerate() {
        let answer = &answers["responses"][index];
        let said =
            ["decision", "reason", "policy_matched"].map(|field| answer[field].as_str().unwrap_or("-"));
        assert_eq!(said, case[3..], "{case:?}");
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
