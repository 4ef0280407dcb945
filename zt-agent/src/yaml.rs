// SPDX-License-Identifier: Apache-2.0
//! A YAML document as a tree in which every key and value knows its place.
//!
//! Deserializing straight into a struct stops at the first mistake and cannot say where an unknown field was. The
//! readers of `agent.yaml` and `workloads.yaml` walk this tree instead and report everything at once.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_yaml::options::MergeKeyPolicy;
use serde_yaml::{DefaultMessageFormatter, MessageFormatter, Spanned};

use crate::problem::{Problem, nearest};

/// How deep a document may nest; these files need five levels.
const MAX_DEPTH: usize = 32;
/// How much aliases may add to what is written out: room for convenience, not for a bomb.
const MAX_ALIAS_EVENTS: usize = 100_000;

/// A value with its place.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// The value.
    pub value: Value,
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~`, or nothing.
    Null,
    /// `true` or `false`; YAML 1.1's `yes` and `on` are text.
    Bool(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// Text, quoted or not.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in the order of the file; keys are unique.
    Map(Vec<Entry>),
}

/// One key of a mapping and its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Line of the key, from 1.
    pub line: u64,
    /// Column of the key, from 1.
    pub column: u64,
    /// The value.
    pub value: Node,
}

impl Value {
    /// What this is, for messages: `text`, `a list` …
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing",
            Self::Bool(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
        }
    }
}

/// Reads the one document in `text`. An empty file is `Null`. `file` is only for messages.
pub fn parse(file: &str, text: &str) -> Result<Node, Problem> {
    // Each event takes at least a byte of text, so these bounds hold whatever is written out in full; the bounds on
    // aliases hold what is not.
    let room = text.len().saturating_add(16);
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_events: room.saturating_mul(4),
            max_nodes: room.saturating_mul(2),
            max_depth: MAX_DEPTH,
            max_recorded_anchor_events: MAX_ALIAS_EVENTS,
        },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        merge_keys: MergeKeyPolicy::Error,
        emit_comments: false,
        strict_booleans: true,
        with_snippet: false,
    };
    let empty = text
        .lines()
        .all(|line| line.trim_start().is_empty() || line.trim_start().starts_with('#'));
    if empty {
        return Ok(Node {
            line: 1,
            column: 1,
            value: Value::Null,
        });
    }
    serde_yaml::from_str_with_options(text, options).map_err(|error| {
        let (line, column) = error
            .location()
            .map_or((0, 0), |place| (place.line(), place.column()));
        let message = DefaultMessageFormatter
            .format_message(error.without_snippet())
            .into_owned();
        Problem {
            file: file.to_owned(),
            line,
            column,
            field: String::new(),
            message,
        }
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self {
            line: spanned.referenced.line(),
            column: spanned.referenced.column(),
            value: spanned.value,
        })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a YAML value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value.into()))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::Text(value))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = access.next_key::<Spanned<String>>()? {
            let value = access.next_value()?;
            map.push(Entry {
                line: key.referenced.line(),
                column: key.referenced.column(),
                key: key.value,
                value,
            });
        }
        Ok(Value::Map(map))
    }
}

/// Where a reader collects what is wrong with one file.
#[derive(Debug)]
pub struct Report {
    file: String,
    problems: Vec<Problem>,
}

impl Report {
    /// An empty report about `file`.
    pub fn new(file: impl Into<String>) -> Self {
        Self {
            file: file.into(),
            problems: Vec::new(),
        }
    }

    /// Adds a problem at the place of `node`.
    pub fn add(&mut self, node: &Node, field: impl Into<String>, message: impl Into<String>) {
        self.add_at(node.line, node.column, field, message);
    }

    /// Adds a problem at a line and column.
    pub fn add_at(&mut self, line: u64, column: u64, field: impl Into<String>, message: impl Into<String>) {
        let (file, field, message) = (self.file.clone(), field.into(), message.into());
        self.problems.push(Problem {
            file,
            line,
            column,
            field,
            message,
        });
    }

    /// Adds a problem for a key that nothing knows, with the nearest of `known`.
    pub fn unknown_field<'a>(
        &mut self,
        entry: &Entry,
        field: impl Into<String>,
        known: impl IntoIterator<Item = &'a str> + Clone,
    ) {
        let hint = match nearest(&entry.key, known.clone()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!("known here: {}", known.into_iter().collect::<Vec<_>>().join(", ")),
        };
        self.add_at(entry.line, entry.column, field, format!("unknown field; {hint}"));
    }

    /// The text in `node`, or a problem that says what was found instead.
    pub fn text<'a>(&mut self, node: &'a Node, field: &str) -> Option<&'a str> {
        match &node.value {
            Value::Text(text) if text.trim().is_empty() => self.add(node, field, "must not be empty"),
            Value::Text(text) => return Some(text),
            Value::List(_) | Value::Map(_) | Value::Null => {
                self.add(node, field, format!("must be text, not {}", node.value.kind()));
            }
            other => self.add(
                node,
                field,
                format!("must be text, not {}: put it in quotes", other.kind()),
            ),
        }
        None
    }

    /// The entries of the mapping in `node`, or a problem.
    pub fn map<'a>(&mut self, node: &'a Node, field: &str) -> Option<&'a [Entry]> {
        if let Value::Map(entries) = &node.value {
            return Some(entries);
        }
        self.add(
            node,
            field,
            format!("must be a mapping, not {}", node.value.kind()),
        );
        None
    }

    /// The items of the list in `node`, or a problem.
    pub fn list<'a>(&mut self, node: &'a Node, field: &str) -> Option<&'a [Node]> {
        if let Value::List(items) = &node.value {
            return Some(items);
        }
        self.add(node, field, format!("must be a list, not {}", node.value.kind()));
        None
    }

    /// `value` if nothing was wrong, all problems in the order of the file otherwise.
    pub fn finish<T>(mut self, value: T) -> Result<T, Vec<Problem>> {
        if self.problems.is_empty() {
            return Ok(value);
        }
        self.problems
            .sort_by_key(|problem| (problem.line, problem.column));
        Err(self.problems)
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use super::*;

    #[test]
    fn keys_and_values_know_their_place() {
        let node = parse("f", "a: 1\nb:\n  - yes\n  - \"2\"\n  - true\n  - ~\n").expect("valid");
        let Value::Map(map) = &node.value else {
            panic!("{node:?}")
        };
        assert_eq!((map[1].key.as_str(), map[1].line, map[1].column), ("b", 2, 1));
        let Value::List(list) = &map[1].value.value else {
            panic!("{map:?}")
        };
        assert_eq!((list[0].line, list[0].column), (3, 5));
        let values: Vec<_> = list.iter().map(|node| node.value.clone()).collect();
        assert_eq!(
            values,
            [
                Value::Text("yes".into()),
                Value::Text("2".into()),
                Value::Bool(true),
                Value::Null
            ]
        );
    }

    #[test]
    fn malformed_yaml_names_its_line() {
        let problem = parse("f.yaml", "a: 1\nb: [1, 2\nc: 3\n").expect_err("unclosed");
        assert_eq!(problem.file, "f.yaml");
        assert!(problem.line >= 2, "{problem}");
        assert!(!problem.message.contains('\n'), "{problem}");
    }

    #[test]
    fn duplicate_keys_and_second_documents_are_refused() {
        let problem = parse("f", "a: 1\na: 2\n").expect_err("duplicate");
        assert_eq!(
            (problem.line, problem.message.contains('a')),
            (2, true),
            "{problem}"
        );
        let problem = parse("f", "a: 1\n---\nb: 2\n").expect_err("two documents");
        assert!(problem.message.contains("document"), "{problem}");
    }

    #[test]
    fn aliases_are_bounded() {
        let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x]\n");
        for n in 1..9 {
            let aliases = vec![format!("*a{}", n - 1); 9].join(", ");
            writeln!(text, "a{n}: &a{n} [{aliases}]").expect("String");
        }
        assert!(parse("f", &text).is_err());
        assert!(parse("f", &"[".repeat(200)).is_err());
    }

    #[test]
    fn an_empty_file_is_null() {
        assert_eq!(parse("f", "# nothing\n\n").expect("valid").value, Value::Null);
    }
}
