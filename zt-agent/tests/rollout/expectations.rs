// SPDX-License-Identifier: Apache-2.0
//! `policy test`.

use serde_json::json;

use super::program::{directory, id, policy, rule, shown, zt_agent};

fn tests(items: &str) -> String {
    format!("apiVersion: zt.hanzo.ai/v1\nkind: PolicyTest\nmetadata: {{name: t}}\nspec:\n  tests:\n{items}")
}

const OPERATORS: &str = "apiVersion: zt.hanzo.ai/v1\nkind: OperatorAccessPolicy\nmetadata: {name: ops}\nspec:\n  rules:\n    \
    - role: sre\n      targets: [{service: db, actions: [read]}]\n      conditions: [{requireMFA: true}]\n";

#[test]
fn every_combination_is_a_case() {
    let core = policy("core", &(rule("x/a", "x/db", "1") + &rule("x/b", "x/db", "1, 2")));
    let expected = tests(&format!(
        "    - {{name: both, from: [{a}, {b}], to: {db}, ports: [1], expect: ALLOW}}\n    \
         - {{from: {a}, to: {db}, ports: [1, 2], expect: ALLOW, rule: core/rule-1}}\n    \
         - {{from: [host, 10.0.0.1, world], to: {db}, ports: [9], protocol: UDP, expect: DENY}}\n    \
         - {{operator: {{role: sre, mfa: true}}, service: db, action: read, expect: ALLOW, rule: ops/rule-1}}\n",
        a = id("x/a"),
        b = id("x/b"),
        db = id("x/db"),
    ));
    let files = [
        ("core.yaml", core.as_str()),
        ("ops.yaml", OPERATORS),
        ("tests/core.yaml", &expected),
    ];
    let directory = directory(&files);
    let ran = zt_agent(&["policy", "test", shown(directory.path()), "-o", "json"]);
    assert_eq!(ran.code(), 1, "{}", ran.stderr());
    let answer = ran.json();
    // `host` reaches every workload: the built-in rule is no exception here.
    assert_eq!((&answer["passed"], &answer["failed"]), (&json!(6), &json!(2)));
    let failed: Vec<_> = answer["cases"]
        .as_array()
        .expect("cases")
        .iter()
        .filter(|case| case["passed"] == json!(false))
        .map(|case| {
            (
                case["name"].as_str().expect("a name"),
                case["line"].clone(),
                case["found"].clone(),
            )
        })
        .collect();
    assert_eq!(
        failed,
        [
            ("t/test-2", json!(7), json!("DENY")),
            ("t/test-3", json!(8), json!("ALLOW"))
        ]
    );
    assert_eq!(answer["untested_rules"], json!([]));
    let text = zt_agent(&["policy", "test", shown(directory.path())]).stdout();
    assert!(text.ends_with("6 as expected, 2 not\n"), "{text}");
    assert!(text.contains("tests/core.yaml:7"), "{text}");
}

#[test]
fn each_port_of_a_range_is_a_case() {
    let core = policy("core", &rule("x/a", "x/db", "80, \"8000-8002\""));
    let of = |ports: &str, expect: &str| {
        format!(
            "    - {{from: {}, to: {}, ports: [{ports}], expect: {expect}}}\n",
            id("x/a"),
            id("x/db")
        )
    };
    let ran = |items: &str| {
        let directory = directory(&[("core.yaml", &core), ("tests/t.yaml", &tests(items))]);
        zt_agent(&["policy", "test", shown(directory.path()), "-o", "json"])
    };
    let held = ran(&(of("80, \"8000-8002\"", "ALLOW") + &of("\"1-79\", \"8003-65535\"", "DENY")));
    assert_eq!(held.code(), 0, "{}", held.stdout());
    assert_eq!(held.json()["passed"], json!(4 + 79 + 57_533));
    let one_more = ran(&of("\"8000-8003\"", "ALLOW"));
    let answer = one_more.json();
    assert_eq!(
        (one_more.code(), &answer["passed"], &answer["failed"]),
        (1, &json!(3), &json!(1)),
        "{answer}"
    );
    let cases = answer["cases"].as_array().expect("cases");
    let failed: Vec<_> = cases
        .iter()
        .filter(|case| case["passed"] == json!(false))
        .collect();
    assert!(
        failed.len() == 1
            && failed[0]["asked"]
                .as_str()
                .is_some_and(|asked| asked.ends_with("TCP 8003")),
        "{failed:?}"
    );

    // However they are written, a test has no more cases than it may.
    let all = of("\"1-65535\", \"1-65535\"", "DENY");
    let reversed = of("\"9-8\"", "DENY");
    for (ports, wrong) in [
        (
            &all,
            "131070 cases, more than the 100000 that one test may have: split it",
        ),
        (&reversed, "the range is reversed: write \"8-9\""),
    ] {
        let refused = ran(ports);
        assert_eq!(refused.code(), 64, "{}", refused.stdout());
        assert!(refused.stderr().contains(wrong), "{}", refused.stderr());
    }
}

