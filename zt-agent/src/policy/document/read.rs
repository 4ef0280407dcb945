// SPDX-License-Identifier: Apache-2.0
//! From a tree of YAML to the model, noting all that is wrong.

use std::sync::Arc;

use zt_common::identity;

use super::{KIND, Ports, RULE_FIELDS, Rule, SPEC_FIELDS, ServiceAccessPolicy, TARGET_FIELDS, Target};
use crate::policy::action::{Action, Protocol};
use crate::policy::any::AnyPolicy;
use crate::policy::endpoint::{self, Endpoint};
use crate::policy::envelope::{self, read_description};
use crate::policy::operator::{self, OPERATOR_KIND};
use crate::policy::ports::PortRange;
use crate::policy::rollout::{self, ROLLOUT_KIND};
use crate::policy::walk::{Path, Walk};
use crate::spiffe_id::number_of;
use crate::yaml::{Node, Value};

/// Reads one document. `None` if it has problems, which `walk` then holds.
pub(in crate::policy) fn read(walk: &mut Walk<'_>, node: &Node, trust_domain: &str) -> Option<AnyPolicy> {
    let Value::Map(_) = &node.value else {
        walk.report(
            node,
            &Path::ROOT,
            format!("expected a policy document, found {}", node.value.describe()),
        );
        return None;
    };
    // A document of another kind has other fields: saying so once is worth more than listing them as unknown.
    match envelope::kind_of(walk, node, &[KIND, OPERATOR_KIND, ROLLOUT_KIND])? {
        OPERATOR_KIND => operator::read(walk, node).map(|policy| AnyPolicy::Operator(Arc::new(policy))),
        ROLLOUT_KIND => {
            rollout::read(walk, node, trust_domain).map(|rollout| AnyPolicy::Rollout(Arc::new(rollout)))
        }
        _ => read_service(walk, node, trust_domain).map(|policy| AnyPolicy::Service(Arc::new(policy))),
    }
}

fn read_service(walk: &mut Walk<'_>, node: &Node, trust_domain: &str) -> Option<ServiceAccessPolicy> {
    let (head, spec) = envelope::read(walk, node, |walk, node, path, policy| {
        read_spec(walk, node, path, policy, trust_domain)
    })?;
    let policy = ServiceAccessPolicy {
        head,
        spec_description: spec.description,
        rules: spec.rules,
        default_action: spec.default_action,
        digest: String::new(),
    };
    Some(policy.sealed())
}

struct Spec {
    description: Option<String>,
    rules: Vec<Rule>,
    default_action: Action,
}

fn read_spec(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    policy: &str,
    trust_domain: &str,
) -> Option<Spec> {
    let fields = walk.fields(node, path, &SPEC_FIELDS)?;
    let description = read_description(walk, &fields, path);
    let default_action = fields
        .get("defaultAction")
        .and_then(|node| walk.word(node, &path.field("defaultAction"), &Action::NAMES, Action::from_name))
        // HIP-54: "any connection not explicitly allowed is rejected".
        .unwrap_or(Action::Deny);
    let rules = envelope::read_rules(walk, node, &fields, path, policy, |walk, node, path, name| {
        read_rule(walk, node, path, name, trust_domain)
    })?;
    Some(Spec {
        description,
        rules,
        default_action,
    })
}

