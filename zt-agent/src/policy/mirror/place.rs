// SPDX-License-Identifier: Apache-2.0
//! Which pods an identity is: `identity.template` read backwards, and the labels that pods have.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::Mapping;

const NAMESPACE: &str = "{namespace}";
const ACCOUNT: &str = "{serviceAccount}";

/// A namespace and a service account; `None` where a pattern leaves it open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) namespace: Option<String>,
    pub(super) account: Option<String>,
}

/// Two services that no label tells apart.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{one} and {other} have the same namespace and labels: give --label KEY=VALUE that tells them apart")]
pub struct LabelError {
    one: String,
    other: String,
}

/// How pods are found.
pub(super) struct Layout<'m> {
    pub(super) mapping: &'m Mapping,
}

impl<'m> Layout<'m> {
    pub(super) const fn new(mapping: &'m Mapping) -> Self {
        Self { mapping }
    }

    /// Where an identity or a pattern is; `None` if it is not of the template's form.
    pub(super) fn place(&self, text: &str) -> Option<Place> {
        let (ours, theirs): (Vec<&str>, Vec<&str>) = (
            self.mapping.template.split('/').collect(),
            text.split('/').collect(),
        );
        if ours.len() != theirs.len() {
            return None;
        }
        let mut found: BTreeMap<&str, Option<String>> = BTreeMap::new();
        for (our, their) in ours.iter().zip(theirs) {
            let Some((before, rest)) = our.split_once('{') else {
                if *our != their && their != "*" {
                    return None;
                }
                continue;
            };
            let (name, after) = rest.split_once('}')?;
            let value = match their {
                "*" if before.is_empty() && after.is_empty() => None,
                "*" => return None,
                their => Some(their.strip_prefix(before)?.strip_suffix(after)?.to_owned()),
            };
            if found
                .insert(name, value.clone())
                .is_some_and(|earlier| earlier != value)
            {
                return None;
            }
        }
        Some(Place {
            namespace: found.remove("namespace")?,
            account: found.remove("serviceAccount")?,
        })
    }

    /// Whether every service has labels of its own.
    pub(super) fn check<'p>(
        &self,
        services: impl Iterator<Item = (&'p str, &'p Place)>,
    ) -> Result<(), LabelError> {
        let mut known: BTreeMap<String, &str> = BTreeMap::new();
        for (name, place) in services {
            let labels = format!("{:?} {}", place.namespace, self.labels(place));
            if let Some(other) = known.insert(labels, name) {
                return Err(LabelError {
                    one: other.to_owned(),
                    other: name.to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Whether what is selected has the service account that is given: the namespace has a selector of its own.
    pub(super) fn tells(&self, place: &Place) -> bool {
        let labels = self.mapping.labels.iter();
        place.account.is_none()
            || labels
                .into_iter()
                .any(|(_, value)| value.contains(ACCOUNT) && filled(value, place).is_some())
    }

    /// Whether Kubernetes takes its namespace and its labels; it refuses an object, and those behind it in a list, that has others.
    pub(super) fn is_taken(&self, place: &Place) -> bool {
        let namespace = place.namespace.as_deref().is_none_or(is_name);
        let labels = self.labels(place);
        let mut values = labels.as_object().into_iter().flat_map(Map::values);
        namespace && values.all(|value| value.as_str().is_some_and(is_label))
    }

    /// The labels of its pods; those that a pattern leaves open are left out.
    pub(super) fn labels(&self, place: &Place) -> Value {
        let labels = self.mapping.labels.iter();
        let labels: Map<String, Value> = labels
            .filter_map(|(key, value)| Some((key.clone(), json!(filled(value, place)?))))
            .collect();
        labels.into()
    }
}

/// The most characters of a namespace, and of a label's value.
const MOST: usize = 63;

/// Whether it can be the name of a namespace.
fn is_name(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=MOST).contains(&text.len())
        && text.bytes().all(legal)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// Whether it can be the value of a label.
fn is_label(text: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let end = |byte: Option<u8>| byte.is_none_or(|byte| byte.is_ascii_alphanumeric());
    text.len() <= MOST && text.bytes().all(legal) && end(text.bytes().next()) && end(text.bytes().last())
}

/// A label's value with what it names; `None` where a pattern leaves that open.
fn filled(text: &str, place: &Place) -> Option<String> {
    let mut text = text.to_owned();
    for (name, value) in [(NAMESPACE, &place.namespace), (ACCOUNT, &place.account)] {
        if text.contains(name) {
            text = text.replace(name, value.as_deref()?);
        }
    }
    Some(text)
}
