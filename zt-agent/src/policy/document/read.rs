// SPDX-License-Identifier: Apache-2.0
//! From a tree of YAML to the model, noting all that is wrong.

use std::sync::Arc;

use zt_common::identity;

use super::{API_VERSION, KIND, Rule, ServiceAccessPolicy, Target};
use crate::policy::action::{Action, Protocol};
use crate::policy::any::AnyPolicy;
use crate::policy::endpoint::{self, Endpoint};
use crate::policy::operator::{self, OPERATOR_KIND};
use crate::policy::ports::PortRange;
use crate::policy::walk::{Fields, Path, Walk, hint};
use crate::spiffe_id::number_of;
use crate::yaml::{Node, Value};

/// The longest name of a policy: that of a DNS label.
const MAX_NAME_BYTES: usize = 63;
/// The name under which rules of our own stand in records.
const RESERVED_NAME: &str = "builtin";

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
    if kind_of(walk, node)? == OPERATOR_KIND {
        operator::read(walk, node).map(|policy| AnyPolicy::Operator(Arc::new(policy)))
    } else {
        read_service(walk, node, trust_domain).map(|policy| AnyPolicy::Service(Arc::new(policy)))
    }
}

fn read_service(walk: &mut Walk<'_>, node: &Node, trust_domain: &str) -> Option<ServiceAccessPolicy> {
    let before = walk.problems.len();
    let root = Path::ROOT;
    let fields = walk.fields(node, &root, &["apiVersion", "kind", "metadata", "spec"])?;
    let metadata = walk
        .required(&fields, node, &root, "metadata")
        .and_then(|node| read_metadata(walk, node));
    let name = metadata.as_ref().map_or("", |metadata| metadata.name.as_str());
    let spec = walk
        .required(&fields, node, &root, "spec")
        .and_then(|node| read_spec(walk, node, name, trust_domain));
    if walk.problems.len() > before {
        return None;
    }
    let (metadata, spec) = (metadata?, spec?);
    let policy = ServiceAccessPolicy {
        name: metadata.name,
        description: metadata.description,
        spec_description: spec.description,
        rules: spec.rules,
        default_action: spec.default_action,
        file: walk.file.to_owned(),
        line: metadata.line,
        column: metadata.column,
        digest: String::new(),
    };
    Some(policy.sealed())
}

/// The kind, if both it and the version are ours.
fn kind_of<'n>(walk: &mut Walk<'_>, node: &'n Node) -> Option<&'n str> {
    // Keys are checked later, once it is known which ones there may be.
    let fields = Fields::unchecked(node)?;
    let mut known = |name: &str, known: &[&str]| -> Option<&'n str> {
        let path = Path::ROOT.field(name);
        let value = walk.required(&fields, node, &Path::ROOT, name)?;
        let text = walk.text(value, &path)?;
        if known.contains(&text) {
            return Some(text);
        }
        let message = format!("{name} `{text}` is not supported{}", hint(text, known));
        walk.report(value, &path, message);
        None
    };
    let version = known("apiVersion", &[API_VERSION]);
    let kind = known("kind", &[KIND, OPERATOR_KIND]);
    version.and(kind)
}

/// Whether a policy may be called so. Such a name is also that of a file, in the directory and nowhere else.
pub fn is_policy_name(name: &str) -> bool {
    is_label(name) && name != RESERVED_NAME
}