#[test]
fn rules_that_no_case_is_about_are_named() {
    let core = policy("core", &(rule("x/a", "x/db", "1") + &rule("x/b", "x/db", "1, 2")));
    let expected = tests(&format!(
        "    - {{from: {}, to: {}, ports: [1], expect: ALLOW}}\n",
        id("x/a"),
        id("x/db")
    ));
    let directory = directory(&[
        ("core.yaml", &core),
        ("t.yml.txt", ""),
        ("tests/t.yml", &expected),
    ]);
    let ran = zt_agent(&["policy", "test", shown(directory.path())]);
    assert_eq!(
        (ran.code(), ran.stdout().as_str()),
        (
            0,
            "1 as expected, 0 not\nrules that decide no case: core/rule-2\n"
        )
    );
}

#[test]
fn every_mistake_in_a_test_is_named_with_its_place() {
    let core = policy("core", &rule("x/a", "x/db", "1"));
    let bad = tests(
        "    - {from: hots, to: [], ports: [0, x], expect: MAYBE}\n    \
         - {from: spiffe://other.org/a, to: world, ports: [1], protocol: SCTP, expct: DENY}\n    \
         - {operator: {role: sre}, from: host, service: db, action: read, expect: DENY}\n",
    );
    let directory = directory(&[("core.yaml", &core), ("tests/t.yaml", &bad)]);
    let ran = zt_agent(&["policy", "test", shown(directory.path())]);
    assert_eq!(ran.code(), 64, "{}", ran.stdout());
    let text = ran.stderr();
    for wanted in [
        "t.yaml:6:14: spec.tests[0].from: `hots`: not a party; did you mean `host`?",
        "spec.tests[0].to: an empty list tests nothing",
        "spec.tests[0].ports[0]: 0 is not a port: ports go from 1 to 65535",
        "spec.tests[0].ports[1]: \"x\" is not a port: write a number or a range such as \"8000-8100\"",
        "spec.tests[0].expect: `MAYBE` is not one of ALLOW, ALLOW_WITH_PROOF, DENY",
        "spec.tests[1].from: `spiffe://other.org/a` is of trust domain `other.org`",
        "spec.tests[1].protocol: `SCTP` is not one of TCP, UDP",
        "spec.tests[1].expct: unknown field `expct`: did you mean `expect`?",
        "spec.tests[2].from: `from` has no meaning beside `operator`",
    ] {
        assert!(text.contains(wanted), "{wanted} in\n{text}");
    }
    let none = zt_agent(&[
        "policy",
        "test",
        shown(directory.path()),
        "--tests",
        "/nonexistent",
    ]);
    assert_eq!(none.code(), 64);
    let empty = tests("    []\n");
    std::fs::write(directory.path().join("tests/t.yaml"), empty).expect("write");
    let ran = zt_agent(&["policy", "test", shown(directory.path())]);
    assert_eq!(
        (ran.code(), ran.stderr().contains("has no tests")),
        (64, true),
        "{}",
        ran.stderr()
    );
}
