// SPDX-License-Identifier: Apache-2.0
//! What documents of every kind have in common: `apiVersion`, `kind`, `metadata`, and rules in a `spec`.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::walk::{Fields, Path, Walk, hint};
use crate::yaml::Node;

/// The one `apiVersion` that this version reads.
pub const API_VERSION: &str = "zt.hanzo.ai/v1";
/// The longest name of a policy: that of a DNS label.
const MAX_NAME_BYTES: usize = 63;
/// The name under which rules of our own stand in records.
const RESERVED_NAME: &str = "builtin";

/// What a document says of itself, and where it stands.
#[derive(Clone, Debug)]
pub struct Head {
    /// `metadata.name`, unique among the documents of all kinds.
    pub name: String,
    /// `metadata.description`.
    pub description: Option<String>,
    /// The file it came from.
    pub file: String,
    /// The line in that file where its name stands.
    pub line: u64,
    /// The column where its name stands.
    pub column: u64,
}

/// The kind of a document, if it is one of `known` and the version is ours.
pub(super) fn kind_of<'n>(walk: &mut Walk<'_>, node: &'n Node, known: &[&str]) -> Option<&'n str> {
    // Keys are checked later, once it is known which ones there may be.
    let fields = Fields::unchecked(node)?;
    let mut one_of = |name: &str, known: &[&str]| -> Option<&'n str> {
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
    let version = one_of("apiVersion", &[API_VERSION]);
    let kind = one_of("kind", known);
    version.and(kind)
}

/// Reads a document whose version and kind have been looked at: its head, and what `read_spec` makes of `spec`, being
/// told its path and the name of the policy. `None` if it has problems, which `walk` then holds.
pub(super) fn read<S>(
    walk: &mut Walk<'_>,
    node: &Node,
    read_spec: impl FnOnce(&mut Walk<'_>, &Node, &Path<'_>, &str) -> Option<S>,
) -> Option<(Head, S)> {
    let before = walk.problems.len();
    let root = Path::ROOT;
    let fields = walk.fields(node, &root, &["apiVersion", "kind", "metadata", "spec"])?;
    let head = walk
        .required(&fields, node, &root, "metadata")
        .and_then(|node| read_metadata(walk, node));
    let name = head.as_ref().map_or("", |head| head.name.as_str());
    let spec = walk
        .required(&fields, node, &root, "spec")
        .and_then(|node| read_spec(walk, node, &root.field("spec"), name));
    if walk.problems.len() > before {
        return None;
    }
    Some((head?, spec?))
}

/// Reads the `rules` of a `spec`, each with the name that it has in records: `<policy>/rule-<n>`, n from 1.
pub(super) fn read_rules<R>(
    walk: &mut Walk<'_>,
    spec: &Node,
    fields: &Fields<'_>,
    path: &Path<'_>,
    policy: &str,
    mut read_rule: impl FnMut(&mut Walk<'_>, &Node, &Path<'_>, &str) -> Option<R>,
) -> Option<Vec<R>> {
    let list = walk.required(fields, spec, path, "rules")?;
    let path = path.field("rules");
    let list = walk.list(list, &path)?;
    let mut rules = Vec::with_capacity(list.len());
    for (index, node) in list.iter().enumerate() {
        let name = format!("{policy}/rule-{}", index + 1);
        rules.extend(read_rule(walk, node, &path.index(index), &name));
    }
    Some(rules)
}

fn read_metadata(walk: &mut Walk<'_>, node: &Node) -> Option<Head> {
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
    Some(Head {
        name: name.to_owned(),
        description,
        file: walk.file.to_owned(),
        line: at.line,
        column: at.column,
    })
}

/// Reads a `description`, which everything may have.
pub(super) fn read_description(walk: &mut Walk<'_>, fields: &Fields<'_>, path: &Path<'_>) -> Option<String> {
    let node = fields.get("description")?;
    walk.text(node, &path.field("description")).map(str::to_owned)
}

/// Whether a policy may be called so. Such a name is also that of a file, in the directory and nowhere else.
pub fn is_policy_name(name: &str) -> bool {
    is_label(name) && name != RESERVED_NAME
}

/// Whether this is a label as DNS has them, in small letters.
pub fn is_label(name: &str) -> bool {
    let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_NAME_BYTES).contains(&name.len())
        && name.bytes().all(legal)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The canonical JSON form of a document: one text for one meaning, so that digests can be compared.
///
/// The fields of each structure are in alphabetical order, and so are the keys of what they serialize to.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Canonical<'a, S> {
    api_version: &'static str,
    kind: &'static str,
    metadata: CanonicalMetadata<'a>,
    spec: S,
}

#[derive(Serialize)]
struct CanonicalMetadata<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    name: &'a str,
}

/// The `spec` of a document whose rules are all that it has.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct CanonicalSpec<'a, R> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) default_action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) description: Option<&'a str>,
    pub(super) rules: R,
}

impl<'a, S: Serialize> Canonical<'a, S> {
    pub(super) fn new(kind: &'static str, head: &'a Head, spec: S) -> Self {
        Self {
            api_version: API_VERSION,
            kind,
            metadata: CanonicalMetadata {
                description: head.description.as_deref(),
                name: &head.name,
            },
            spec,
        }
    }

    /// As JSON.
    pub(super) fn document(&self) -> Json {
        // Nothing in it can fail to be JSON: texts, small numbers, and keys that are field names.
        serde_json::to_value(self).unwrap_or_default()
    }

    /// SHA-256, in hexadecimal: the same for the same policy, however it is written.
    pub(super) fn digest(&self) -> String {
        hex_digest(&serde_json::to_string(self).unwrap_or_default())
    }
}

/// SHA-256 of a text, in hexadecimal: what tells one document that is not valid from another.
pub fn text_digest(text: &str) -> String {
    hex_digest(text)
}

pub(super) fn hex_digest(text: &str) -> String {
    Sha256::digest(text.as_bytes())
        .iter()
        .fold(String::with_capacity(64), |mut hex, byte| {
            // Writing to a String cannot fail.
            let _ = write!(hex, "{byte:02x}");
            hex
        })
}
