// SPDX-License-Identifier: Apache-2.0
//! A decision that is shown.

use serde_json::Value;

use super::filter::Filter;
use super::parsed::{Parsed, Verdict};
use crate::cli::decision;
use crate::cli::table::printable;

/// A decision, or a change, on one line. Nothing in it can steer a terminal.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// Counts the rows that were shown, from 0.
    pub(super) serial: u64,
    pub(super) time: String,
    pub(super) verdict: Verdict,
    pub(super) source: String,
    pub(super) destination: String,
    /// `5432/TCP`.
    pub(super) port: String,
    /// The rule, or why there was none.
    pub(super) because: String,
    /// For how many decisions it stands.
    pub(super) weight: u64,
    /// The record as it came.
    json: String,
}

impl Row {
    pub(super) fn new(serial: u64, record: &Parsed<'_>, json: &str) -> Self {
        let verdict = record.verdict();
        let [from, to] = record.addresses();
        let mut row = Self {
            serial,
            time: printable(record.time()),
            verdict,
            source: party(record.source(), from),
            destination: party(record.destination(), to),
            port: format!("{}/{}", record.port(), printable(record.protocol())),
            because: record
                .rule()
                .map_or_else(|| format!("({})", printable(record.reason())), printable),
            weight: record.weight(),
            json: json.to_owned(),
        };
        if verdict == Verdict::Change {
            let value = row.value();
            row.source = printable(value["caller"].as_str().unwrap_or("-"));
            row.destination = decision::what_changed(&value);
            row.port = String::new();
            row.because = printable(record.kind().unwrap_or("change"));
        }
        row
    }

    /// The record.
    pub(super) fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or_default()
    }

    /// Whether a filter that came later takes it.
    pub(super) fn is_taken_by(&self, filter: &Filter) -> bool {
        filter.is_empty() || Parsed::of(&self.json).is_some_and(|record| filter.fits(&record))
    }
}

fn party(name: &str, address: Option<&str>) -> String {
    match address {
        Some(address) => format!("{} ({})", printable(name), printable(address)),
        None => printable(name),
    }
}
