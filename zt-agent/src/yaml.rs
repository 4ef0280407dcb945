// SPDX-License-Identifier: Apache-2.0
//! YAML as a tree in which every node knows its line and column: the one reader of policies, configuration and
//! workloads. JSON is YAML too.
//!
//! Deserializing straight into a struct stops at the first mistake and cannot say where an unknown field was. The
//! readers walk this tree instead and report everything at once, each problem with the path of its field.

mod report;

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_yaml::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_yaml::{DefaultMessageFormatter, MessageFormatter, Spanned, Tagged};

use crate::problem::Problem;

pub use report::{Entry, Report};

/// What a tag begins with that says which of YAML's own types a value has.
const CORE: &str = "tag:yaml.org,2002:";
/// YAML's own types that a value of ours can have.
const CORE_TYPES: [&str; 7] = ["str", "int", "float", "bool", "null", "seq", "map"];
/// How deep a document may nest; no file of ours needs more than seven levels.
const MAX_DEPTH: usize = 32;
/// How much aliases may add to what is written out: room for convenience, not for a bomb.
const MAX_ALIAS_EVENTS: usize = 100_000;

/// A value and the place where it stands.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Line, from 1.
    pub line: u64,
    /// Column in characters, from 1.
    pub column: u64,
    /// The value.
    pub value: Value,
}

impl Node {
    /// What is found by these keys, one below the other.
    pub fn at(&self, keys: &[&str]) -> Option<&Self> {
        let Some((first, rest)) = keys.split_first() else {
            return Some(self);
        };
        let Value::Map(pairs) = &self.value else {
            return None;
        };
        let is = |key: &Self| matches!(&key.value, Value::Text(text) if text == first);
        let (_, value) = pairs.iter().find(|(key, _)| is(key))?;
        value.at(rest)
    }
}

/// What a node holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// `null`, `~`, or nothing.
    Null,
    /// `true` or `false`; YAML 1.1's `yes` and `on` are text.
    Boolean(bool),
    /// A whole number.
    Integer(i128),
    /// A number with a fraction.
    Float(f64),
    /// Text, quoted or not.
    Text(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in document order; keys may be anything, and may be there twice.
    Map(Vec<(Node, Node)>),
    /// A value with a tag of its own, such as `!secret x`, and that tag. No file of ours gives one a meaning.
    Tagged(String),
}

impl Value {
    /// What kind of value this is, for messages: `text`, `a list` …
    pub fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Null => "nothing",
            Self::Boolean(_) => "true or false",
            Self::Integer(_) | Self::Float(_) => "a number",
            Self::Text(_) => "text",
            Self::List(_) => "a list",
            Self::Map(_) => "a mapping",
            Self::Tagged(tag) => return Cow::Owned(format!("a value with the tag `{tag}`")),
        })
    }

    /// The same with the value, where that is short.
    pub fn describe(&self) -> String {
        match self {
            Self::Boolean(value) => format!("the boolean `{value}`"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(_) => "a text".to_owned(),
            other => other.kind().into_owned(),
        }
    }
}

/// Why a text could not be read as YAML.
#[derive(Debug)]
pub struct Malformed {
    /// Line, from 1; 0 if there is none to name.
    pub line: u64,
    /// Column, from 1; 0 if there is none to name.
    pub column: u64,
    /// What is wrong.
    pub message: String,
}

/// Writes a value as text, the keys of each mapping in order.
pub fn write(value: &serde_json::Value) -> Result<String, serde_yaml::SerializeError> {
    serde_yaml::to_string(value)
}

/// Reads the one document in `text`. An empty file is `Null`. `file` is only for messages.
pub fn parse(file: &str, text: &str) -> Result<Node, Problem> {
    let problem = |line, column, message| Problem {
        file: file.to_owned(),
        line,
        column,
        field: String::new(),
        message,
    };
    let mut documents = documents(text)
        .map_err(|malformed| problem(malformed.line, malformed.column, malformed.message))?
        .into_iter();
    let first = documents.next().unwrap_or(Node {
        line: 1,
        column: 1,
        value: Value::Null,
    });
    match documents.next() {
        None => Ok(first),
        Some(second) => {
            let message = "a second document begins here: this file has one".to_owned();
            Err(problem(second.line, second.column, message))
        }
    }
}

/// The documents of a file; empty ones are left out.
pub fn documents(text: &str) -> Result<Vec<Node>, Malformed> {
    // Each event takes at least a byte of text, so these bounds hold whatever is written out in full, however
    // large, and the bounds on aliases hold what is not.
    let room = text.len().saturating_add(16);
    let options = serde_yaml::options! {
        budget: serde_yaml::budget! {
            max_events: room.saturating_mul(4),
            max_nodes: room.saturating_mul(2),
            max_documents: room,
            max_depth: MAX_DEPTH,
            max_recorded_anchor_events: MAX_ALIAS_EVENTS,
        },
        alias_limits: serde_yaml::alias_limits! { max_total_replayed_events: MAX_ALIAS_EVENTS },
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        merge_keys: MergeKeyPolicy::Error,
        emit_comments: false,
        strict_booleans: true,
        with_snippet: false,
    };
    serde_yaml::from_multiple_with_options::<Node>(text, options).map_err(|error| {
        let place = error.location();
        Malformed {
            line: place.map_or(0, |place| place.line()),
            column: place.map_or(0, |place| place.column()),
            message: DefaultMessageFormatter
                .format_message(error.without_snippet())
                .into_owned(),
        }
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Tagged<Value>>::deserialize(deserializer)?;
        let place = spanned.referenced;
        let Tagged(value, tag) = spanned.value;
        // The reader would pass over any other tag, and take `!secret x` for `x`.
        let is_core = |tag: &str| {
            tag == "!"
                || tag
                    .strip_prefix(CORE)
                    .is_some_and(|name| CORE_TYPES.contains(&name))
        };
        Ok(Self {
            line: place.line(),
            column: place.column(),
            value: match tag {
                Some(tag) if !is_core(&tag) => Value::Tagged(tag),
                _ => value,
            },
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

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        Value::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Boolean(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(i128::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(i128::from(value)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Integer(i128::try_from(value).unwrap_or(i128::MAX)))
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

    fn visit_bytes<E>(self, _value: &[u8]) -> Result<Value, E> {
        Ok(Value::Tagged("!!binary".to_owned()))
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
        let (tag, content) = access.variant::<String>()?;
        content.newtype_variant::<serde::de::IgnoredAny>()?;
        Ok(Value::Tagged(format!("!{tag}")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(node) = access.next_element::<Node>()? {
            list.push(node);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = access.next_key::<Node>()? {
            map.push((key, access.next_value::<Node>()?));
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests;
