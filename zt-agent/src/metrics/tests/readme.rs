// SPDX-License-Identifier: Apache-2.0
//! README's table of metrics against the exposition: every metric, with its labels and the values that are fixed, and
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};

use super::{Tally as _, complete, record};

const README: &str = include_str!("../../../../README.md");

/// Labels whose values are not a list that README could give, by metric.
const OPEN: [(&str, &str); 6] = [
    ("zt_decisions_total", "decision"),
    ("zt_decisions_total", "source"),
    ("zt_decisions_total", "dest"),
    ("zt_kernel_events_total", "event"),
    ("zt_build_info", "version"),
    ("zt_svid_rotations_total", "service"),
];

/// The labels of a metric, with the values that each has.
type Labels = BTreeMap<String, BTreeSet<String>>;

/// Every metric of an agent that does everything.
fn exposed() -> BTreeMap<String, Labels> {
    let metrics = complete();
    metrics.recorded(&record());
    let text = metrics.encode().expect("encodes");
    let mut histograms = BTreeSet::new();
    let mut found: BTreeMap<String, Labels> = BTreeMap::new();
    for line in text.lines() {
        if let Some(declared) = line.strip_prefix("# TYPE ") {
            let (name, kind) = declared.split_once(' ').expect("a type");
            if kind == "histogram" {
                histograms.insert(name.to_owned());
            }
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, _) = line.rsplit_once(' ').expect("a sample");
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        // A histogram is one metric, whatever its samples are called.
        let base = ["_bucket", "_sum", "_count"]
            .iter()
            .filter_map(|suffix| name.strip_suffix(suffix))
            .find(|base| histograms.contains(*base));
        let entry = found.entry(base.unwrap_or(name).to_owned()).or_default();
        for pair in labels
            .trim_end_matches('}')
            .split("\",")
            .filter(|pair| !pair.is_empty())
        {
            let (label, value) = pair.split_once('=').expect("a label");
            if label != "le" {
                let value = value.trim_matches('"').to_owned();
                entry.entry(label.to_owned()).or_default().insert(value);
            }
        }
    }
    found
}

/// The table: each metric with the labels that it is given, and what its row says.
fn described() -> BTreeMap<String, (BTreeSet<String>, String)> {
    let section = README.split("\n## Metrics\n").nth(1).expect("a section");
    let section = section.split("\n## ").next().expect("its end");
    let mut found = BTreeMap::new();
    for row in section.lines().filter(|line| line.starts_with("| `")) {
        let (names, text) = row[2..].split_once(" | ").expect("two cells");
        for name in names.split('`').filter(|word| word.starts_with("zt_")) {
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let labels = labels.trim_end_matches('}').split(',');
            let labels: BTreeSet<String> = labels
                .filter(|label| !label.is_empty())
                .map(str::to_owned)
                .collect();
            let twice = found.insert(name.to_owned(), (labels, text.to_owned()));
            assert!(twice.is_none(), "{name} has two rows");
        }
    }
    found
}

#[test]
fn the_readme_names_every_metric_and_no_other() {
    let (exposed, described) = (exposed(), described());
    let missing: Vec<_> = exposed
        .keys()
        .filter(|name| !described.contains_key(*name))
        .collect();
    assert!(missing.is_empty(), "README does not tell of {missing:?}");
    let gone: Vec<_> = described
        .keys()
        .filter(|name| !exposed.contains_key(*name))
        .collect();
    assert!(gone.is_empty(), "README tells of {gone:?}, which no agent has");
    for (name, labels) in &exposed {
        let (said, text) = &described[name];
        let there: BTreeSet<String> = labels.keys().cloned().collect();
        assert_eq!(said, &there, "the labels of {name}");
        for (label, values) in labels {
            if OPEN.contains(&(name, label)) {
                continue;
            }
            for value in values {
                assert!(
                    text.contains(&format!("`{value}`")),
                    "README does not say that {name} has {label}=\"{value}\""
                );
            }
        }
    }
}
