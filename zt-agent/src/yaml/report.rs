// SPDX-License-Identifier: Apache-2.0
//! What is wrong with one file, collected while its tree is walked.

use super::{Node, Value};
use crate::problem::{Problem, nearest};

/// One field of a mapping whose keys have been checked.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'n> {
    /// The key.
    pub key: &'n str,
    /// Line of the key, from 1.
    pub line: u64,
    /// Column of the key, from 1.
    pub column: u64,
    /// The value.
    pub value: &'n Node,
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
        entry: &Entry<'_>,
        field: impl Into<String>,
        known: impl IntoIterator<Item = &'a str> + Clone,
    ) {
        let hint = match nearest(entry.key, known.clone()) {
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
            Value::List(_) | Value::Map(_) | Value::Null | Value::Tagged(_) => {
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

    /// The fields of the mapping in `node`, or a problem. Keys that are no text, and those that were there before, are
    /// problems and left out.
    pub fn map<'n>(&mut self, node: &'n Node, field: &str) -> Option<Vec<Entry<'n>>> {
        let Value::Map(pairs) = &node.value else {
            self.add(
                node,
                field,
                format!("must be a mapping, not {}", node.value.kind()),
            );
            return None;
        };
        let mut entries: Vec<Entry<'n>> = Vec::with_capacity(pairs.len());
        for (key, value) in pairs {
            let Value::Text(name) = &key.value else {
                let message = format!("a field's name is a text, not {}", key.value.kind());
                self.add(key, field, message);
                continue;
            };
            if let Some(first) = entries.iter().find(|entry| entry.key == name) {
                let message = format!("`{name}` stands here twice: first in line {}", first.line);
                self.add(key, field, message);
                continue;
            }
            entries.push(Entry {
                key: name,
                line: key.line,
                column: key.column,
                value,
            });
        }
        Some(entries)
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