fn read_rule(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    name: &str,
    trust_domain: &str,
) -> Option<Rule> {
    let fields = walk.fields(node, path, &RULE_FIELDS)?;
    let description = read_description(walk, &fields, path);
    let action = fields
        .get("action")
        .and_then(|node| walk.word(node, &path.field("action"), &Action::NAMES, Action::from_name))
        .unwrap_or_default();
    let raw_sockets = fields
        .get("rawSockets")
        .and_then(|node| walk.boolean(node, &path.field("rawSockets")))
        .unwrap_or_default();
    let from = walk.required(&fields, node, path, "from").and_then(|node| {
        let path = path.field("from");
        let fields = walk.fields(node, &path, &endpoint::FIELDS)?;
        let from = Endpoint::read(walk, node, &fields, &path, trust_domain)?;
        if raw_sockets && !matches!(from, Endpoint::Spiffe(_)) {
            walk.report(
                node,
                &path,
                "only a workload can have a right to raw sockets: name it with `spiffe`",
            );
        }
        Some(from)
    });
    let to: Vec<Target> = match fields.get("to") {
        None if raw_sockets => Vec::new(),
        None => {
            walk.required(&fields, node, path, "to");
            Vec::new()
        }
        Some(node) => {
            let rule = Rulewide {
                action,
                // One that could not be read has been reported.
                from_workload: from.as_ref().is_none_or(is_workload),
            };
            read_targets(walk, node, &path.field("to"), trust_domain, &rule)
        }
    };
    let number = number_of(name);
    if number < identity::FIRST_WORKLOAD {
        walk.report(
            node,
            path,
            format!("the kernel number {number} of `{name}` is reserved: rename the policy"),
        );
    }
    Some(Rule {
        number,
        description: description.map(String::into_boxed_str),
        action,
        from: from?,
        to: to.into_boxed_slice(),
        raw_sockets,
    })
}

/// What the targets of a rule must go together with.
struct Rulewide {
    action: Action,
    from_workload: bool,
}

fn is_workload(endpoint: &Endpoint) -> bool {
    matches!(endpoint, Endpoint::Spiffe(_))
}

fn read_targets(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    trust_domain: &str,
    rule: &Rulewide,
) -> Vec<Target> {
    let Some(list) = walk.list(node, path) else {
        return Vec::new();
    };
    if list.is_empty() {
        walk.report(
            node,
            path,
            "the list is empty, so that the rule would be about nobody: name a target",
        );
    }
    let mut targets = Vec::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        targets.extend(read_target(walk, node, &path.index(index), trust_domain, rule));
    }
    targets
}

fn read_target(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    trust_domain: &str,
    rule: &Rulewide,
) -> Option<Target> {
    let fields = walk.fields(node, path, &TARGET_FIELDS)?;
    let endpoint = Endpoint::read(walk, node, &fields, path, trust_domain);
    let ports = fields
        .get("ports")
        .map_or_else(Ports::new, |node| read_ports(walk, node, &path.field("ports")));
    let protocol = fields
        .get("protocol")
        .and_then(|node| {
            walk.word(
                node,
                &path.field("protocol"),
                &Protocol::NAMES,
                Protocol::from_name,
            )
        })
        .unwrap_or_default();
    let require_proof = fields
        .get("requireProof")
        .is_some_and(|node| read_proof(walk, node, &path.field("requireProof"), endpoint.as_ref(), rule));
    Some(Target {
        endpoint: endpoint?,
        ports,
        protocol,
        require_proof,
    })
}

/// Proof that a rule asks for must be such as its ends can give.
fn read_proof(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    to: Option<&Endpoint>,
    rule: &Rulewide,
) -> bool {
    let required = walk.boolean(node, path).unwrap_or_default();
    if !required {
        return false;
    }
    let wrong = if rule.action == Action::Deny {
        Some("a rule with `action: DENY` refuses with and without proof: leave it out")
    } else if !rule.from_workload {
        Some(
            "only workloads prove who they are, and the rule is `from` somebody else: it would allow nothing",
        )
    } else if !to.is_none_or(is_workload) {
        Some("only workloads prove who they are, and this target is none: it would allow nothing")
    } else {
        None
    };
    if let Some(wrong) = wrong {
        walk.report(node, path, wrong);
    }
    true
}

fn read_ports(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Ports {
    let Some(list) = walk.list(node, path) else {
        return Ports::new();
    };
    if list.is_empty() {
        walk.report(
            node,
            path,
            "the list is empty: leave `ports` out to mean all ports",
        );
    }
    let mut ports = Ports::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        match PortRange::read(node) {
            Ok(range) => ports.push(range),
            Err(message) => walk.report(node, &path.index(index), message),
        }
    }
    ports
}
