// SPDX-License-Identifier: Apache-2.0
//! Bad documents: each problem has its place, its field, and what to do.

use std::fmt::Write;

use proptest::prelude::*;

use super::{document, policy, problems, set};
use crate::policy::{Action, Problem, Settings, parse};

const HEAD: &str =
    "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: p\nspec:\n  rules:\n";
/// A rule that is in order; its first line is line 7 after [`HEAD`].
const RULE: &str =
    "    - from:\n        spiffe: spiffe://hanzo.ai/a\n      to:\n        - spiffe: spiffe://hanzo.ai/b\n";

/// The one problem of a file, as the user sees it.
fn only(text: &str) -> String {
    let found = problems(&[document("p.yaml", text)]);
    assert_eq!(found.len(), 1, "{found:#?}");
    found[0].to_string()
}

/// The one problem of a rule list.
fn rule(rules: &str) -> String {
    only(&format!("{HEAD}{rules}"))
}

/// The one problem of a port list, which stands in line 11.
fn port(ports: &str) -> String {
    rule(&format!("{RULE}          ports: {ports}\n"))
}

#[track_caller]
fn says(problem: &str, start: &str, part: &str) {
    assert!(problem.starts_with(start) && problem.contains(part), "{problem}");
}

#[test]
fn malformed_yaml() {
    says(
        &only("apiVersion: zt.hanzo.ai/v1\nkind: [\n"),
        "p.yaml:2:7: malformed YAML: ",
        "",
    );
    says(&only("a: b: c\n"), "p.yaml:1:", "malformed YAML");
    says(&only("x:\n\ty: 1\n"), "p.yaml:2:", "malformed YAML");
    says(&only("a: *nowhere\n"), "p.yaml:1:4: malformed YAML", "");
}

#[test]
fn unknown_and_misspelt_fields_name_the_nearest() {
    says(
        &rule(
            &RULE
                .replace("from:", "form:")
                .replace("      to", "      from: {entity: host}\n      to"),
        ),
        "p.yaml:7:7: spec.rules[0].form: unknown field `form`: did you mean `from`?",
        "",
    );
    says(
        &port("[1]\n          requireproof: true"),
        "p.yaml:12:11: spec.rules[0].to[0].requireproof: unknown field",
        "did you mean `requireProof`?",
    );
    says(
        &port("[1]\n          handshake: off"),
        "p.yaml:12:11: spec.rules[0].to[0].handshake: unknown field",
        "",
    );
    says(
        &rule(&format!("{RULE}  defaultaction: DENY\n")),
        "p.yaml:11:3: spec.defaultaction: unknown",
        "did you mean `defaultAction`?",
    );
    says(
        &rule(&RULE.replace("- spiffe", "- spife")),
        "p.yaml:10:11",
        "spec.rules[0].to[0]",
    );
    says(
        &only(&format!("{HEAD}{RULE}extra: 1\n")),
        "p.yaml:11:1: extra: unknown field `extra`",
        "",
    );
    says(
        &only(&format!("{HEAD}{RULE}").replace("  name: p", "  name: p\n  labels: {}")),
        "p.yaml:5:3: metadata.labels",
        "",
    );
}

#[test]
fn another_api_version_or_kind() {
    let text = format!("{HEAD}{RULE}");
    says(
        &only(&text.replace("ai/v1", "ai/v2")),
        "p.yaml:1:13: apiVersion: apiVersion `zt.hanzo.ai/v2` is not supported",
        "did you mean `zt.hanzo.ai/v1`?",
    );
    says(
        &only(&text.replace("kind: ServiceAccessPolicy", "kind: OperatorAccesPolicy")),
        "p.yaml:2:7: kind: kind `OperatorAccesPolicy` is not supported",
        "did you mean `OperatorAccessPolicy`?",
    );
    says(
        &only("apiVersion: zt.hanzo.ai/v1\nkind: PolicyTest\nspec: {whatever: 1}\n"),
        "p.yaml:2:7: kind: ",
        "",
    );
    says(
        &only(&text.replace("kind: ServiceAccessPolicy\n", "")),
        "p.yaml:1:1: kind: the field `kind` is missing",
        "",
    );
    says(
        &only(&text.replace("kind: ServiceAccessPolicy", "kind: 3")),
        "p.yaml:2:7: kind: expected a text, found the number 3",
        "quotes",
    );
}

#[test]
fn identities() {
    let with = |id: &str| rule(&RULE.replace("spiffe://hanzo.ai/b", id));
    let place = "p.yaml:10:19: spec.rules[0].to[0].spiffe: ";
    says(&with("hanzo.ai/b"), place, "must start with `spiffe://`");
    says(
        &with("spiffe://lux.ai/b"),
        place,
        "is of trust domain `lux.ai`, this node's is `hanzo.ai`",
    );
    says(&with("spiffe://lux.ai/*"), place, "is of trust domain `lux.ai`");
    says(&with("spiffe://hanzo.ai/b/"), place, "empty segment");
    says(
        &with("spiffe://hanzo.ai"),
        place,
        "names a trust domain, not a workload",
    );
    says(&with("spiffe://hanzo.ai/b*"), place, "whole path segment");
    says(
        &with(&format!("spiffe://hanzo.ai/{}", "b".repeat(2048))),
        place,
        "at most 2048 bytes, this one has 2066",
    );
    says(&with("7"), place, "expected a text, found the number 7");
    says(
        &with(""),
        "p.yaml:10:11: spec.rules[0].to[0]: names nobody",
        "spiffe, entity, cidr",
    );
}

