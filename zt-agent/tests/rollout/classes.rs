// SPDX-License-Identifier: Apache-2.0
//! `policy replay` and `policy recommend` over what has more addresses than anybody reads, and by a rollout at its last stage.

use serde_json::json;

use super::program::{directory, id, policy, rule, shown, zt_agent};
use super::traffic::{changes, record, trail};

#[test]
fn addresses_that_a_candidate_knows_by_one_name_are_one_connection() {
    let (web, db) = (id("hanzo/web"), id("hanzo/db"));
    let addresses: Vec<String> = (0..40).map(|last| format!("192.0.2.{last}")).collect();
    let far: Vec<_> = (0..addresses.len())
        .map(|number| record(number, &web, ("world", &addresses[number]), 443, 1, "allowed"))
        .chain([
            record(100, &web, (&db, "10.0.0.2"), 5432, 1, "allowed"),
            // What was refused at yet others makes no rule.
            record(101, &web, ("world", "198.51.100.1"), 22, 1, "denied"),
        ])
        .collect();
    let (_trail, dsn) = trail(&far);
    let cidr =
        format!("    - from: {{spiffe: \"{web}\"}}\n      to: [{{cidr: 192.0.2.0/29, ports: [443]}}]\n");
    let directory = directory(&[("core.yaml", &policy("core", &cidr))]);
    let path = shown(directory.path());
    let ran = zt_agent(&["policy", "replay", path, "--store", &dsn, "-o", "json"]);
    assert_eq!(
        changes(&ran),
        ["newly_denied web db 5432 2", "newly_denied web world 443 64"]
    );
    let answer = ran.json();
    // Those in the network, those in none, the database, and what was refused.
    assert_eq!(
        (&answer["flows"], &answer["connections"]),
        (&json!(4), &json!(84))
    );
    let row = &answer["changes"][1];
    assert_eq!(row["address_count"], json!(32));
    let told = row["addresses"].as_array().expect("addresses");
    assert_eq!((told.len(), &told[0]), (16, &json!("192.0.2.8")));
    let text = zt_agent(&["policy", "replay", path, "--store", &dsn]).stdout();
    assert!(text.contains("world (192.0.2.8, 192.0.2.9, 30 more)"), "{text}");

    let missing = ["policy", "recommend", "--store", &dsn, "--diff", path];
    let text = zt_agent(&missing).stdout();
    assert!(text.contains("world (192.0.2.8, 192.0.2.9, 30 more)"), "{text}");
    let missing = zt_agent(&[&missing[..], &["-o", "json"]].concat()).json();
    let counts: Vec<_> = missing["missing"]
        .as_array()
        .expect("missing")
        .iter()
        .map(|one| (&one["port"], &one["address_count"]))
        .collect();
    assert_eq!(counts, [(&json!(5432), &json!(0)), (&json!(443), &json!(32))]);

    // More than are written one by one.
    let made = zt_agent(&["policy", "recommend", "--store", &dsn]);
    assert_eq!(made.code(), 0, "{}", made.stderr());
    let text = made.stdout();
    assert!(
        text.contains("entity: world") && !text.contains("cidr") && text.contains("443: 80 connections"),
        "{text}"
    );
    // Few of them are, whatever was refused besides.
    let few: Vec<_> = far.iter().take(3).chain(&far[40..]).cloned().collect();
    let (_few, dsn) = trail(&few);
    let text = zt_agent(&["policy", "recommend", "--store", &dsn]).stdout();
    assert_eq!(text.matches("cidr: ").count(), 3, "{text}");
    assert!(!text.contains("world"), "{text}");
}

#[test]
fn a_candidate_with_a_rollout_at_its_last_stage_says_what_that_refuses() {
    let (iam, db) = (id("hanzo/iam"), id("hanzo/db"));
    let (_trail, dsn) = trail(&[
        record(1, &iam, (&db, "10.0.0.2"), 5432, 1, "allowed"),
        record(2, &id("hanzo/web"), (&db, "10.0.0.2"), 5432, 2, "would deny"),
    ]);
    // Everybody reaches the database, and no rule names who does.
    let rules = format!("    - from: {{spiffe: \"*\"}}\n      to: [{{spiffe: \"{db}\", ports: [5432]}}]\n");
    let rollout = |stage: &str| {
        format!(
            "apiVersion: zt.hanzo.ai/v1\nkind: EnforcementRollout\nmetadata: {{name: r}}\nspec:\n  stage: {stage}\n  stages:\n    - {{name: few, identities: [\"{db}\"]}}\n    - {{name: all, requirePolicy: true}}\n"
        )
    };
    let named = rules.clone() + &rule("hanzo/iam", "hanzo/db", "1");
    let directory = directory(&[
        ("few/p.yaml", &policy("core", &rules)),
        ("few/r.yaml", &rollout("few")),
        ("all/p.yaml", &policy("core", &rules)),
        ("all/r.yaml", &rollout("all")),
        ("named/p.yaml", &policy("core", &named)),
        ("named/r.yaml", &rollout("all")),
    ]);
    let replay = |name: &str| {
        let path = directory.path().join(name);
        zt_agent(&[
            "policy",
            "replay",
            shown(&path),
            "--store",
            &dsn,
            "--fail",
            "-o",
            "json",
        ])
    };
    let few = replay("few");
    assert_eq!(
        (changes(&few), few.code()),
        (vec!["newly_allowed web db 5432 2".to_owned()], 0)
    );
    let all = replay("all");
    assert_eq!(
        (changes(&all), all.code()),
        (vec!["newly_denied iam db 5432 2".to_owned()], 1)
    );
    let row = &all.json()["changes"][0];
    assert_eq!(
        (&row["rule"], &row["reason"]),
        (&json!("builtin/require-policy"), &json!("deny_rule"))
    );
    // Whom a rule names is not refused for want of one.
    assert_eq!(
        (changes(&replay("named")), replay("named").code()),
        (Vec::new(), 0)
    );
}
