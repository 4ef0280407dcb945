// SPDX-License-Identifier: Apache-2.0
//! `policy diff`.

use serde_json::{Value, json};

use super::program::{directory, id, in_force, policy, rule, shown, zt_agent};

fn of(rules: &str) -> tempfile::TempDir {
    directory(&[("core.yaml", &policy("core", rules))])
}

#[test]
fn what_flows_are_judged_differently_is_listed() {
    let old =
        of(&(rule("hanzo/iam", "hanzo/postgres", "5432, 5433") + &rule("hanzo/web", "hanzo/iam", "80")));
    let new = of(&(rule("hanzo/iam", "hanzo/postgres", "5432") + &rule("*/metrics", "hanzo/iam", "9090")));
    let paths = [shown(old.path()), shown(new.path())];
    let ran = zt_agent(&["policy", "diff", paths[0], paths[1], "-o", "json", "--fail"]);
    assert_eq!(ran.code(), 1, "{}", ran.stderr());
    let flows: Vec<(String, String, Value, String, Value)> = ran.json()["flows"]
        .as_array()
        .expect("flows")
        .iter()
        .map(|flow| {
            let text = |field: &str| flow[field].as_str().expect("a text").to_owned();
            (
                text("source"),
                text("destination"),
                flow["ports"].clone(),
                text("after"),
                flow["rule_after"].clone(),
            )
        })
        .collect();
    assert_eq!(
        flows,
        [
            (
                id("*/metrics"),
                id("hanzo/iam"),
                json!(["9090"]),
                "ALLOW".to_owned(),
                json!("core/rule-2")
            ),
            (
                id("hanzo/iam"),
                id("hanzo/postgres"),
                json!(["5433"]),
                "DENY".to_owned(),
                Value::Null
            ),
            (
                id("hanzo/web"),
                id("hanzo/iam"),
                json!(["80"]),
                "DENY".to_owned(),
                Value::Null
            ),
        ]
    );
    let text = zt_agent(&["policy", "diff", paths[0], paths[1]]);
    assert_eq!(text.code(), 0);
    assert!(
        text.stdout()
            .contains("newly denied   spiffe://hanzo.ai/k8s/hanzo/iam"),
        "{}",
        text.stdout()
    );
    assert!(text.stdout().contains("was core/rule-1"), "{}", text.stdout());
    assert!(
        text.stdout().ends_with("ServiceAccessPolicy core: changed\n"),
        "{}",
        text.stdout()
    );
}

#[test]
fn other_words_for_the_same_are_no_difference() {
    let old =
        of(&(rule("hanzo/iam", "hanzo/postgres", "5432, 5433") + &rule("hanzo/web", "hanzo/iam", "80")));
    let new = directory(&[
        ("a.yaml", &policy("a", &rule("hanzo/web", "hanzo/iam", "80"))),
        (
            "b.yaml",
            &policy("b", &rule("hanzo/iam", "hanzo/postgres", "'5432-5433'")),
        ),
    ]);
    let ran = zt_agent(&["policy", "diff", shown(old.path()), shown(new.path()), "--fail"]);
    assert_eq!(ran.code(), 0, "{}", ran.stdout());
    assert!(
        ran.stdout().starts_with("no flow is judged differently\n"),
        "{}",
        ran.stdout()
    );
    let same = zt_agent(&["policy", "diff", shown(old.path()), shown(old.path())]);
    assert_eq!(same.stdout(), "nothing changes\n");
}

#[test]
fn a_directory_is_compared_with_what_is_in_force() {
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let document: Value = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "core"},
        "spec": {"defaultAction": "DENY", "rules": [
            {"from": {"spiffe": id("hanzo/iam")}, "to": [{"spiffe": id("hanzo/redis"), "ports": [6379]}]}
        ]},
    });
    let api = in_force(&runtime, "core", &document);
    let new = of(&rule("hanzo/iam", "hanzo/redis", "6380"));
    let ran = zt_agent(&["policy", "diff", shown(new.path()), "--api", &api, "-o", "json"]);
    assert_eq!(ran.code(), 0, "{}", ran.stderr());
    let answer = ran.json();
    let found: Vec<(&Value, &Value)> = answer["flows"]
        .as_array()
        .expect("flows")
        .iter()
        .map(|flow| (&flow["ports"][0], &flow["after"]))
        .collect();
    assert_eq!(
        found,
        [
            (&json!("6379"), &json!("DENY")),
            (&json!("6380"), &json!("ALLOW"))
        ]
    );
}

#[test]
fn what_cannot_be_read_is_64() {
    let good = of(&rule("hanzo/iam", "hanzo/redis", "6380"));
    let bad = of(&rule("hanzo/iam", "hanzo/redis", "0"));
    for paths in [[&good, &bad], [&bad, &good]] {
        let ran = zt_agent(&["policy", "diff", shown(paths[0].path()), shown(paths[1].path())]);
        assert_eq!(ran.code(), 64);
        assert!(ran.stderr().contains("core.yaml:"), "{}", ran.stderr());
        assert!(ran.stderr().contains("0 is not a port"), "{}", ran.stderr());
    }
    let gone = zt_agent(&["policy", "diff", shown(good.path()), "/nonexistent"]);
    assert_eq!(gone.code(), 64);
    assert!(gone.stderr().contains("/nonexistent"), "{}", gone.stderr());
}
