// SPDX-License-Identifier: Apache-2.0
//! What lies between the objects that should be there and those that a cluster has. Objects add up: one of somebody else that
//! takes the same pods lets in what ours does not.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::object::{MANAGED_BY, key};

/// How an object of a cluster differs from what it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Namespace of the object.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
    /// `missing`, `different`, `extra` (one of ours that no service has any more), or [`WIDENS`].
    pub difference: &'static str,
}

/// One of somebody else that allows something to pods of ours, or may.
pub const WIDENS: &str = "widens";

/// What lies between `wanted` and the objects that a cluster has.
pub fn differences(wanted: &[Value], cluster: &[Value]) -> Vec<Difference> {
    let cluster: BTreeMap<_, &Value> = cluster.iter().map(|object| (key(object), object)).collect();
    let difference = |(namespace, name): (String, String), difference| Difference {
        namespace,
        name,
        difference,
    };
    let mut found: Vec<Difference> = wanted
        .iter()
        .filter_map(|object| match cluster.get(&key(object)) {
            None => Some(difference(key(object), "missing")),
            Some(there) if plain(&there["spec"]) != plain(&object["spec"]) => {
                Some(difference(key(object), "different"))
            }
            Some(_) => None,
        })
        .collect();
    let known: BTreeSet<_> = wanted.iter().map(key).collect();
    let others = cluster.iter().filter(|(key, _)| !known.contains(key));
    found.extend(others.filter_map(|(key, object)| {
        if object["metadata"]["labels"][MANAGED_BY.0] == json!(MANAGED_BY.1) {
            return Some(difference(key.clone(), "extra"));
        }
        let widens = allows(object) && wanted.iter().any(|wanted| may_share(wanted, object));
        widens.then(|| difference(key.clone(), WIDENS))
    }));
    found.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    found
}

/// Whether an object allows anything: one without rules only takes away.
fn allows(object: &Value) -> bool {
    ["ingress", "egress"].into_iter().any(|side| {
        object["spec"][side]
            .as_array()
            .is_some_and(|rules| !rules.is_empty())
    })
}

/// Whether a pod that ours takes may be taken by the other one, too: a pod may have labels that nobody here knows of.
fn may_share(ours: &Value, other: &Value) -> bool {
    if ours["metadata"]["namespace"] != other["metadata"]["namespace"] {
        return false;
    }
    let none = Map::new();
    let of = |object: &'_ Value| object["spec"]["podSelector"]["matchLabels"].as_object().cloned();
    let labels = of(ours).unwrap_or(none);
    let agree = |key: &str, value: &Value| labels.get(key).is_none_or(|known| known == value);
    let listed = of(other).unwrap_or_default();
    let expressions = other["spec"]["podSelector"]["matchExpressions"].as_array();
    listed.iter().all(|(key, value)| agree(key, value))
        && expressions.into_iter().flatten().all(|expression| {
            let Some(known) = expression["key"].as_str().and_then(|key| labels.get(key)) else {
                return true;
            };
            let listed = expression["values"]
                .as_array()
                .is_some_and(|values| values.contains(known));
            match expression["operator"].as_str() {
                Some("In") => listed,
                Some("NotIn") => !listed,
                Some("DoesNotExist") => false,
                _ => true,
            }
        })
}

/// Without what is null or an empty list, which an API server leaves out.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => fields
            .iter()
            .filter(|(_, value)| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()))
            .map(|(key, value)| (key.clone(), plain(value)))
            .collect::<Map<_, _>>()
            .into(),
        Value::Array(list) => list.iter().map(plain).collect::<Vec<_>>().into(),
        other => other.clone(),
    }
}
