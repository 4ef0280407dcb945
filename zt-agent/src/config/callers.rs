// SPDX-License-Identifier: Apache-2.0
//! How `api.callers` is read.

use std::sync::Arc;

use super::Config;
use super::setting::Raw;
use crate::caller::{CallerRule, Role};
use crate::spiffe_id::Pattern;
use crate::yaml::{Node, Value};

/// The fields of an entry.
const FIELDS: [&str; 3] = ["spiffe", "role", "node"];

pub(super) fn api_callers(config: &mut Config, raw: Raw<'_>) -> Result<(), String> {
    let Raw::Node(node) = raw else {
        let rule = |text: &str| {
            let (id, role) = text
                .rsplit_once('=')
                .ok_or_else(|| format!("`{text}` is not ID=ROLE"))?;
            caller(id, role, None)
        };
        config.api.callers = raw.list()?.into_iter().map(rule).collect::<Result<_, _>>()?;
        return Ok(());
    };
    let Value::List(items) = &node.value else {
        return Err(format!(
            "must be a list of {{spiffe, role}}, not {}",
            node.value.kind()
        ));
    };
    let mut callers = Vec::with_capacity(items.len());
    for (index, item) in items.iter().enumerate() {
        let wrong = |message: String| format!("entry {} (line {}): {message}", index + 1, item.line);
        callers.push(entry(item).map_err(wrong)?);
    }
    config.api.callers = callers;
    Ok(())
}

fn entry(item: &Node) -> Result<CallerRule, String> {
    let Value::Map(fields) = &item.value else {
        return Err(format!("must be {{spiffe, role}}, not {}", item.value.kind()));
    };
    let known = |key: &Value| matches!(key, Value::Text(text) if FIELDS.contains(&text.as_str()));
    if !fields.iter().all(|(key, _)| known(&key.value)) {
        return Err("has the fields spiffe, role and node, and no others".to_owned());
    }
    let field = |name: &str| -> Result<Option<&str>, String> {
        let of = |key: &Value| matches!(key, Value::Text(text) if text == name);
        let found = fields.iter().find(|(key, _)| of(&key.value));
        found
            .map(|(_, value)| Raw::Node(value).text().map_err(|error| format!("{name} {error}")))
            .transpose()
    };
    let needed = |name: &str| field(name)?.ok_or_else(|| format!("`{name}` is missing"));
    caller(needed("spiffe")?, needed("role")?, field("node")?)
}

fn caller(id: &str, role: &str, node: Option<&str>) -> Result<CallerRule, String> {
    let spiffe = Pattern::parse(id).map_err(|error| format!("`{id}`: {error}"))?;
    let role = Role::from_name(role)
        .ok_or_else(|| format!("the role must be evaluate, follow, read or admin, not `{role}`"))?;
    if node.is_some() && role != Role::Follow {
        return Err(format!(
            "`node` says which node a caller with the role `follow` is, and this role is `{}`",
            role.name()
        ));
    }
    if node.is_some() && !matches!(spiffe, Pattern::Exact(_)) {
        return Err(format!(
            "`node` is one node, and `{id}` is many callers: leave it out, and the last segment of each identity is its node"
        ));
    }
    if role == Role::Follow && !matches!(spiffe, Pattern::Exact(_)) && !id.ends_with("/*") {
        return Err(format!(
            "`{id}` is many callers, and the last segment of each identity is its node: it has to end with `/*`"
        ));
    }
    Ok(CallerRule {
        spiffe,
        role,
        node: node.map(Arc::from),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn load(callers: &str) -> Result<Vec<CallerRule>, String> {
        let directory = tempfile::tempdir().expect("directory");
        let file = directory.path().join("agent.yaml");
        let text = format!(
            "api:\n  tls: {{cert: /c.pem, key: /k.pem, clientCa: /ca.pem}}\n  callers:\n    - {callers}\n"
        );
        std::fs::write(&file, text).expect("write");
        let sources = Sources {
            file: Some(file),
            ..Sources::default()
        };
        let config = Config::load(&sources).map_err(|error| error.to_string())?;
        Ok(config.api.callers)
    }

    #[test]
    fn followers_are_named_by_their_identity_or_by_name() {
        let one = load("{spiffe: spiffe://hanzo.ai/zt/edge, role: follow, node: edge-1}").expect("valid");
        assert_eq!(
            (one[0].role, one[0].node.as_deref()),
            (Role::Follow, Some("edge-1"))
        );
        let many = load("{spiffe: \"spiffe://hanzo.ai/nodes/*\", role: follow}").expect("valid");
        assert_eq!((many[0].role, many[0].node.as_deref()), (Role::Follow, None));
        for (entry, why) in [
            (
                "{spiffe: spiffe://hanzo.ai/zt/edge, role: read, node: x}",
                "this role is `read`",
            ),
            (
                "{spiffe: \"spiffe://hanzo.ai/nodes/*\", role: follow, node: x}",
                "is many callers",
            ),
            ("{spiffe: \"*\", role: follow}", "has to end with `/*`"),
            (
                "{spiffe: \"spiffe://hanzo.ai/*/agent\", role: follow}",
                "has to end with `/*`",
            ),
            (
                "{spiffe: spiffe://hanzo.ai/x, role: follow, node: 7}",
                "node must be text",
            ),
            (
                "{spiffe: spiffe://hanzo.ai/x, role: read, nodes: x}",
                "and no others",
            ),
            ("{role: read}", "`spiffe` is missing"),
            ("{spiffe: spiffe://hanzo.ai/x}", "`role` is missing"),
        ] {
            let error = load(entry).expect_err(entry);
            assert!(error.contains(why), "{entry}: {error}");
        }
    }
}
