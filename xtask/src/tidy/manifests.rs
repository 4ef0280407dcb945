// SPDX-License-Identifier: Apache-2.0
//! Every member of the workspace inherits what is decided once: lints, version, edition, licence, dependencies.

use super::{Finding, SourceFile};

const ROOT: &str = "Cargo.toml";
/// Keys of `[package]` that come from the workspace.
const INHERITED: [&str; 4] = ["version", "edition", "rust-version", "license"];

/// Checks the manifests of all members, and that the changelog knows the version.
pub(crate) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let Some(root) = files.iter().find(|file| file.path == ROOT) else {
        return vec![Finding::new(ROOT, 0, "is missing")];
    };
    let mut findings = Vec::new();
    for member in members(&root.text) {
        let path = format!("{member}/Cargo.toml");
        match files.iter().find(|file| file.path == path) {
            Some(manifest) => check_member(manifest, &mut findings),
            None => findings.push(Finding::new(
                &path,
                0,
                "is missing, though the workspace names it",
            )),
        }
    }
    findings.extend(check_changelog(root, files));
    findings
}

fn check_member(manifest: &SourceFile, findings: &mut Vec<Finding>) {
    let mut table = "";
    let mut inherits_lints = false;
    for (number, line) in manifest.text.lines().enumerate() {
        if line.starts_with('[') {
            table = line.trim();
        }
        inherits_lints |= table == "[lints]" && line.replace(' ', "") == "workspace=true";
        if table.ends_with("dependencies]")
            && line.contains('=')
            && !line.starts_with('#')
            && !line.contains("workspace = true")
        {
            let message =
                "a dependency's version belongs in the workspace's Cargo.toml: `….workspace = true`";
            findings.push(Finding::new(&manifest.path, number + 1, message));
        }
    }
    if !inherits_lints {
        findings.push(Finding::new(
            &manifest.path,
            0,
            "does not inherit the lints: `[lints] workspace = true`",
        ));
    }
    for key in INHERITED {
        if !manifest.text.contains(&format!("\n{key}.workspace = true")) {
            let message = format!("`{key}` belongs in the workspace's Cargo.toml: `{key}.workspace = true`");
            findings.push(Finding::new(&manifest.path, 0, message));
        }
    }
}

/// The quoted names in `members = […]`.
fn members(manifest: &str) -> Vec<&str> {
    let list = manifest
        .split_once("\nmembers = [")
        .and_then(|(_, rest)| rest.split_once(']'));
    list.map_or(Vec::new(), |(list, _)| {
        list.split('"').skip(1).step_by(2).collect()
    })
}

fn check_changelog(root: &SourceFile, files: &[SourceFile]) -> Option<Finding> {
    const CHANGELOG: &str = "CHANGELOG.md";
    let version = root
        .text
        .lines()
        .find_map(|line| line.strip_prefix("version = \""))?
        .trim_end_matches('"');
    let changelog = files
        .iter()
        .find(|file| file.path == CHANGELOG)
        .map_or("", |file| &file.text);
    let known = changelog
        .lines()
        .any(|line| line.starts_with(&format!("## [{version}]")));
    (!known).then(|| Finding::new(CHANGELOG, 0, format!("has no section `## [{version}]`")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> SourceFile {
        SourceFile {
            path: path.into(),
            text: text.into(),
        }
    }

    #[test]
    fn a_member_inherits_everything() {
        let root = file(
            ROOT,
            "[workspace]\nmembers = [\"a\"]\n[workspace.package]\nversion = \"1.2.3\"\n",
        );
        let changelog = file("CHANGELOG.md", "# Changelog\n\n## [1.2.3] - 2026-11-23\n");
        let good = "[package]\nname = \"a\"\nversion.workspace = true\nedition.workspace = true\n\
                    rust-version.workspace = true\nlicense.workspace = true\n[dependencies]\n\
                    anyhow.workspace = true\n[lints]\nworkspace = true\n";
        let found = check(&[root, changelog, file("a/Cargo.toml", good)]);
        assert_eq!(found, []);

        let root = file(
            ROOT,
            "[workspace]\nmembers = [\"a\"]\n[workspace.package]\nversion = \"1.2.4\"\n",
        );
        let bad = good
            .replace("anyhow.workspace = true", "anyhow = \"1\"")
            .replace("[lints]", "[other]");
        let found = check(&[root, file("a/Cargo.toml", &bad)]);
        assert_eq!(found.len(), 3, "{found:?}");
    }
}
