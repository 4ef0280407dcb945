// SPDX-License-Identifier: Apache-2.0
//! Documentation against the code: links lead somewhere, README lists the commands there are, and names of maps and
//! metrics exist.

use std::collections::BTreeSet;

use super::{Finding, SourceFile};
use crate::workspace;

const README: &str = "README.md";
/// The pages whose statements name the tests that show them, as `file::test`.
const EVIDENCE: [&str; 3] = ["docs/compliance.md", "docs/handshake.md", "docs/security.md"];
/// What the metrics library adds to a name: the unit, and the kind of sample.
const SUFFIXES: [&str; 6] = ["_total", "_bucket", "_sum", "_count", "_seconds", "_bytes"];

/// Checks every page; `help` is what `zt-agent --help` prints.
pub(crate) fn check(files: &[SourceFile], help: &str) -> Vec<Finding> {
    let pages: Vec<&SourceFile> = files.iter().filter(|file| file.is_page()).collect();
    let code: Vec<&str> = files
        .iter()
        .filter(|file| file.is_rust())
        .map(|file| file.text.as_str())
        .collect();
    let mut findings = Vec::new();
    for page in &pages {
        for (number, line) in page.text.lines().enumerate() {
            for target in link_targets(line).filter(|target| !leads_somewhere(page, target, files)) {
                findings.push(Finding::new(
                    &page.path,
                    number + 1,
                    format!("`{target}` leads nowhere"),
                ));
            }
            for name in kernel_names(line).filter(|name| !exists(name, &code)) {
                findings.push(Finding::new(
                    &page.path,
                    number + 1,
                    format!("`{name}` is nowhere in the code"),
                ));
            }
            let tests = tests_named(line).filter(|_| EVIDENCE.contains(&page.path.as_str()));
            for name in tests.filter(|name| !is_test(name, files)) {
                findings.push(Finding::new(
                    &page.path,
                    number + 1,
                    format!("`{name}` is no test"),
                ));
            }
        }
    }
    match pages.iter().find(|page| page.path == README) {
        Some(readme) => findings.extend(check_commands(readme, help)),
        None => findings.push(Finding::new(README, 0, "is missing")),
    }
    for page in pages.iter().filter(|page| EVIDENCE.contains(&page.path.as_str())) {
        for line in rows_without_test(&page.text) {
            findings.push(Finding::new(&page.path, line, "the row names no test"));
        }
    }
    for path in EVIDENCE {
        let page = pages.iter().find(|page| page.path == path);
        if !page.is_some_and(|page| page.text.lines().any(|line| tests_named(line).next().is_some())) {
            findings.push(Finding::new(path, 0, "names no test"));
        }
    }
    findings
}

/// README names each subcommand as `zt-agent NAME`, and no other.
fn check_commands(readme: &SourceFile, help: &str) -> Vec<Finding> {
    let real = subcommands(help);
    if real.is_empty() {
        return vec![Finding::new(
            "zt-agent/src/cli.rs",
            0,
            "`zt-agent --help` lists no commands",
        )];
    }
    let mut findings = Vec::new();
    let mut named = BTreeSet::new();
    for (number, line) in readme.text.lines().enumerate() {
        for (at, _) in line.match_indices("zt-agent ") {
            let rest = &line[at + "zt-agent ".len()..];
            // In prose, the name of the program is followed by any word.
            let is_code = line[..at].matches('`').count() % 2 == 1
                || line[..at].trim_matches(['$', '#', ' ']).is_empty()
                || line[..at].trim_end().ends_with("sudo");
            let word: String = rest
                .chars()
                .take_while(|c| c.is_ascii_lowercase() || *c == '-')
                .collect();
            if !is_code || word.is_empty() || word.starts_with('-') {
                continue;
            }
            if !real.contains(word.as_str()) {
                let message = format!("`zt-agent {word}` is no command of `zt-agent --help`");
                findings.push(Finding::new(README, number + 1, message));
            }
            named.insert(word);
        }
    }
    for command in real.iter().filter(|command| !named.contains(**command)) {
        findings.push(Finding::new(
            README,
            0,
            format!("does not mention `zt-agent {command}`"),
        ));
    }
    findings
}

/// The names in the `Commands:` section of a help text, without `help` itself.
fn subcommands(help: &str) -> BTreeSet<&str> {
    let section = help.lines().skip_while(|line| line.trim() != "Commands:").skip(1);
    let lines = section.take_while(|line| !line.trim().is_empty());
    // Descriptions that wrap are indented further than the names.
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect()
}

/// What the links of a line lead to, of those that stay in the repository.
fn link_targets(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| {
        let target = rest.split([')', ' ']).next()?;
        (!target.contains("://") && !target.starts_with("mailto:")).then_some(target)
    })
}

fn leads_somewhere(page: &SourceFile, target: &str, files: &[SourceFile]) -> bool {
    let (path, anchor) = target.split_once('#').unwrap_or((target, ""));
    let directory = page.path.rsplit_once('/').map_or("", |(directory, _)| directory);
    let path = if path.is_empty() {
        page.path.clone()
    } else {
        joined(directory, path)
    };
    if anchor.is_empty() {
        return workspace::root().join(&path).exists();
    }
    let other = files.iter().find(|file| file.path == path);
    other.is_some_and(|other| {
        other
            .text
            .lines()
            .any(|line| line.starts_with('#') && slug(line) == anchor)
    })
}

