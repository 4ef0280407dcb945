// SPDX-License-Identifier: Apache-2.0
//! What the container image is built from: `.dockerignore` lets through what the Dockerfile and the sources ask for.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Component, Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap()
        .to_path_buf()
}

/// What is in the context of the build, below the root of the repository.
struct Context(Vec<PathBuf>);

impl Context {
    fn read() -> Self {
        let text = fs::read_to_string(root().join(".dockerignore")).unwrap();
        let mut lines = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty());
        assert_eq!(lines.next(), Some("*"), "nothing comes along unasked");
        let let_through = lines.filter_map(|line| line.strip_prefix('!')).map(PathBuf::from);
        Self(let_through.collect())
    }

    fn has(&self, path: &Path) -> bool {
        self.0.iter().any(|whole| path.starts_with(whole)) && root().join(path).exists()
    }
}

/// The path without `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        if component == Component::ParentDir {
            assert!(plain.pop(), "{} leads out of the repository", path.display());
        } else {
            plain.push(component);
        }
    }
    plain
}

/// Every Rust file below a directory that is compiled into programs, with its path below the root.
fn sources(directory: &str, found: &mut Vec<(PathBuf, String)>) {
    for entry in fs::read_dir(root().join(directory)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = format!("{directory}/{name}");
        if entry.path().is_dir() && !["target", "tests"].contains(&name.as_str()) {
            sources(&path, found);
        } else if entry.path().extension().is_some_and(|kind| kind == "rs") && name != "tests.rs" {
            let text = fs::read_to_string(entry.path()).unwrap();
            found.push((PathBuf::from(path), text));
        }
    }
}

#[test]
fn what_the_sources_include_is_in_the_context() {
    let context = Context::read();
    let mut files = Vec::new();
    for directory in ["zt-agent", "zt-common", "zt-ebpf"] {
        sources(directory, &mut files);
    }
    let mut seen = 0;
    for (file, text) in &files {
        for mark in ["include_str!(\"", "include_bytes!(\"", "#[path = \""] {
            for (at, _) in text.match_indices(mark) {
                let rest = &text[at + mark.len()..];
                let named = &rest[..rest.find('"').unwrap()];
                let path = plain(&file.parent().unwrap().join(named));
                assert!(
                    context.has(&path),
                    "{} includes {}, which .dockerignore keeps away",
                    file.display(),
                    path.display()
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 1, "{seen}");
}

#[test]
fn what_the_dockerfile_copies_is_in_the_context() {
    let context = Context::read();
    let text = fs::read_to_string(root().join("deploy/Dockerfile")).unwrap();
    let mut seen = 0;
    for line in text.lines().filter(|line| line.starts_with("COPY ")) {
        let words: Vec<&str> = line.split_whitespace().skip(1).collect();
        if words.iter().any(|word| word.starts_with("--from=")) {
            continue;
        }
        let named = words.iter().filter(|word| !word.starts_with("--"));
        let named: Vec<&&str> = named.collect();
        for from in &named[..named.len() - 1] {
            assert!(**from == "." || context.has(Path::new(from)), "COPY {from}");
            seen += 1;
        }
    }
    assert!(seen > 3, "{seen}");
    // Cargo reads the manifests of all members, whatever it builds.
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, members) = manifest.split_once("members = [").unwrap();
    let (members, _) = members.split_once(']').unwrap();
    for member in members.split(',').map(|member| member.trim().trim_matches('"')) {
        if !member.is_empty() {
            assert!(context.has(Path::new(member)), "the member {member}");
        }
    }
}