#[test]
fn entities_networks_and_choices() {
    let with = |target: &str| rule(&RULE.replace("spiffe: spiffe://hanzo.ai/b", target));
    says(
        &with("entity: wrld"),
        "p.yaml:10:19: spec.rules[0].to[0].entity: ",
        "did you mean `world`?",
    );
    says(
        &with("cidr: 10.0.0.1/8"),
        "p.yaml:10:17: spec.rules[0].to[0].cidr: ",
        "did you mean `10.0.0.0/8`?",
    );
    says(
        &with("cidr: 10.0.0.1"),
        "p.yaml:10:17: ",
        "did you mean `10.0.0.1/32`?",
    );
    says(&with("cidr: 10.0.0.0/40"), "p.yaml:10:17: ", "is not a CIDR");
    says(
        &with("entity: host\n          cidr: 10.0.0.0/8"),
        "p.yaml:11:17: spec.rules[0].to[0].cidr: ",
        "exclude each other",
    );
    says(
        &with("entity: host\n          protocol: SCTP"),
        "p.yaml:11:21: spec.rules[0].to[0].protocol: ",
        "TCP, UDP",
    );
    says(
        &with("entity: host\n          protocol: udp"),
        "p.yaml:11:21: ",
        "did you mean `UDP`?",
    );
    says(
        &rule(&format!("{RULE}      action: REJECT\n")),
        "p.yaml:11:15: spec.rules[0].action: ",
        "ALLOW, DENY",
    );
    says(
        &rule(&format!("{RULE}      rawSockets: maybe\n")),
        "p.yaml:11:19: spec.rules[0].rawSockets: ",
        "true or false",
    );
    says(
        &rule("    - {from: {entity: host}, rawSockets: true}"),
        "p.yaml:7:14: spec.rules[0].from: ",
        "only a workload",
    );
}

#[test]
fn proof_is_asked_of_those_who_can_give_it() {
    let a = "spiffe: 'spiffe://hanzo.ai/a'";
    for (from, to, more, hint) in [
        ("entity: host", a, "", "the rule is `from` somebody else"),
        ("cidr: 10.0.0.0/8", a, "", "the rule is `from` somebody else"),
        (a, "entity: world", "", "this target is none"),
        (a, "cidr: 10.0.0.0/8", "", "this target is none"),
        (a, a, ", action: DENY", "leave it out"),
    ] {
        let text = format!("    - {{from: {{{from}}}, to: [{{{to}, requireProof: true}}]{more}}}");
        let column = text.find("true").expect("in it") + 1;
        let place = format!("p.yaml:7:{column}: spec.rules[0].to[0].requireProof: ");
        says(&rule(&text), &place, hint);
    }
    says(
        &port("[1]\n          requireProof: 1"),
        "p.yaml:12:25: spec.rules[0].to[0].requireProof: ",
        "true or false",
    );
    // Without proof being asked for, nothing of that is wrong.
    let text = "    - {from: {entity: host}, to: [{spiffe: '*', requireProof: false}], action: DENY}";
    assert_eq!(set(&[policy("p", text)]).policies().len(), 1);
}

#[test]
fn ports() {
    let place = "p.yaml:11:19: spec.rules[0].to[0].ports[0]: ";
    says(&port("[0]"), place, "0 is not a port: ports go from 1 to 65535");
    says(&port("[65536]"), place, "65536 is not a port");
    says(&port("[-1]"), place, "-1 is not a port");
    says(&port("[1.5]"), place, "found the number 1.5");
    says(&port("[!p 1]"), "p.yaml:11:22: ", "the tag `!p`");
    says(&port("[http]"), place, "\"http\" is not a port");
    says(&port("[true]"), place, "found the boolean `true`");
    says(
        &port("[8100-8000]"),
        place,
        "the range is reversed: write \"8000-8100\"",
    );
    says(&port("[0-5]"), place, "0 is not a port");
    says(&port("[99999999999999999999999999]"), place, "expected a port");
    says(
        &port("[1, 1-70000]"),
        "p.yaml:11:22: spec.rules[0].to[0].ports[1]: ",
        "70000 is not a port",
    );
    says(
        &port("[]"),
        "p.yaml:11:18: spec.rules[0].to[0].ports: ",
        "leave `ports` out",
    );
    says(
        &port("5432"),
        "p.yaml:11:18: spec.rules[0].to[0].ports: ",
        "expected a list, found the number 5432",
    );
}

