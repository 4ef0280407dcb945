// SPDX-License-Identifier: Apache-2.0
//! Going through a tree of YAML, noting every problem with its place and the path of its field.

use std::collections::HashMap;
use std::fmt;

use super::problem::Problem;
use crate::spiffe_id::Pattern;
use crate::yaml::{Node, Value};

/// The way from the root of a document to a value, kept on the stack and written out only for a problem.
#[derive(Clone, Copy)]
pub(super) struct Path<'p> {
    parent: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy)]
enum Step<'p> {
    Root,
    Field(&'p str),
    Index(usize),
}

impl<'p> Path<'p> {
    pub(super) const ROOT: Path<'static> = Path {
        parent: None,
        step: Step::Root,
    };

    pub(super) fn field(&'p self, name: &'p str) -> Path<'p> {
        Path {
            parent: Some(self),
            step: Step::Field(name),
        }
    }

    pub(super) fn index(&'p self, index: usize) -> Path<'p> {
        Path {
            parent: Some(self),
            step: Step::Index(index),
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) => {
                let below_root = self.parent.is_none_or(|parent| matches!(parent.step, Step::Root));
                f.write_str(if below_root { "" } else { "." })?;
                f.write_str(name)
            }
            Step::Index(index) => write!(f, "[{index}]"),
        }
    }
}

/// The fields of a mapping whose keys have been checked.
#[derive(Clone, Copy)]
pub(super) struct Fields<'n> {
    entries: &'n [(Node, Node)],
    /// Whether one of them is unknown. It may be what a missing one was meant to be, which is then not missed.
    misspelt: bool,
}

impl<'n> Fields<'n> {
    /// Whether a field that is missing may be there under a name that is not known.
    pub(super) fn misspelt(&self) -> bool {
        self.misspelt
    }

    /// The fields of a mapping whose keys are checked later.
    pub(super) fn unchecked(node: &'n Node) -> Option<Self> {
        if let Value::Map(entries) = &node.value {
            Some(Self {
                entries,
                misspelt: false,
            })
        } else {
            None
        }
    }

    /// The value of a field; one without a value counts as absent.
    pub(super) fn get(&self, name: &str) -> Option<&'n Node> {
        let found = self
            .entries
            .iter()
            .find(|(key, _)| matches!(&key.value, Value::Text(text) if text == name));
        found
            .map(|(_, value)| value)
            .filter(|value| !matches!(value.value, Value::Null))
    }
}

/// The problems of one file, as they are found.
pub(super) struct Walk<'f> {
    pub(super) file: &'f str,
    pub(super) problems: Vec<Problem>,
    /// Patterns that this file and those before it have named: most name few identities in many rules, and share their texts.
    pub(super) patterns: Patterns,
}

/// Patterns by their texts.
pub(super) type Patterns = HashMap<Box<str>, Pattern>;

impl<'f> Walk<'f> {
    pub(super) fn new(file: &'f str, patterns: Patterns) -> Self {
        Self {
            file,
            problems: Vec::new(),
            patterns,
        }
    }

    pub(super) fn report(&mut self, at: &Node, path: &Path<'_>, message: impl Into<String>) {
        self.problems.push(Problem {
            file: self.file.to_owned(),
            line: at.line,
            column: at.column,
            field: path.to_string(),
            message: message.into(),
        });
    }

    /// The fields of a mapping. Unknown and repeated ones are problems, and do not hide those of the others.
    pub(super) fn fields<'n>(
        &mut self,
        node: &'n Node,
        path: &Path<'_>,
        known: &[&str],
    ) -> Option<Fields<'n>> {
        let Value::Map(entries) = &node.value else {
            self.report(
                node,
                path,
                format!("expected a mapping, found {}", node.value.describe()),
            );
            return None;
        };
        let mut misspelt = false;
        for (index, (key, _)) in entries.iter().enumerate() {
            let Value::Text(name) = &key.value else {
                self.report(
                    key,
                    path,
                    format!("a field's name is a text, found {}", key.value.describe()),
                );
                continue;
            };
            let earlier = entries
                .iter()
                .take(index)
                .find(|(other, _)| matches!(&other.value, Value::Text(text) if text == name));
            if let Some((first, _)) = earlier {
                let message = format!("the field stands here twice: first in line {}", first.line);
                self.report(key, &path.field(name), message);
            } else if !known.contains(&name.as_str()) {
                misspelt = true;
                let message = format!("unknown field `{name}`{}", hint(name, known));
                self.report(key, &path.field(name), message);
            }
        }
        Some(Fields { entries, misspelt })
    }

    /// A field that must be there.
    pub(super) fn required<'n>(
        &mut self,
        fields: &Fields<'n>,
        of: &Node,
        path: &Path<'_>,
        name: &str,
    ) -> Option<&'n Node> {
        let found = fields.get(name);
        if found.is_none() && !fields.misspelt {
            self.report(of, &path.field(name), format!("the field `{name}` is missing"));
        }
        found
    }

    pub(super) fn text<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n str> {
        if let Value::Text(text) = &node.value {
            return Some(text);
        }
        let quotes = match node.value {
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => ": put it in quotes",
            _ => "",
        };
        self.report(
            node,
            path,
            format!("expected a text, found {}{quotes}", node.value.describe()),
        );
        None
    }

    pub(super) fn list<'n>(&mut self, node: &'n Node, path: &Path<'_>) -> Option<&'n [Node]> {
        if let Value::List(list) = &node.value {
            return Some(list);
        }
        self.report(
            node,
            path,
            format!("expected a list, found {}", node.value.describe()),
        );
        None
    }

    pub(super) fn boolean(&mut self, node: &Node, path: &Path<'_>) -> Option<bool> {
        if let Value::Boolean(value) = node.value {
            return Some(value);
        }
        self.report(
            node,
            path,
            format!("expected true or false, found {}", node.value.describe()),
        );
        None
    }

    /// One word of a closed list.
    pub(super) fn word<T>(
        &mut self,
        node: &Node,
        path: &Path<'_>,
        known: &[&str],
        parse: impl Fn(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.text(node, path)?;
        let parsed = parse(text);
        if parsed.is_none() {
            let message = format!("`{text}` is not one of {}{}", known.join(", "), hint(text, known));
            self.report(node, path, message);
        }
        parsed
    }
}

/// A question whether the nearest known name was meant, or what there is to choose from.
pub(super) fn hint(name: &str, known: &[&str]) -> String {
    let lower = name.to_lowercase();
    let closeness = |candidate: &&str| strsim::jaro_winkler(&lower, &candidate.to_lowercase());
    match known.iter().max_by(|a, b| closeness(a).total_cmp(&closeness(b))) {
        Some(nearest) if closeness(nearest) >= 0.75 => format!(": did you mean `{nearest}`?"),
        _ => format!("; known are {}", known.join(", ")),
    }
}
