// SPDX-License-Identifier: Apache-2.0
//! YAML as a tree in which every node knows its line and column.
//!
//! Documents are read into this tree first and checked against the model afterwards, by hand: that way one reading
//! finds all problems, each with the path of its field, where a derived deserializer stops at the first.

use std::fmt;

use serde::de::{Deserialize, Deserializer, EnumAccess, MapAccess, SeqAccess, VariantAccess, Visitor};
use serde_yaml::Spanned;
use serde_yaml::options::{DuplicateKeyPolicy, MergeKeyPolicy};
use serde_yaml::{DefaultMessageFormatter, MessageFormatter};

/// A value and the place where it stands.
#[derive(Debug)]
pub(super) struct Node {
    /// Line, from 1.
    pub(super) line: u64,
    /// Column, from 1.
    pub(super) column: u64,
    pub(super) value: Value,
}

/// What a node holds.
#[derive(Debug)]
pub(super) enum Value {
    Null,
    Boolean(bool),
    Integer(i128),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    /// In document order, with duplicates.
    Map(Vec<(Node, Node)>),
    /// A value with a tag of its own, such as `!secret x`.
    Tagged,
}

impl Value {
    /// What it is, for messages.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Null => "nothing".to_owned(),
            Self::Boolean(value) => format!("the boolean `{value}`"),
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(_) => "a text".to_owned(),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a mapping".to_owned(),
            Self::Tagged => "a tagged value".to_owned(),
        }
    }
}

/// Why a file could not be read as YAML.
#[derive(Debug)]
pub(super) struct Malformed {
    /// Line, from 1; 0 if there is none to name.
    pub(super) line: u64,
    /// Column, from 1; 0 if there is none to name.
    pub(super) column: u64,
    pub(super) message: String,
}

/// How deep a document may nest; a policy needs seven levels.
const MAX_DEPTH: usize = 32;
/// How much aliases may add to what is written out: room for convenience, not for a bomb.
const MAX_ALIAS_EVENTS: usize = 100_000;

/// The documents of a file; empty ones are left out.
pub(super) fn documents(text: &str) -> Result<Vec<Node>, Malformed> {
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
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        let place = spanned.referenced;
        Ok(Self {
            line: place.line(),
            column: place.column(),
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
        Ok(Value::Tagged)
    }

    fn visit_enum<A: EnumAccess<'de>>(self, access: A) -> Result<Value, A::Error> {
        let (_tag, content) = access.variant::<serde::de::IgnoredAny>()?;
        content.newtype_variant::<serde::de::IgnoredAny>()?;
        Ok(Value::Tagged)
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