#[test]
fn names() {
    for name in ["Upper", "-a", "a-", "a_b", "a/b", "a.b", &"a".repeat(64)] {
        let text = format!("{HEAD}{RULE}").replace("name: p", &format!("name: {name}"));
        says(&only(&text), "p.yaml:4:9: metadata.name: ", "is not a name");
    }
    says(
        &only(&format!("{HEAD}{RULE}").replace("name: p", "name: builtin")),
        "p.yaml:4:9: metadata.name: ",
        "choose another",
    );
    says(
        &only(&format!("{HEAD}{RULE}").replace("name: p", "name: 12")),
        "p.yaml:4:9: metadata.name: ",
        "quotes",
    );
    says(
        &only(&format!("{HEAD}{RULE}").replace("  name: p", "  description: x")),
        "p.yaml:4:3: metadata.name: the field `name` is missing",
        "",
    );
}

#[test]
fn duplicate_keys() {
    says(
        &rule(&format!("{RULE}      to: []\n")),
        "p.yaml:11:7: spec.rules[0].to: ",
        "twice: first in line 9",
    );
    says(&only(&format!("kind: x\n{HEAD}{RULE}")), "p.yaml:1:7: kind: ", "");
}

#[test]
fn nothing_and_next_to_nothing() {
    assert_eq!(problems(&[])[0].to_string(), "no policy documents");
    let empty = [document("a.yaml", "# nothing\n---\n"), document("b.yaml", "")];
    assert_eq!(
        problems(&empty)[0].to_string(),
        "no policy documents in a.yaml, b.yaml"
    );
    says(
        &only("just text\n"),
        "p.yaml:1:1: expected a policy document, found a text",
        "",
    );
    says(
        &only("- a\n"),
        "p.yaml:1:1: expected a policy document, found a list",
        "",
    );
    says(
        &rule("    - from:\n      to: [{entity: host}]\n"),
        "p.yaml:7:7: spec.rules[0].from: ",
        "is missing",
    );
    says(
        &only(HEAD),
        "p.yaml:6:3: spec.rules: the field `rules` is missing",
        "",
    );
    says(
        &rule("    - from: {entity: host}\n      to: []\n"),
        "p.yaml:8:11: spec.rules[0].to: ",
        "the list is empty",
    );
    let legal = set(&[document("p.yaml", &HEAD.replace("rules:", "rules: []"))]);
    assert_eq!(legal.policies().len(), 1);
    assert_eq!(legal.default_action(), Action::Deny);
}

#[test]
fn every_problem_of_every_file_at_once() {
    let bad = format!(
        "{HEAD}    - from: {{spiffe: nobody}}\n      to: [{{entity: moon, ports: [0, 5-3]}}]\n---\n{HEAD}{RULE}      acton: DENY\n"
    );
    let found = problems(&[
        document("a.yaml", &bad),
        document("b.yaml", "{"),
        policy("c", "    - {}"),
    ]);
    let places: Vec<String> = found
        .iter()
        .map(|p| format!("{}:{}:{} {}", p.file, p.line, p.column, p.field))
        .collect();
    assert_eq!(
        places,
        [
            "a.yaml:7:22 spec.rules[0].from.spiffe",
            "a.yaml:8:21 spec.rules[0].to[0].entity",
            "a.yaml:8:35 spec.rules[0].to[0].ports[0]",
            "a.yaml:8:38 spec.rules[0].to[0].ports[1]",
            "a.yaml:20:7 spec.rules[0].acton",
            "b.yaml:1:1 ",
            "c.yaml:7:7 spec.rules[0].from",
            "c.yaml:7:7 spec.rules[0].to",
        ]
    );
    let json = serde_json::to_value(&found[0]).expect("serializable");
    assert_eq!(json["line"], 7);
}

#[test]
fn aliases_are_bounded() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let previous = format!("*a{}, ", n - 1).repeat(10);
        writeln!(bomb, "a{n}: &a{n} [{}]", previous.trim_end_matches(", "))
            .expect("a String takes everything");
    }
    let start = std::time::Instant::now();
    says(&only(&bomb), "p.yaml:", "malformed YAML");
    says(&only(&"[".repeat(100_000)), "p.yaml:1:", "malformed YAML");
    says(&only(&"{a: ".repeat(40)), "p.yaml:1:", "malformed YAML");
    assert!(start.elapsed().as_secs() < 5);
    let shared = "    - from: {spiffe: &iam spiffe://hanzo.ai/iam}\n      to: [{spiffe: *iam, ports: [1]}]";
    assert_eq!(set(&[policy("p", shared)]).identities().len(), 1);
}

proptest! {
    #[test]
    fn any_text_is_read_without_a_panic(text in "[-a-z:{}\\[\\]'\"&*!|>#%@, \\n\\t0-9]{0,80}") {
        let _ = parse(&[document("x.yaml", &text)], &Settings::default());
    }

    #[test]
    fn a_damaged_policy_is_read_without_a_panic(at in 0usize..1000, with in "[-a-z:{}\\[\\]'\"&*! \\n0-9]{0,3}") {
        let mut text = format!("{HEAD}{RULE}{RULE}");
        let at = at % text.len();
        text.replace_range(at..=at, &with);
        let problems: Vec<Problem> = parse(&[document("x.yaml", &text)], &Settings::default()).err().unwrap_or_default();
        prop_assert!(problems.iter().all(|problem| !problem.message.is_empty()));
    }
}
