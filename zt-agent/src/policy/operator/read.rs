// SPDX-License-Identifier: Apache-2.0
//! From a tree of YAML to the model of an operator policy, noting all that is wrong.

use std::sync::Arc;

use super::{
    ANY_SERVICE, CONDITION_FIELDS, MAX_WORD_CHARS, OPERATOR_RULE_FIELDS, OPERATOR_SPEC_FIELDS,
    OPERATOR_TARGET_FIELDS, OperatorAccessPolicy, OperatorRule, OperatorTarget,
};
use crate::policy::envelope::{self, read_description};
use crate::policy::walk::{Path, Walk};
use crate::yaml::Node;

/// Reads a document whose `apiVersion` and `kind` have been looked at. `None` if it has problems, which `walk` then
/// holds.
pub(in crate::policy) fn read(walk: &mut Walk<'_>, node: &Node) -> Option<OperatorAccessPolicy> {
    let (head, (spec_description, rules)) = envelope::read(walk, node, |walk, node, path, policy| {
        let fields = walk.fields(node, path, &OPERATOR_SPEC_FIELDS)?;
        let description = read_description(walk, &fields, path);
        let rules = envelope::read_rules(walk, node, &fields, path, policy, |walk, node, path, name| {
            read_rule(walk, node, path, name).map(Arc::new)
        })?;
        Some((description, rules))
    })?;
    let policy = OperatorAccessPolicy {
        head,
        spec_description,
        rules,
        digest: String::new(),
    };
    Some(policy.sealed())
}

fn read_rule(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, name: &str) -> Option<OperatorRule> {
    let fields = walk.fields(node, path, &OPERATOR_RULE_FIELDS)?;
    let description = read_description(walk, &fields, path);
    let role = walk
        .required(&fields, node, path, "role")
        .and_then(|node| word(walk, node, &path.field("role")));
    let targets = walk
        .required(&fields, node, path, "targets")
        .map(|node| read_targets(walk, node, &path.field("targets")));
    let (require_mfa, require_incident) = fields.get("conditions").map_or((false, false), |node| {
        read_conditions(walk, node, &path.field("conditions"))
    });
    Some(OperatorRule {
        name: Arc::from(name),
        description,
        role: role?,
        targets: targets?,
        require_mfa,
        require_incident,
    })
}

fn read_targets(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Vec<OperatorTarget> {
    let mut targets = Vec::new();
    for (index, node) in not_empty(walk, node, path).iter().enumerate() {
        let path = path.index(index);
        let Some(fields) = walk.fields(node, &path, &OPERATOR_TARGET_FIELDS) else {
            continue;
        };
        let service = walk
            .required(&fields, node, &path, "service")
            .and_then(|node| service(walk, node, &path.field("service")));
        let actions = walk
            .required(&fields, node, &path, "actions")
            .map(|node| read_actions(walk, node, &path.field("actions")));
        if let (Some(service), Some(actions)) = (service, actions) {
            targets.push(OperatorTarget { service, actions });
        }
    }
    targets
}

fn read_actions(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Vec<String> {
    let mut actions: Vec<String> = Vec::new();
    for (index, node) in not_empty(walk, node, path).iter().enumerate() {
        let path = path.index(index);
        let Some(action) = word(walk, node, &path) else {
            continue;
        };
        if actions.contains(&action) {
            walk.report(node, &path, format!("`{action}` stands here twice"));
        }
        actions.push(action);
    }
    actions
}

/// Each condition is a mapping of its own, as in the specification; what any of them requires is required.
fn read_conditions(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> (bool, bool) {
    let (mut mfa, mut incident) = (false, false);
    for (index, node) in walk.list(node, path).unwrap_or_default().iter().enumerate() {
        let path = path.index(index);
        let Some(fields) = walk.fields(node, &path, &CONDITION_FIELDS) else {
            continue;
        };
        for (name, required) in [("requireMFA", &mut mfa), ("requireIncident", &mut incident)] {
            if let Some(node) = fields.get(name) {
                *required |= walk.boolean(node, &path.field(name)).unwrap_or(true);
            }
        }
    }
    (mfa, incident)
}

fn not_empty<'n>(walk: &mut Walk<'_>, node: &'n Node, path: &Path<'_>) -> &'n [Node] {
    let list = walk.list(node, path);
    if list.is_some_and(<[Node]>::is_empty) {
        walk.report(
            node,
            path,
            "the list is empty, so that the rule would allow nothing",
        );
    }
    list.unwrap_or_default()
}

fn service(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<String> {
    match walk.text(node, path)? {
        ANY_SERVICE => Some(ANY_SERVICE.to_owned()),
        _ => word(walk, node, path),
    }
}

/// A role, a service or an action: what other systems call it, so little is asked of it.
fn word(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<String> {
    let text = walk.text(node, path)?;
    let fit = !text.is_empty() && text.chars().count() <= MAX_WORD_CHARS;
    if !fit || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        let message = format!("is not a name: write 1 to {MAX_WORD_CHARS} characters without spaces");
        walk.report(node, path, message);
        return None;
    }
    if text.contains('*') {
        let message = "`*` stands for every service, as a whole; name roles and actions one by one";
        walk.report(node, path, message);
        return None;
    }
    Some(text.to_owned())
}
