// SPDX-License-Identifier: Apache-2.0
//! The alerts and the dashboard under `deploy/` select and group by labels that metrics have, and by values that these take.

use std::collections::{BTreeMap, BTreeSet};

use super::deploy::{all_expressions, is_of_a_name};
use super::{complete, decision, declared, record, record_of};
use crate::audit::pipeline::Tally as _;

/// Labels that Prometheus adds.
const TARGETS: [&str; 2] = ["instance", "job"];
/// Labels whose values are not a closed list: identities that are declared, and versions.
const OPEN: [&str; 4] = ["source", "dest", "service", "version"];

/// The values of each label, by the name of a sample.
type Samples = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// A label that is compared with a value, or grouped by.
#[derive(Debug, PartialEq, Eq)]
struct Use {
    metric: String,
    label: String,
    values: Vec<String>,
}

/// `name="value", …`, where no value has a quotation mark in it.
fn pairs(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    let mut parts = text.split('"');
    std::iter::from_fn(move || {
        let (name, value) = (parts.next()?, parts.next()?);
        Some((name.trim_matches([',', ' ']).to_owned(), value.to_owned()))
    })
}

/// What a scraper sees of everything that is counted.
fn samples() -> Samples {
    let metrics = complete();
    metrics.declare(declared(&[]));
    let mut denied = decision();
    denied.allowed = false;
    metrics.recorded(&record());
    metrics.recorded(&record_of(&denied, 1));
    let mut samples = Samples::new();
    for line in metrics.encode().expect("encodes").lines() {
        let Some((series, _)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) else {
            continue;
        };
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        let known = samples.entry(name.to_owned()).or_default();
        for (label, value) in pairs(labels.trim_end_matches('}')) {
            let label = label.trim_end_matches('=').to_owned();
            known.entry(label).or_default().insert(value);
        }
    }
    samples
}

/// The words of an expression from a place on.
fn word(text: &str) -> &str {
    let end = text.find(|char| !is_of_a_name(char)).unwrap_or(text.len());
    &text[..end]
}

/// What each selector of an expression compares.
fn compared(expression: &str) -> Vec<Use> {
    let mut found = Vec::new();
    for (at, _) in expression.match_indices('{') {
        let begin = expression[..at]
            .rfind(|char| !is_of_a_name(char))
            .map_or(0, |before| before + 1);
        let (inside, _) = expression[at + 1..].split_once('}').expect("closed");
        for (label, value) in pairs(inside) {
            let values = if label.ends_with('~') {
                value.split('|').map(str::to_owned).collect()
            } else {
                vec![value]
            };
            found.push(Use {
                metric: expression[begin..at].to_owned(),
                label: label.trim_end_matches(['=', '~', '!']).to_owned(),
                values,
            });
        }
    }
    found
}

/// The labels that an expression groups by or matches on, each with every metric that it names: it is one of some of them.
fn grouped(expression: &str) -> Vec<(String, Vec<String>)> {
    let starts = |word: &str| {
        expression
            .match_indices(word)
            .map(|(at, _)| &expression[at..])
            .collect::<Vec<_>>()
    };
    let metrics: Vec<String> = starts("zt_")
        .into_iter()
        .map(|rest| word(rest).to_owned())
        .collect();
    let mut found = Vec::new();
    for clause in ["by (", "on (", "without (", "ignoring ("] {
        for rest in starts(clause) {
            let (labels, _) = rest[clause.len()..].split_once(')').expect("closed");
            found.extend(
                labels
                    .split(',')
                    .map(|label| (label.trim().to_owned(), metrics.clone())),
            );
        }
    }
    found
}

/// What is wrong with the labels of an expression.
fn wrong(expression: &str, samples: &Samples) -> Vec<String> {
    let has = |metric: &str, label: &str| {
        TARGETS.contains(&label)
            || samples
                .get(metric)
                .is_some_and(|labels| labels.contains_key(label))
    };
    let mut wrong = Vec::new();
    for Use {
        metric,
        label,
        values,
    } in compared(expression)
    {
        if !has(&metric, &label) {
            wrong.push(format!("{metric} has no label {label}"));
        } else if !TARGETS.contains(&&*label) && !OPEN.contains(&&*label) {
            let known = &samples[&metric][&label];
            let unknown = values.iter().filter(|value| !known.contains(*value));
            wrong.extend(unknown.map(|value| format!("no {metric} has {label}={value}: it has {known:?}")));
        }
    }
    for (label, metrics) in grouped(expression) {
        if !metrics.iter().any(|metric| has(metric, &label)) {
            wrong.push(format!("none of {metrics:?} has a label {label}"));
        }
    }
    wrong
}

#[test]
fn the_alerts_and_the_dashboard_use_labels_and_values_that_exist() {
    let samples = samples();
    let (mut wrongs, mut uses) = (Vec::new(), 0);
    for expression in all_expressions() {
        let of_ours = |compared: &Use| !TARGETS.contains(&&*compared.label);
        uses += compared(&expression).into_iter().filter(of_ours).count() + grouped(&expression).len();
        wrongs.extend(
            wrong(&expression, &samples)
                .into_iter()
                .map(|wrong| format!("{expression}: {wrong}")),
        );
    }
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
    assert!(uses > 20, "{uses} labels are used");
}

#[test]
fn a_label_or_a_value_that_does_not_exist_is_found() {
    let samples = samples();
    for good in [
        r#"increase(zt_kernel_events_total{event=~"connections_full|listeners_full"}[10m]) > 0"#,
        r#"sum by (decision) (rate(zt_decisions_total{instance=~"$instance",decision="deny",source="whoever"}[5m]))"#,
        "sum by (le) (rate(zt_evaluation_latency_seconds_bucket[5m]))",
        r#"zt_peers{state!="unknown"} and on (instance, job) zt_policy_valid"#,
    ] {
        assert_eq!(wrong(good, &samples), Vec::<String>::new(), "{good}");
    }
    for (bad, said) in [
        (r#"zt_kernel_events_total{event="unfence"}"#, "event=unfence"),
        (r#"zt_kernel_events_total{event=~"unfenced|gone"}"#, "event=gone"),
        (r#"zt_kernel_events_total{cause="unfenced"}"#, "no label cause"),
        (r#"zt_decisions_total{decision="DENY"}"#, "decision=DENY"),
        ("sum by (verdict) (zt_decisions_total)", "a label verdict"),
        ("zt_policy_valid and on (node) zt_observe_all", "a label node"),
        (r#"zt_policy_valid{policy="a"}"#, "no label policy"),
    ] {
        let found = wrong(bad, &samples);
        assert!(found.len() == 1 && found[0].contains(said), "{bad}: {found:?}");
    }
}
