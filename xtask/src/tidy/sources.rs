// SPDX-License-Identifier: Apache-2.0
//! Every Rust file: its header, its size, its name, and no unfinished code.

use super::{Finding, SourceFile, rust_paths};

const LICENSE: &str = "// SPDX-License-Identifier: Apache-2.0";
/// A file longer than this holds more than one thing.
const LINES: usize = 400;
/// Files that are longer, each with its reason.
const LONGER: &[(&str, &str)] = &[];
/// Names that say nothing about what a file holds.
const VAGUE: [&str; 8] = [
    "utils", "util", "helpers", "helper", "common", "misc", "shared", "mod",
];
/// Macros that stand for code that is missing.
const UNFINISHED: [&str; 2] = ["todo", "unimplemented"];

/// Checks every Rust file.
pub(crate) fn check(files: &[SourceFile]) -> Vec<Finding> {
    files
        .iter()
        .filter(|file| file.is_rust())
        .flat_map(check_file)
        .collect()
}

fn check_file(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut report = |line, message: String| findings.push(Finding::new(&file.path, line, message));
    let mut lines = file.text.lines();
    if lines.next() != Some(LICENSE) {
        report(1, format!("the first line is `{LICENSE}`"));
    }
    if !lines.next().is_some_and(|line| line.starts_with("//! ")) {
        report(2, "the second line starts `//! `: what this file holds".into());
    }
    let count = file.text.lines().count();
    if count > LINES && !LONGER.iter().any(|(path, _reason)| *path == file.path) {
        report(
            0,
            format!("{count} lines, {LINES} are the limit: split it by what it holds"),
        );
    }
    let stem = file
        .path
        .rsplit('/')
        .next()
        .and_then(|name| name.strip_suffix(".rs"))
        .unwrap_or_default();
    if VAGUE.contains(&stem) {
        report(
            0,
            format!("`{stem}` is no name: a file is named after the one thing in it"),
        );
    }
    for (number, line) in rust_paths::blanked(&file.text).lines().enumerate() {
        for name in UNFINISHED {
            if line.contains(&format!("{name}!")) {
                report(number + 1, format!("`{name}!` is unfinished code"));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(path: &str, text: &str) -> usize {
        check(&[SourceFile {
            path: path.into(),
            text: text.into(),
        }])
        .len()
    }

    #[test]
    fn good_files_pass_and_others_do_not() {
        let header = format!("{LICENSE}\n//! A file.\n");
        assert_eq!(count("a/b.rs", &header), 0);
        assert_eq!(count("a/utils.rs", &header), 1);
        assert_eq!(count("a/b.rs", "fn main() {}\n"), 2);
        assert_eq!(count("a/b.rs", &(header.clone() + "fn f() { todo!() }")), 1);
        assert_eq!(count("a/b.rs", &(header.clone() + "// todo! is a macro\n")), 0);
        assert_eq!(count("a/b.rs", &(header + &"\n".repeat(LINES))), 1);
    }
}