fn joined(directory: &str, path: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in path.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            _ => parts.push(part),
        }
    }
    parts.join("/")
}

/// The anchor of a heading, as forges make it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text
        .chars()
        .filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// Names such as `zt_allow` and `zt_decisions_total`: of maps, programs and metrics.
fn kernel_names(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| {
        word.strip_prefix("zt_")
            .is_some_and(|rest| !rest.is_empty() && !rest.ends_with('_'))
    })
}

/// What stands as `file::test` in a line. An address may begin with colons.
fn tests_named(line: &str) -> impl Iterator<Item = &str> {
    line.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.find("::").is_some_and(|at| at > 0))
}

/// The cells of a row of a table.
fn cells(line: &str) -> impl Iterator<Item = &str> {
    line.trim().trim_matches('|').split('|').map(str::trim)
}

/// The lines, counted from 1, of tables with a column `test` whose rows name none there, nor say `none` and why.
fn rows_without_test(text: &str) -> Vec<usize> {
    let mut found = Vec::new();
    let mut column = None;
    let mut before = "";
    for (number, line) in (1..).zip(text.lines()) {
        if !line.starts_with('|') {
            column = None;
        } else if line.starts_with("|---") {
            column = cells(before).position(|cell| cell == "test");
        } else if let Some(column) = column {
            let cell = cells(line).nth(column).unwrap_or_default();
            if tests_named(cell).next().is_none() && !cell.starts_with("none: ") {
                found.push(number);
            }
        }
        before = line;
    }
    found
}

/// Whether a file of that name has such a test.
fn is_test(name: &str, files: &[SourceFile]) -> bool {
    name.split_once("::").is_some_and(|(stem, test)| {
        let (end, function) = (format!("/{stem}.rs"), format!("fn {test}("));
        files
            .iter()
            .any(|file| file.path.ends_with(&end) && file.text.contains(&function))
    })
}

/// Whether a name, with or without what is added to it, is written somewhere in the code.
fn exists(name: &str, code: &[&str]) -> bool {
    let mut base = name;
    loop {
        let short = base.strip_prefix("zt_").unwrap_or(base);
        // A registry with a prefix is given the rest of the name.
        let quoted = format!("\"{short}\"");
        if code
            .iter()
            .any(|text| has_word(text, base) || text.contains(&quoted))
        {
            return true;
        }
        match SUFFIXES.iter().find_map(|suffix| base.strip_suffix(suffix)) {
            Some(shorter) => base = shorter,
            None => return false,
        }
    }
}

fn has_word(text: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(word).any(|(at, _)| {
        let before = text[..at].chars().next_back();
        let after = text[at + word.len()..].chars().next();
        !before.is_some_and(is_part) && !after.is_some_and(is_part)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HELP: &str = "zt\n\nUsage: zt-agent <COMMAND>\n\nCommands:\n  run     Run the node agent, whose\n          \
                        description wraps\n  status  Show\n  help    Print this\n\nOptions:\n  -h, --help\n";

    fn page(path: &str, text: &str) -> SourceFile {
        SourceFile {
            path: path.into(),
            text: text.into(),
        }
    }

    #[test]
    fn readme_and_help_agree_both_ways() {
        let good = page(
            README,
            "`zt-agent run` and `zt-agent status -o json`; zt-agent is small.",
        );
        assert_eq!(check_commands(&good, HELP), []);
        let bad = page(README, "    $ zt-agent fly\n`zt-agent run`");
        let found: Vec<String> = check_commands(&bad, HELP)
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(found.len(), 2, "{found:?}");
        assert_eq!(check_commands(&good, "").len(), 1);
    }

    #[test]
    fn links_are_followed_to_files_and_headings() {
        let files = [page("docs/a.md", "# One thing: `x`\n"), page("README.md", "")];
        assert!(leads_somewhere(&files[1], "docs/a.md#one-thing-x", &files));
        assert!(leads_somewhere(&files[0], "../Cargo.toml", &files));
        assert!(leads_somewhere(&files[0], "#one-thing-x", &files));
        assert!(!leads_somewhere(&files[0], "#two", &files));
        assert!(!leads_somewhere(&files[0], "gone.md", &files));
    }

    #[test]
    fn names_of_metrics_match_without_their_suffixes() {
        let code = ["registry.register(\"decisions\", …); static ALLOW: &str = \"zt_allow\";"];
        assert!(exists("zt_decisions_total", &code) && exists("zt_allow", &code));
        assert!(!exists("zt_allowed", &code) && !exists("zt_evaluations_total", &code));
    }

    #[test]
    fn tests_are_named_that_there_are() {
        let line = "holds | `flood::nobody_drowns`, `x` and `one::two`";
        assert_eq!(
            tests_named(line).collect::<Vec<_>>(),
            ["flood::nobody_drowns", "one::two"]
        );
        assert_eq!(tests_named("an address `::ffff:10.0.0.1`").next(), None);
        let table = "| who | test |\n|---|---|\n| a | `flood::nobody_drowns` |\n| b | |\n| c | none: nobody can |\n\n\
                     | who | |\n|---|---|\n| d | e |\n";
        assert_eq!(rows_without_test(table), [4]);
        let files = [page("tests/tests/flood.rs", "fn nobody_drowns() {}")];
        assert!(is_test("flood::nobody_drowns", &files));
        assert!(!is_test("flood::nobody", &files) && !is_test("drought::nobody_drowns", &files));
    }
}
