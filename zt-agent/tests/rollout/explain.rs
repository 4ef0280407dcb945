// SPDX-License-Identifier: Apache-2.0
//! `policy explain`.

use serde_json::json;

use super::program::{directory, id, policy, rule, shown, zt_agent};

fn explain(rules: &str, flow: [&str; 3], more: &[&str]) -> super::program::Ran {
    let directory = directory(&[("core.yaml", &policy("core", rules))]);
    let [from, to, port] = flow;
    let (from, to) = (id(from), id(to));
    let arguments = [
        "policy",
        "explain",
        shown(directory.path()),
        "--from",
        &from,
        "--to",
        &to,
        "--port",
        port,
    ];
    zt_agent(&[&arguments, more].concat())
}

#[test]
fn every_rule_about_the_flow_is_shown_and_the_one_that_decides() {
    let deny = format!(
        "    - from: {{spiffe: \"*\"}}\n      to: [{{spiffe: \"{}\"}}]\n      action: DENY\n",
        id("hanzo/db")
    );
    let rules = rule("hanzo/*", "hanzo/db", "1") + &deny + &rule("hanzo/a", "hanzo/db", "'1-9'");
    let ran = explain(&rules, ["hanzo/a", "hanzo/db", "1"], &["-o", "json"]);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    let answer = ran.json();
    assert_eq!(
        (&answer["decision"], &answer["reason"]),
        (&json!("DENY"), &json!("deny_rule"))
    );
    let rules = answer["rules"].as_array().expect("rules");
    let said: Vec<_> = rules
        .iter()
        .map(|rule| {
            (
                rule["rule"].as_str().expect("a name"),
                rule["decides"] == json!(true),
                rule["line"].clone(),
            )
        })
        .collect();
    assert_eq!(
        said,
        [
            ("core/rule-2", true, json!(8)),
            ("core/rule-1", false, json!(6)),
            ("core/rule-3", false, json!(11)),
        ]
    );
}

#[test]
fn a_rule_that_nearly_applies_says_what_it_lacks() {
    let rules = rule("hanzo/a", "hanzo/db", "1")
        + &rule("hanzo/b", "hanzo/db", "2")
        + &rule("hanzo/b", "hanzo/c", "3");
    let ran = explain(&rules, ["hanzo/a", "hanzo/db", "2"], &[]);
    let text = ran.stdout();
    assert!(
        text.starts_with(&format!("DENY  {} -> {} TCP 2\n", id("hanzo/a"), id("hanzo/db"))),
        "{text}"
    );
    let line = |start: &str| {
        let found = text.lines().find(|line| line.starts_with(start));
        found
            .unwrap_or_else(|| panic!("{start} in {text}"))
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert!(
        line("core/rule-1").starts_with("core/rule-1 ALLOW port "),
        "{text}"
    );
    assert!(
        line("core/rule-2").starts_with("core/rule-2 ALLOW source "),
        "{text}"
    );
    assert!(!text.contains("core/rule-3"), "{text}");
    assert!(line("6 defaultAction").contains("DENY decides"), "{text}");
    let all = explain(&rules, ["hanzo/a", "hanzo/db", "2"], &["--all"]);
    assert!(
        all.stdout().contains("source, destination, port"),
        "{}",
        all.stdout()
    );
}

#[test]
fn bad_questions_are_refused() {
    let directory = directory(&[("core.yaml", &policy("core", &rule("hanzo/a", "hanzo/b", "1")))]);
    let path = shown(directory.path());
    let network = [
        "policy",
        "explain",
        path,
        "--from",
        "host",
        "--to",
        "cidr:10.0.0.0/8",
        "--port",
        "1",
    ];
    let ran = zt_agent(&network);
    assert_eq!(ran.code(), 1);
    assert!(
        ran.stderr().contains("no rule names cidr:10.0.0.0/8"),
        "{}",
        ran.stderr()
    );
    let ran = zt_agent(&[
        "policy", "explain", path, "--from", "hots", "--to", "world", "--port", "1",
    ]);
    assert_eq!(ran.code(), 2);
    assert!(ran.stderr().contains("did you mean `host`?"), "{}", ran.stderr());
}
