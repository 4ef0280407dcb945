// SPDX-License-Identifier: Apache-2.0
//! What a change means, and what is no change.

use super::{document, set};
use crate::policy::PolicySet;

fn policy(name: &str, rules: &str) -> String {
    format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata: {{name: {name}}}\nspec:\n  rules: [{rules}]\n---\n"
    )
}

fn rule(ports: &str) -> String {
    format!("{{from: {{spiffe: 'spiffe://hanzo.ai/a'}}, to: [{{spiffe: 'spiffe://hanzo.ai/b'{ports}}}]}}")
}

fn of(text: &str) -> PolicySet {
    set(&[document("p.yaml", text)])
}

/// What goes and comes, as lines.
fn lines(before: &str, after: &str) -> Vec<String> {
    let diff = of(after).diff_from(&of(before));
    let removed = diff.removed.iter().map(|statement| format!("- {statement}"));
    let added = diff.added.iter().map(|statement| format!("+ {statement}"));
    removed.chain(added).collect()
}

#[test]
fn ports_are_compared_as_sets() {
    let before = policy("p", &rule(", ports: [1, 2, '3-10']"));
    assert!(lines(&before, &policy("p", &rule(", ports: ['1-10']"))).is_empty());
    assert_eq!(
        lines(&before, &policy("p", &rule(", ports: ['2-5', 20]"))),
        [
            "- ALLOW spiffe://hanzo.ai/a -> spiffe://hanzo.ai/b TCP 1, 6-10",
            "+ ALLOW spiffe://hanzo.ai/a -> spiffe://hanzo.ai/b TCP 20"
        ]
    );
    assert_eq!(
        lines(&before, &policy("p", &rule("")))[0],
        "+ ALLOW spiffe://hanzo.ai/a -> spiffe://hanzo.ai/b TCP 11-65535"
    );
}

#[test]
fn proof_that_is_asked_for_is_another_statement() {
    let (plain, proven) = (rule(", ports: [1]"), rule(", ports: [1], requireProof: true"));
    assert_eq!(
        lines(&policy("p", &plain), &policy("p", &proven)),
        [
            "- ALLOW spiffe://hanzo.ai/a -> spiffe://hanzo.ai/b TCP 1",
            "+ ALLOW spiffe://hanzo.ai/a -> spiffe://hanzo.ai/b TCP 1, with proof"
        ]
    );
    let unasked = rule(", ports: [1], requireProof: false");
    assert!(
        of(&policy("p", &plain))
            .diff_from(&of(&policy("p", &unasked)))
            .is_empty()
    );
}

#[test]
fn a_rule_that_only_moves_is_no_change() {
    let (one, two) = (rule(", ports: [1]"), rule(", ports: [2]"));
    let before = policy("p", &format!("{one}, {two}")) + &policy("q", "");
    let moved = policy("p", &two) + &policy("q", &one);
    assert!(lines(&before, &moved).is_empty());
    let diff = of(&moved).diff_from(&of(&before));
    assert_eq!(diff.policies.len(), 2, "the documents did change");
    // What another policy says as well is not newly allowed by the second one.
    let twice = policy("p", &one) + &policy("r", &one);
    assert!(lines(&policy("p", &one), &twice).is_empty());
    assert!(of(&before).diff_from(&of(&before)).is_empty());
}

#[test]
fn defaults_raw_sockets_and_operators_are_part_of_it() {
    let before = policy("p", "");
    let after = policy(
        "p",
        "{from: {spiffe: 'spiffe://hanzo.ai/a'}, rawSockets: true, action: DENY}",
    )
    .replace("]\n---", "]\n  defaultAction: ALLOW\n---")
        + "apiVersion: zt.hanzo.ai/v1\nkind: OperatorAccessPolicy\nmetadata: {name: o}\nspec:\n  rules: \
           [{role: sre, targets: [{service: db, actions: [read]}], conditions: [{requireMFA: true}]}]\n";
    assert_eq!(
        lines(&before, &after),
        [
            "+ DENY spiffe://hanzo.ai/a raw sockets",
            "+ ALLOW role sre: read on db, with MFA"
        ]
    );
    let default = of(&after)
        .diff_from(&of(&before))
        .default_action
        .expect("changed");
    assert_eq!((default.from.as_str(), default.to.as_str()), ("DENY", "ALLOW"));
}
