// SPDX-License-Identifier: Apache-2.0
//! Takes secrets out of text: those that are known, wherever they stand, and what looks like one.
//!
//! Rather too much goes than too little: what is missing can be asked for, what was sent cannot be taken back.

mod below;
mod forms;
mod learn;

use serde_json::Value;

use self::below::Below;
use self::forms::{keys, named_values, schemes, tokens, urls};

/// What stands where a secret was.
pub(super) const REMOVED: &str = "[removed]";

/// Names whose values are secrets, in whatever case and with whatever around them.
const NAMES: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "credential",
    "authorization",
    "api_key",
    "apikey",
    "api-key",
    "private_key",
    "privatekey",
    "key-data",
];

/// Whether what has this name is a secret.
fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // The directory that a shell is in, and was in.
    if matches!(name.as_str(), "pwd" | "oldpwd") {
        return false;
    }
    NAMES.iter().any(|secret| name.contains(secret))
}

/// Takes secrets out.
#[derive(Clone, Debug, Default)]
pub(super) struct Redactor {
    /// The longest first: one may be part of another.
    known: Vec<String>,
}

impl Redactor {
    /// Text without secrets.
    pub(super) fn text(&self, text: &str) -> String {
        // First what spans lines, then what is known, then what looks like a secret: its place is known by what is around it.
        let mut text = keys(text);
        for secret in &self.known {
            if text.contains(secret) {
                text = text.replace(secret, REMOVED);
            }
        }
        let mut cleaned = String::with_capacity(text.len());
        let mut below: Option<Below> = None;
        for line in text.split_inclusive('\n') {
            let (line, end) = line.strip_suffix('\n').map_or((line, ""), |line| (line, "\n"));
            below = below.filter(|below| below.reaches(line));
            if below.as_ref().is_some_and(|below| below.hides(line)) {
                cleaned.push_str(REMOVED);
            } else {
                cleaned.push_str(&self.line(line));
                below = Below::opened_by(line).or(below);
            }
            cleaned.push_str(end);
        }
        cleaned
    }

    fn line(&self, line: &str) -> String {
        // A line of a log, or of records.
        let trimmed = line.trim_start();
        if trimmed.starts_with('{')
            && let Ok(mut value) = serde_json::from_str::<Value>(trimmed)
        {
            self.json(&mut value);
            return value.to_string();
        }
        tokens(&named_values(&schemes(&urls(line))))
    }

    /// Takes secrets out of a value: what its names say, and what its texts have.
    pub(super) fn json(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(fields) => {
                for (name, value) in fields {
                    if is_secret(name) && (value.is_string() || value.is_number()) {
                        *value = Value::String(REMOVED.to_owned());
                    } else {
                        self.json(value);
                    }
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests;
