// SPDX-License-Identifier: Apache-2.0
//! Policies for operators: what they say, and what is wrong with those that say nothing.

use super::{document, problems, set};
use crate::policy::{OperatorDecision, OperatorReason, OperatorRequest};

const POLICY: &str = "
apiVersion: zt.hanzo.ai/v1
kind: OperatorAccessPolicy
metadata: {name: ops}
spec:
  rules:
    - role: oncall
      targets: [{service: db, actions: [restart]}]
      conditions: [{requireMFA: true}, {requireIncident: false}]
    - role: oncall
      targets: [{service: '*', actions: [logs, restart]}]
      conditions: [{requireMFA: true, requireIncident: true}]
";

#[test]
fn the_first_rule_whose_conditions_hold_decides() {
    let set = set(&[document("ops.yaml", POLICY)]);
    let ask = |service, action, mfa, incident| {
        let request = OperatorRequest {
            role: "oncall",
            mfa,
            incident,
            service,
            action,
        };
        let OperatorDecision {
            allowed,
            reason,
            rule,
        } = set.evaluate_operator(&request);
        assert_eq!(allowed, reason == OperatorReason::Rule);
        (
            reason,
            rule.as_deref()
                .map_or(0, |rule| rule.as_bytes()[rule.len() - 1] - b'0'),
        )
    };
    assert_eq!(ask("db", "restart", true, None), (OperatorReason::Rule, 1));
    assert_eq!(
        ask("db", "restart", false, Some("I")),
        (OperatorReason::MfaRequired, 1)
    );
    assert_eq!(
        ask("web", "restart", true, None),
        (OperatorReason::IncidentRequired, 2)
    );
    assert_eq!(
        ask("web", "restart", true, Some("")),
        (OperatorReason::IncidentRequired, 2)
    );
    assert_eq!(ask("web", "restart", true, Some("I")), (OperatorReason::Rule, 2));
    assert_eq!(ask("db", "drop", true, Some("I")), (OperatorReason::NoRule, 0));
}

#[test]
fn every_mistake_has_its_place() {
    let only = |from: &str, to: &str| {
        let found = problems(&[document("o.yaml", &POLICY.replace(from, to))]);
        assert_eq!(found.len(), 1, "{found:#?}");
        found[0].to_string()
    };
    for (from, to, wanted) in [
        (
            "requireMFA: true}, ",
            "requireMfa: true}, ",
            "o.yaml:9:21: spec.rules[0].conditions[0].requireMfa: unknown field `requireMfa`: did you mean `requireMFA`?",
        ),
        (
            "requireIncident: false",
            "requireIncident: 1",
            "o.yaml:9:58: spec.rules[0].conditions[1].requireIncident: expected true or false, found the number 1",
        ),
        (
            "actions: [restart]",
            "actions: []",
            "o.yaml:8:40: spec.rules[0].targets[0].actions: the list is empty",
        ),
        (
            "actions: [restart]",
            "actions: [restart, restart]",
            "o.yaml:8:50: spec.rules[0].targets[0].actions[1]: `restart` stands here twice",
        ),
        (
            "actions: [restart]",
            "actions: ['*']",
            "o.yaml:8:41: spec.rules[0].targets[0].actions[0]: `*` stands for every service",
        ),
        (
            "service: db",
            "service: 'd*'",
            "o.yaml:8:27: spec.rules[0].targets[0].service: `*` stands",
        ),
        (
            "service: db, ",
            "",
            "o.yaml:8:17: spec.rules[0].targets[0].service: the field `service` is missing",
        ),
        (
            "    - role: oncall\n      targets: [{service: db",
            "    - role: 'on call'\n      targets: [{service: db",
            "o.yaml:7:13: spec.rules[0].role: is not a name",
        ),
        (
            "name: ops",
            "name: Ops",
            "o.yaml:4:18: metadata.name: `Ops` is not a name",
        ),
    ] {
        let said = only(from, to);
        assert!(said.starts_with(wanted), "{said}\n{wanted}");
    }
}

#[test]
fn names_are_unique_across_kinds() {
    let service =
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {name: ops}\nspec: {rules: []}\n";
    let found = problems(&[document("a.yaml", service), document("o.yaml", POLICY)]);
    assert_eq!(
        found[0].to_string(),
        "o.yaml:4:18: metadata.name: the name `ops` is taken by the policy in a.yaml:3"
    );
}

#[test]
fn digests_hold_operators_too() {
    let one = set(&[document("ops.yaml", POLICY)]);
    let same = set(&[document(
        "x.yaml",
        &POLICY.replace(", {requireIncident: false}", ""),
    )]);
    assert_eq!(one.digest(), same.digest(), "what requires nothing means nothing");
    let other = set(&[document("ops.yaml", &POLICY.replace("logs", "read"))]);
    assert_ne!(one.digest(), other.digest());
}
