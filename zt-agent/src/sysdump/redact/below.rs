// SPDX-License-Identifier: Apache-2.0
//! Secrets in YAML that stand below their names: blocks of text, and lists.

use super::is_secret;

/// What is indented below a name that says that it is a secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Below {
    /// Blanks before the name.
    indent: usize,
    /// A block of text, all of which is the secret; else what may be a mapping, of which only items of a list are.
    block: bool,
}

impl Below {
    /// What a line opens.
    pub(super) fn opened_by(line: &str) -> Option<Self> {
        let content = line.trim_start_matches(['#', '-', ' ']);
        let (name, value) = content.split_once(':')?;
        let value = value.trim();
        let block = value.starts_with(['|', '>']);
        (is_secret(name.trim()) && (block || value.is_empty())).then(|| Self {
            indent: indent(line),
            block,
        })
    }

    /// Whether a line is below it.
    pub(super) fn reaches(&self, line: &str) -> bool {
        let is_item = !self.block && line.trim_start().starts_with("- ");
        line.trim().is_empty() || indent(line) > self.indent || (is_item && indent(line) == self.indent)
    }

    /// Whether a line that is below it is the secret.
    pub(super) fn hides(&self, line: &str) -> bool {
        let line = line.trim();
        let item = line.strip_prefix("- ").unwrap_or_default();
        !line.is_empty() && (self.block || (!item.is_empty() && !item.contains(": ")))
    }
}

fn indent(line: &str) -> usize {
    line.len() - line.trim_start().len()
}
