// SPDX-License-Identifier: Apache-2.0
//! What is asked for: a path, and the selectors.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::store::Happened;

pub(super) type Parameters = HashMap<String, String>;

/// What a path names.
pub(super) struct Target {
    pub(super) collection: String,
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

/// Takes a path apart; `None` where it is not one of the API's.
pub(super) fn target(path: &str) -> Option<Target> {
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let (base, rest) = match *segments.first()? {
        "api" => segments.split_at_checked(2)?,
        "apis" => segments.split_at_checked(3)?,
        _ => return None,
    };
    let (namespace, rest) = match *rest {
        ["namespaces", namespace, _, ..] => (Some(namespace.to_owned()), &rest[2..]),
        _ => (None, rest),
    };
    let (resource, rest) = rest.split_first()?;
    let text = |index: usize| rest.get(index).map(|text| (*text).to_owned());
    Some(Target {
        collection: format!("/{}/{resource}", base.join("/")),
        namespace,
        name: text(0),
        subresource: text(1),
    })
}

/// Whether an object is one of those that were asked for.
pub(super) fn selected(target: &Target, parameters: &Parameters, object: &Value) -> bool {
    let in_namespace = target
        .namespace
        .as_ref()
        .is_none_or(|wanted| object["metadata"]["namespace"] == wanted.as_str());
    let selector = parameters.get("fieldSelector").map_or("", String::as_str);
    let fields = selector.split(',').filter(|term| !term.is_empty()).all(|term| {
        let (field, value, wanted) = if let Some((field, value)) = term.split_once("!=") {
            (field, value, false)
        } else {
            let (field, value) = term.split_once('=').unwrap_or((term, ""));
            (field, value.trim_start_matches('='), true)
        };
        let found = field.split('.').fold(object, |object, field| &object[field]);
        (found.as_str().unwrap_or_default() == value) == wanted
    });
    let selector = parameters.get("labelSelector").map_or("", String::as_str);
    let labels = selector.split(',').filter(|term| !term.is_empty()).all(|term| {
        let (label, value) = term.split_once('=').unwrap_or((term, ""));
        object["metadata"]["labels"][label] == value.trim_start_matches('=')
    });
    in_namespace && fields && labels
}

/// What a watch is told of something that happened, if it concerns it.
pub(super) fn event(target: &Target, parameters: &Parameters, happened: &Happened) -> Option<Value> {
    if happened.collection != target.collection {
        return None;
    }
    let before = happened
        .before
        .as_ref()
        .is_some_and(|before| selected(target, parameters, before));
    let now = !happened.deleted && selected(target, parameters, &happened.object);
    let kind = match (before, now) {
        (false, true) => "ADDED",
        (true, true) => "MODIFIED",
        (true, false) => "DELETED",
        (false, false) => return None,
    };
    Some(json!({ "type": kind, "object": happened.object }))
}
