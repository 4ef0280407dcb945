// SPDX-License-Identifier: Apache-2.0
//! What a reader elsewhere cannot follow: paths of one machine, hosts that are not for everybody, numbers of a tracker.

use super::{Finding, SourceFile, rust_paths};

/// Where the paths start that every Linux machine has. A path in the text starts with one of these, or with a route
/// of the API.
const ROOTS: [&str; 25] = [
    "api",
    "apis",
    "bin",
    "boot",
    "dev",
    "etc",
    "lib",
    "mnt",
    "opt",
    "proc",
    "run",
    "sbin",
    "sys",
    "tmp",
    "usr",
    "var",
    "v1",
    "healthz",
    "readyz",
    "metrics",
    "openapi.json",
    "page",
    "path",
    "ns",
    "sa",
];

/// Hosts that a text may send its reader to. Anything else may be a mirror or a name of one site's network.
const HOSTS: [&str; 33] = [
    "127.0.0.1",
    "0.0.0.0",
    "localhost",
    "[::1]",
    "example",
    "example.com",
    "example.org",
    "hanzo.ai",
    "github.com",
    "docs.rs",
    "doc.rust-lang.org",
    "rustup.rs",
    "keepachangelog.com",
    "semver.org",
    "www.apache.org",
    "www.debian.org",
    "www.kernel.org",
    "www.w3.org",
    "docs.kernel.org",
    "git.kernel.org",
    "www.rfc-editor.org",
    "datatracker.ietf.org",
    "spiffe.io",
    "kubernetes.default.svc",
    "kubernetes.io",
    "cilium.io",
    "istio.io",
    "tetragon.io",
    "openpolicyagent.org",
    "goteleport.com",
    "www.freedesktop.org",
    "json-schema.org",
    "editorconfig.org",
];

/// Checks everything but lock files, the licence and the corpora, whose text is given.
pub(crate) fn check(files: &[SourceFile]) -> Vec<Finding> {
    let ours = |file: &&SourceFile| {
        file.extension() != Some("lock")
            && !file.path.ends_with("LICENSE")
            && !file.path.starts_with("fuzz/corpus/")
    };
    files.iter().filter(ours).flat_map(check_file).collect()
}

fn check_file(file: &SourceFile) -> Vec<Finding> {
    let mut findings = Vec::new();
    // In code, a slash divides, and strings hold paths of tests: only what is written for people is looked at.
    let code = file.is_rust().then(|| rust_paths::blanked(&file.text));
    let mut code = code.iter().flat_map(|code| code.lines());
    for (number, line) in file.text.lines().enumerate() {
        let is_comment = code.next().is_none_or(|code| code.trim().is_empty());
        let mut report = |message: String| findings.push(Finding::new(&file.path, number + 1, message));
        for host in hosts(line).filter(|host| !is_known(host)) {
            report(format!(
                "`{host}` is no host that everybody may be sent to; if it is, add it to {}",
                file!()
            ));
        }
        for path in paths(line).filter(|_| is_comment) {
            report(format!(
                "`{path}` is a path of one machine; if it is not, add its root to {}",
                file!()
            ));
        }
        if let Some(number) = tracker_number(line) {
            report(format!(
                "`issue {number}` is a number of a tracker: say what it is about"
            ));
        }
    }
    findings
}

/// The hosts of the URLs in a line.
fn hosts(line: &str) -> impl Iterator<Item = &str> {
    let after = ["http://", "https://"]
        .into_iter()
        .flat_map(move |scheme| line.split(scheme).skip(1));
    after.filter_map(|rest| {
        let end = |c: char| c.is_whitespace() || "/?#\"'`)<>,;{}…\\".contains(c);
        // An error message goes on with a colon.
        let authority = rest.split(end).next()?.trim_end_matches(':');
        let host = match authority.rsplit_once(':') {
            Some((host, port)) if port.chars().all(|c| c.is_ascii_digit()) => host,
            _ => authority,
        };
        Some(host.trim_end_matches('.')).filter(|host| !host.is_empty())
    })
}

fn is_known(host: &str) -> bool {
    let upper = |host: &str| host.chars().all(|c| c.is_ascii_uppercase() || "_$".contains(c));
    HOSTS
        .iter()
        .any(|known| host == *known || host.ends_with(&format!(".{known}")))
        || upper(host)
}

/// Absolute paths of at least two parts whose root is not every machine's.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    let is_edge = |c: char| c.is_whitespace() || "\"'`()[]<>,;=|".contains(c);
    line.split(is_edge).filter(|word| {
        let mut parts = word.strip_prefix('/').unwrap_or_default().split('/');
        let (root, next) = (parts.next().unwrap_or_default(), parts.next());
        let is_name = !root.is_empty() && root.chars().all(|c| c.is_ascii_lowercase());
        is_name
            && next.is_some_and(|next| next.starts_with(|c: char| c.is_alphanumeric()))
            && !ROOTS.contains(&root)
    })
}

/// The number after the word `issue`, with or without a `#`.
fn tracker_number(line: &str) -> Option<&str> {
    let lower = line.find("issue ").map(|at| &line[at + 6..])?;
    let number = lower
        .trim_start_matches('#')
        .split(|c: char| !c.is_ascii_digit())
        .next()?;
    (!number.is_empty()).then_some(number)
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
    fn paths_and_hosts_that_everybody_has_pass() {
        assert_eq!(
            count(
                "a.md",
                "see /etc/zt/agent.yaml, `/sys/fs/bpf/zt` and https://spiffe.io/docs"
            ),
            0
        );
        assert_eq!(
            count(
                "a.md",
                "GET http://127.0.0.1:8054/v1/status, and/or 10.0.0.0/8: http://127.0.0.1:8054: refused"
            ),
            0
        );
        assert_eq!(count("a.rs", "let ratio = bytes /count /x; // 1/2"), 0);
    }

    #[test]
    fn those_of_one_site_do_not() {
        assert_eq!(count("a.md", "built in /srv/builder/src"), 1);
        assert_eq!(count("a.rs", "// built in /srv/builder/src"), 1);
        assert_eq!(
            count(
                "a.toml",
                &format!("registry = \"https://{}/index\"", "mirror.corp.test")
            ),
            1
        );
        assert_eq!(count("a.md", &format!("fixes issue #{}", 7)), 1);
    }
}
