// SPDX-License-Identifier: Apache-2.0
//! The alerts and the dashboard under `deploy/` speak of metrics that exist.

use std::collections::BTreeSet;

use super::complete;

const RULES: &str = include_str!("../../../../deploy/prometheus/zt.rules.yaml");
const DASHBOARD: &str = include_str!("../../../../deploy/grafana/zt.json");

/// What a scraper knows: the names of samples, and those that Prometheus itself makes.
fn known() -> BTreeSet<String> {
    let mut names = BTreeSet::from(["up".to_owned()]);
    let text = complete().encode().expect("encodes");
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if let ["#", "TYPE", name, kind] = words.as_slice() {
            let suffixes: &[&str] = match *kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "info" => &["_info"],
                _ => &[""],
            };
            names.extend(suffixes.iter().map(|suffix| format!("{name}{suffix}")));
        }
    }
    names
}

/// Whether names of metrics and labels may have it.
pub(super) fn is_of_a_name(char: char) -> bool {
    char.is_ascii_alphanumeric() || char == '_'
}

/// The metrics that an expression of Prometheus names: words of ours, and `up`.
fn selected(expression: &str) -> impl Iterator<Item = String> + '_ {
    expression
        .split(|char: char| !is_of_a_name(char))
        .filter(|word| word.starts_with("zt_") || *word == "up")
        .map(str::to_owned)
}

/// Every string under the key `expr`, wherever it is.
fn expressions(value: &serde_json::Value, found: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(members) => {
            for (key, value) in members {
                match value.as_str().filter(|_| key == "expr") {
                    Some(text) => found.push(text.to_owned()),
                    None => expressions(value, found),
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| expressions(item, found)),
        _ => {}
    }
}

fn rules() -> serde_json::Value {
    serde_yaml::from_str(RULES).expect("YAML")
}

fn dashboard() -> serde_json::Value {
    serde_json::from_str(DASHBOARD).expect("JSON")
}

fn expressions_of(document: &serde_json::Value) -> Vec<String> {
    let mut found = Vec::new();
    expressions(document, &mut found);
    assert!(found.len() > 5, "{found:?}");
    found
}

/// Those of the alerts and of the dashboard.
pub(super) fn all_expressions() -> Vec<String> {
    [expressions_of(&rules()), expressions_of(&dashboard())].concat()
}

fn check(document: &serde_json::Value) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for text in expressions_of(document) {
        let open = text.matches(['(', '{', '[']).count();
        assert_eq!(open, text.matches([')', '}', ']']).count(), "{text}");
        names.extend(selected(&text));
    }
    let known = known();
    let unknown: Vec<_> = names.difference(&known).collect();
    assert!(unknown.is_empty(), "{unknown:?} are not among {known:?}");
    names
}

#[test]
fn the_alerts_use_metrics_that_exist() {
    let rules = rules();
    let names = check(&rules);
    // What must not go unnoticed has an alert.
    for name in [
        "up",
        "zt_api_refused_total",
        "zt_audit_chain_breaks",
        "zt_audit_checkpoint_failures_total",
        "zt_audit_checkpoint_seq",
        "zt_audit_checkpoint_timestamp_seconds",
        "zt_audit_damaged_files",
        "zt_audit_ship_failures_total",
        "zt_audit_spool_bytes",
        "zt_audit_spool_lag_seconds",
        "zt_audit_spool_lost_total",
        "zt_audit_store_failures_total",
        "zt_events_lost_total",
        "zt_hooks_restored_total",
        "zt_observe_all",
        "zt_policy_source_stale",
        "zt_policy_valid",
        "zt_rollout_stopped",
        "zt_spire_connected",
        "zt_spire_refused_total",
    ] {
        assert!(names.contains(name), "no alert on {name}");
    }
    for rule in rules["groups"]
        .as_array()
        .expect("groups")
        .iter()
        .filter_map(|group| group["rules"].as_array())
        .flatten()
    {
        for text in ["summary", "action"] {
            assert!(
                rule["annotations"][text].is_string(),
                "{} has no {text}",
                rule["alert"]
            );
        }
    }
}

#[test]
fn the_dashboard_uses_metrics_that_exist_and_shows_what_alerts_are_about() {
    let (shown, alerted) = (check(&dashboard()), check(&rules()));
    let missing: Vec<_> = alerted
        .iter()
        .filter(|name| *name != "up" && !shown.contains(*name))
        .collect();
    assert!(missing.is_empty(), "no panel shows {missing:?}");
}
