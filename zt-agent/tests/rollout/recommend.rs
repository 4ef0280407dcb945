// SPDX-License-Identifier: Apache-2.0
//! `policy recommend` where there is nothing to recommend, and beside the policies in force.

use serde_json::{Value, json};

use super::program::{Ran, directory, id, in_force, policy, rule, shown, zt_agent};
use super::traffic::{record, sample, trail};

fn recommend(dsn: &str, more: &[&str]) -> Ran {
    zt_agent(&[&["policy", "recommend", "--store", dsn], more].concat())
}

/// Asserts that it fails with this text and prints nothing that could be put in force.
fn assert_none(ran: &Ran, why: &str) {
    assert_eq!(ran.code(), 1, "{}", ran.stdout());
    assert_eq!(ran.stdout(), "");
    assert!(ran.stderr().contains(why), "{}", ran.stderr());
}

#[test]
fn what_nothing_went_through_of_is_no_policy_that_denies_all() {
    let (iam, db) = (id("hanzo/iam"), id("hanzo/db"));
    let (_trail, dsn) = trail(&[
        record(1, &iam, (&db, "10.0.0.2"), 22, 1, "denied"),
        record(2, &iam, (&db, "10.0.0.2"), 23, 2, "denied"),
        record(3, &iam, (&db, "10.0.0.2"), 24, 9, "tag_invalid"),
    ]);
    let why = "none of the 4 connections that are recorded went through: there is nothing to allow";
    assert_none(&recommend(&dsn, &[]), why);
    assert_none(&recommend(&dsn, &["-o", "json"]), why);
    assert!(recommend(&dsn, &[]).stderr().contains("--include-denied"));
    let all = recommend(&dsn, &["--include-denied"]);
    assert_eq!(all.code(), 0, "{}", all.stderr());
    assert!(all.stdout().contains("ports: [\"22-23\"]"), "{}", all.stdout());

    // A range without connections is none, as of a replay; what policy did not decide is told of.
    let early = ["--until", "2026-01-01T01:00:00Z"];
    assert_none(
        &recommend(&dsn, &early),
        "no connections until 2026-01-01T01:00:00Z are recorded: there is nothing to judge by",
    );
    let late = ["--since", "2026-01-01T09:00:00Z", "-o", "json"];
    let why = "no connections from 2026-01-01T09:00:00Z are recorded, but for 2 that policy did not decide";
    assert_none(&recommend(&dsn, &late), why);
    assert_none(
        &recommend(&dsn, &["--namespace", "none"]),
        "of namespace none are recorded",
    );
}

#[test]
fn without_a_path_the_policies_in_force_are_compared() {
    let (_trail, dsn) = sample();
    let rules = rule("hanzo/iam", "hanzo/db", "5432") + &rule("hanzo/iam", "hanzo/redis", "6379");
    let directory = directory(&[("core.yaml", &policy("core", &rules))]);
    let to = |name: &str, port: u16| json!([{"spiffe": id(name), "ports": [port]}]);
    let document = json!({
        "apiVersion": "zt.hanzo.ai/v1", "kind": "ServiceAccessPolicy", "metadata": {"name": "core"},
        "spec": {"defaultAction": "DENY", "rules": [
            {"from": {"spiffe": id("hanzo/iam")}, "to": to("hanzo/db", 5432)},
            {"from": {"spiffe": id("hanzo/iam")}, "to": to("hanzo/redis", 6379)},
        ]},
    });
    let runtime = tokio::runtime::Runtime::new().expect("runtime");
    let api = in_force(&runtime, "core", &document);
    let told = |more: &[&str]| -> Value {
        let ran = recommend(&dsn, &[more, &["-o", "json"]].concat());
        assert_eq!(ran.code(), 0, "{}", ran.stderr());
        ran.json()
    };
    let of_agent = told(&["--diff", "--api", &api]);
    assert_eq!(of_agent, told(&["--diff", shown(directory.path())]));
    assert_eq!(
        of_agent["unused"],
        json!([{ "rule": "core/rule-2", "target": null }])
    );
    let fails = recommend(&dsn, &["--api", &api, "--diff", "--fail"]);
    assert_eq!(fails.code(), 1, "{}", fails.stderr());
    let nobody = recommend(&dsn, &["--diff", "--api", "http://127.0.0.1:1"]);
    assert_none(&nobody, "cannot reach http://127.0.0.1:1");
}
