// SPDX-License-Identifier: Apache-2.0
//! One decision with everything that its record says, and the rule that made it.

use serde_json::Value;

use crate::cli::table::{plain, printable};
use crate::policy;

/// What is shown of one decision.
#[derive(Clone, Debug)]
pub(super) struct Details {
    /// Names and values.
    pub(super) fields: Vec<(String, String)>,
    /// `<policy>/rule-<n>`, where a rule decided.
    pub(super) rule: Option<String>,
    pub(super) text: RuleText,
    /// Lines that are above the screen.
    pub(super) scrolled: usize,
}

/// What is known of the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum RuleText {
    /// None decided.
    None,
    /// It is being asked for.
    Asked,
    /// Its lines.
    Is(Vec<String>),
    /// Why it cannot be shown.
    Unknown(String),
}

impl Details {
    pub(super) fn of(record: &Value) -> Self {
        let mut fields = Vec::new();
        flatten("", record, &mut fields);
        let rule = record["policy_matched"].as_str().map(printable);
        let text = match rule.as_deref() {
            None => RuleText::None,
            Some(rule) if place(rule).is_none() => {
                RuleText::Unknown("built in: it is in no document".to_owned())
            }
            Some(_) => RuleText::Asked,
        };
        Self {
            fields,
            rule,
            text,
            scrolled: 0,
        }
    }

    /// Moves by so many lines, not past the last.
    pub(super) fn scroll(&mut self, by: isize) {
        let rule = match &self.text {
            RuleText::Is(lines) => lines.len(),
            RuleText::None | RuleText::Asked | RuleText::Unknown(_) => 0,
        };
        let last = self.fields.len() + rule;
        self.scrolled = self.scrolled.saturating_add_signed(by).min(last);
    }

    /// Takes in the document of the rule's policy, or why there is none.
    pub(super) fn told(&mut self, rule: &str, answer: Result<&Value, String>) {
        if self.rule.as_deref() != Some(rule) {
            return;
        }
        self.text = match answer {
            Err(why) => RuleText::Unknown(printable(&why)),
            Ok(policy) => {
                let number = place(rule).map_or(0, |(_, number)| number);
                match policy["document"]["spec"]["rules"].get(number.wrapping_sub(1)) {
                    Some(rule) => RuleText::Is(lines(rule)),
                    None => RuleText::Unknown(
                        "its policy has no such rule any more: it was changed since".to_owned(),
                    ),
                }
            }
        };
    }
}

/// The policy of a rule and its number, from 1; `None` where it is in no document.
pub(super) fn place(rule: &str) -> Option<(&str, usize)> {
    let (policy, number) = rule.split_once("/rule-")?;
    let number = number.parse().ok()?;
    policy::is_policy_name(policy).then_some((policy, number))
}

/// What is there, each value on a line of its own.
fn flatten(name: &str, value: &Value, fields: &mut Vec<(String, String)>) {
    match value {
        Value::Null => {}
        Value::Object(object) => {
            for (key, value) in object {
                let key = printable(key);
                let name = if name.is_empty() {
                    key
                } else {
                    format!("{name}.{key}")
                };
                flatten(&name, value, fields);
            }
        }
        other => fields.push((name.to_owned(), plain(other))),
    }
}

/// JSON as lines, indented.
fn lines(value: &Value) -> Vec<String> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.lines().map(printable).collect()
}
