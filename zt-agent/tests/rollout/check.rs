// SPDX-License-Identifier: Apache-2.0
//! `policy check`, of what is no policy for services.

use serde_json::Value;

use super::program::{directory, policy, rule, shown, zt_agent};

const ROLLOUT: &str = "
apiVersion: zt.hanzo.ai/v1
kind: EnforcementRollout
metadata: {name: hanzo}
spec:
  stage: few
  stages:
    - {name: few, identities: [spiffe://hanzo.ai/k8s/hanzo/iam]}
    - {name: all, requirePolicy: true}
";

const OPERATORS: &str = "---
apiVersion: zt.hanzo.ai/v1
kind: OperatorAccessPolicy
metadata: {name: operators}
spec:
  rules:
    - role: sre
      targets: [{service: postgres, actions: [read]}]
    - role: oncall
      targets: [{service: '*', actions: [restart]}]
";

const COUNTS: [&str; 6] = [
    "policies",
    "rules",
    "operator_policies",
    "operator_rules",
    "rollouts",
    "stages",
];

fn check(text: &str) -> (String, [Option<u64>; 6]) {
    let directory = directory(&[("all.yaml", text)]);
    let path = shown(directory.path());
    let ran = zt_agent(&["policy", "check", path]);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    let summary: Value = zt_agent(&["policy", "check", path, "-o", "json"]).json();
    (ran.stdout(), COUNTS.map(|of| summary[of].as_u64()))
}

#[test]
fn rollouts_and_policies_of_operators_are_summed_up_too() {
    let (text, counts) = check(ROLLOUT);
    assert!(
        text.starts_with("policies  0\nrules     0\nrollout   hanzo: 1 of 2 stages reached\nentries   "),
        "{text}"
    );
    assert_eq!(counts, [0, 0, 0, 0, 1, 2].map(Some));
    let (text, counts) = check(&format!("{ROLLOUT}{OPERATORS}"));
    for line in [
        "operator policies  1\n",
        "operator rules     2\n",
        "rollout            hanzo: 1 of 2 stages reached\n",
    ] {
        assert!(text.contains(line), "{text}");
    }
    assert_eq!(counts, [0, 0, 1, 2, 1, 2].map(Some));
    let (text, counts) = check(&policy("core", &rule("hanzo/iam", "hanzo/db", "80")));
    assert!(!text.contains("rollout") && !text.contains("operator"), "{text}");
    assert_eq!(counts, [1, 1, 0, 0, 0, 0].map(Some));
}
