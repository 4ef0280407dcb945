// SPDX-License-Identifier: Apache-2.0
//! What the documentation shows is YAML, and its documents are valid.

use std::path::{Path, PathBuf};

use super::document;
use crate::policy::{Settings, parse, parse_tests};
use crate::yaml;

/// The blocks of YAML in a page, with the line that each begins at.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open: Option<(usize, String)> = None;
    for (index, line) in page.lines().enumerate() {
        match &mut open {
            Some(block) if line.trim_start().starts_with("```") => found.push(std::mem::take(block)),
            Some((_, text)) => {
                text.push_str(line);
                text.push('\n');
                continue;
            }
            None if line.trim() == "```yaml" => {
                open = Some((index + 2, String::new()));
                continue;
            }
            None => continue,
        }
        open = None;
    }
    found
}

fn pages() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let entries = std::fs::read_dir(root.join("docs")).expect("the documentation");
    let mut pages: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    pages.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    pages.push(root.join("README.md"));
    pages
}

#[test]
fn what_the_documentation_shows_is_valid() {
    let settings = Settings::default();
    let mut seen = [0; 3];
    for page in pages() {
        let text = std::fs::read_to_string(&page).expect("a page");
        for (line, block) in blocks(&text) {
            let at = format!("{}:{line}", page.display());
            let read = yaml::documents(&block);
            assert!(read.is_ok(), "{at}: {read:?}");
            let kind = block.lines().find_map(|line| line.strip_prefix("kind: "));
            let shown = [document(&at, &block)];
            let problems = match kind {
                Some("PolicyTest") => {
                    seen[0] += 1;
                    parse_tests(&shown, &settings).err()
                }
                Some(kind) if kind.starts_with("EnforcementRollout") => {
                    seen[1] += 1;
                    parse(&shown, &settings).err()
                }
                Some("ServiceAccessPolicy" | "OperatorAccessPolicy") => {
                    seen[2] += 1;
                    parse(&shown, &settings).err()
                }
                _ => None,
            };
            assert_eq!(problems, None, "{at}");
        }
    }
    assert!(seen.iter().all(|count| *count > 0), "{seen:?}");
}