fn is_label(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(legal)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// `metadata`, which all kinds have.
pub(in crate::policy) struct Metadata {
    pub(in crate::policy) name: String,
    pub(in crate::policy) description: Option<String>,
    pub(in crate::policy) line: u64,
    pub(in crate::policy) column: u64,
}

pub(in crate::policy) fn read_metadata(walk: &mut Walk<'_>, node: &Node) -> Option<Metadata> {
    let root = Path::ROOT;
    let path = root.field("metadata");
    let fields = walk.fields(node, &path, &["name", "description"])?;
    let description = read_description(walk, &fields, &path);
    let at = walk.required(&fields, node, &path, "name")?;
    let path = path.field("name");
    let name = walk.text(at, &path)?;
    if !is_label(name) {
        let shown: String = name.chars().take(80).collect();
        let rule = "1 to 63 of a-z, 0-9 and `-`, neither first nor last a `-`";
        walk.report(at, &path, format!("`{shown}` is not a name: a name has {rule}"));
        return None;
    }
    if name == RESERVED_NAME {
        walk.report(
            at,
            &path,
            format!("`{RESERVED_NAME}` is the name of the rules that zt itself has: choose another"),
        );
        return None;
    }
    Some(Metadata {
        name: name.to_owned(),
        description,
        line: at.line,
        column: at.column,
    })
}

pub(in crate::policy) fn read_description(
    walk: &mut Walk<'_>,
    fields: &Fields<'_>,
    path: &Path<'_>,
) -> Option<String> {
    let node = fields.get("description")?;
    walk.text(node, &path.field("description")).map(str::to_owned)
}

struct Spec {
    description: Option<String>,
    rules: Vec<Rule>,
    default_action: Action,
}

fn read_spec(walk: &mut Walk<'_>, node: &Node, policy: &str, trust_domain: &str) -> Option<Spec> {
    let root = Path::ROOT;
    let path = root.field("spec");
    let fields = walk.fields(node, &path, &["rules", "defaultAction", "description"])?;
    let description = read_description(walk, &fields, &path);
    let default_action = fields
        .get("defaultAction")
        .and_then(|node| walk.word(node, &path.field("defaultAction"), &Action::NAMES, Action::from_name))
        // HIP-54: "any connection not explicitly allowed is rejected".
        .unwrap_or(Action::Deny);
    let list = walk.required(&fields, node, &path, "rules")?;
    let path = path.field("rules");
    let list = walk.list(list, &path)?;
    let mut rules = Vec::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        let name = format!("{policy}/rule-{}", index + 1);
        rules.extend(read_rule(walk, node, &path.index(index), name, trust_domain));
    }
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
    name: String,
    trust_domain: &str,
) -> Option<Rule> {
    let fields = walk.fields(node, path, &["from", "to", "action", "rawSockets", "description"])?;
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
    let to = match fields.get("to") {
        None if raw_sockets => Vec::new(),
        None => {
            walk.required(&fields, node, path, "to");
            Vec::new()
        }
        Some(node) => read_targets(walk, node, &path.field("to"), trust_domain),
    };
    let number = number_of(&name);
    if number < identity::FIRST_WORKLOAD {
        walk.report(
            node,
            path,
            format!("the kernel number {number} of `{name}` is reserved: rename the policy"),
        );
    }
    Some(Rule {
        name: Arc::from(name),
        number,
        description,
        action,
        from: from?,
        to,
        raw_sockets,
    })
}

fn read_targets(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, trust_domain: &str) -> Vec<Target> {
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
        targets.extend(read_target(walk, node, &path.index(index), trust_domain));
    }
    targets
}

fn read_target(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, trust_domain: &str) -> Option<Target> {
    let fields = walk.fields(node, path, &["spiffe", "entity", "cidr", "ports", "protocol"])?;
    let endpoint = Endpoint::read(walk, node, &fields, path, trust_domain);
    let ports = fields
        .get("ports")
        .map_or_else(Vec::new, |node| read_ports(walk, node, &path.field("ports")));
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
    Some(Target {
        endpoint: endpoint?,
        ports,
        protocol,
    })
}

fn read_ports(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Vec<PortRange> {
    let Some(list) = walk.list(node, path) else {
        return Vec::new();
    };
    if list.is_empty() {
        walk.report(
            node,
            path,
            "the list is empty: leave `ports` out to mean all ports",
        );
    }
    let mut ports = Vec::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        let range = match &node.value {
            Value::Integer(number) => PortRange::single(*number),
            Value::Text(text) => PortRange::parse(text),
            other => Err(format!(
                "expected a port or a range such as \"8000-8100\", found {}",
                other.describe()
            )),
        };
        match range {
            Ok(range) => ports.push(range),
            Err(message) => walk.report(node, &path.index(index), message),
        }
    }
    ports
}
