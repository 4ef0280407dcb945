// SPDX-License-Identifier: Apache-2.0
//! Logs of agents that run as pods here. From within a container the machine's own files are below the root of its first process.

use std::collections::HashSet;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};

/// Where the files of the machine are: for a program of its own, and for one in a container that sees the machine's processes.
pub(super) const ROOTS: [&str; 2] = ["/", "/proc/1/root"];
/// Where the kubelet has the logs of pods, below a root.
const PODS: &str = "var/log/pods";
/// Where Docker has the logs of containers, below a root.
const DOCKER: &str = "var/lib/docker/containers";
/// No link is followed.
const NO_LINKS: ResolveFlag = ResolveFlag::RESOLVE_NO_SYMLINKS;
/// What the pods of agents have in their names.
const OURS: &str = "zt-agent";

/// Logs, each once, whichever way leads to it, and why there may be more of them.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) logs: Vec<File>,
    pub(super) unseen: Vec<String>,
}

/// Looks below these roots.
pub(super) fn find(roots: &[&Path]) -> Found {
    let mut found = Found::default();
    let mut known = HashSet::new();
    for root in roots {
        let below = Root::open(root).and_then(|root| root.logs());
        match below {
            Ok(logs) => {
                let new = logs.into_iter().filter(|log| {
                    let of = log.metadata();
                    of.is_ok_and(|of| of.is_file() && known.insert((of.dev(), of.ino())))
                });
                found.logs.extend(new);
            }
            Err(error) => found.unseen.push(format!(
                "{} cannot be looked at: {error}",
                root.join(PODS).display()
            )),
        }
    }
    found
}

/// A directory that paths start at and that nothing in them leads out of.
struct Root(File);

impl Root {
    fn open(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Opens a directory, or a regular file. A pod may write where logs are: nothing else is so much as opened for reading, and
    /// `links` says whether any is followed.
    fn at(&self, path: &Path, links: ResolveFlag) -> io::Result<File> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | links);
        let found: File = openat2(&self.0, path, how)?.into();
        let kind = found.metadata()?.file_type();
        if !kind.is_dir() && !kind.is_file() {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// What is in a directory, in order. It may go while one looks.
    fn below(&self, path: &Path, links: ResolveFlag) -> io::Result<Vec<PathBuf>> {
        let names = self.at(path, links).and_then(|directory| {
            let entries = fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
            Ok(entries
                .flatten()
                .map(|entry| entry.file_name())
                .collect::<Vec<OsString>>())
        });
        let mut paths: Vec<PathBuf> = match names {
            Ok(names) => names.into_iter().map(|name| path.join(name)).collect(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        paths.sort();
        Ok(paths)
    }

    /// `PODS/NAMESPACE_POD_UID/CONTAINER/NUMBER.log`, of agents.
    fn logs(&self) -> io::Result<Vec<File>> {
        let mut logs = Vec::new();
        // The machine's own: whoever set it up may have put it elsewhere.
        for pod in self.below(Path::new(PODS), ResolveFlag::empty())? {
            let name = pod.file_name().unwrap_or_default().to_string_lossy();
            if !name.contains(OURS) {
                continue;
            }
            let Ok(pods) = self.at(Path::new(PODS), ResolveFlag::empty()).map(Self) else {
                continue;
            };
            let pod = pod.file_name().map(PathBuf::from).unwrap_or_default();
            // What is not as it should be there is none of a pod's.
            for container in pods.below(&pod, NO_LINKS).unwrap_or_default() {
                let inside = pods.below(&container, NO_LINKS).unwrap_or_default();
                let is_log = |path: &PathBuf| path.extension().is_some_and(|end| end == "log");
                let inside = inside.into_iter().filter(is_log);
                logs.extend(inside.filter_map(|path| self.log(&pods, &path)));
            }
        }
        Ok(logs)
    }

    /// A log below the directory of pods' logs. Docker's is a link to where Docker has it; no other link is one to a log.
    fn log(&self, pods: &Self, path: &Path) -> Option<File> {
        if let Ok(log) = pods.at(path, NO_LINKS) {
            return Some(log);
        }
        let parent = pods.at(path.parent()?, NO_LINKS).ok()?;
        let name = Path::new(path.file_name()?);
        let link =
            fs::read_link(Path::new(&format!("/proc/self/fd/{}", parent.as_raw_fd())).join(name)).ok()?;
        let below = link.strip_prefix("/").ok()?;
        let (directory, file) = (below.parent()?, below.file_name()?.to_str()?);
        let container = directory.strip_prefix(DOCKER).ok()?.to_str()?;
        let is_id = !container.is_empty() && container.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_id && file.strip_prefix(container) == Some("-json.log")).then_some(())?;
        self.at(below, NO_LINKS).ok()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("mkdir");
        fs::write(path, text).expect("write");
    }

    fn texts(found: Found) -> Vec<String> {
        let read = |mut log: File| {
            let mut text = String::new();
            log.read_to_string(&mut text).expect("text");
            text
        };
        found.logs.into_iter().map(read).collect()
    }

    #[test]
    fn logs_of_agents_are_found_once_and_others_are_not() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path();
        assert!(find(&[root]).logs.is_empty(), "there are no pods");
        for (path, text) in [
            ("zt-system_zt-agent-x_1/agent/0.log", "ended"),
            ("zt-system_zt-agent-x_1/agent/1.log", "runs"),
            ("zt-system_zt-agent-x_1/agent/0.log.20261127.gz", "packed"),
            ("default_other_2/main/0.log", "another's"),
        ] {
            write(root, &format!("var/log/pods/{path}"), text);
        }
        let found = find(&[root, root]);
        assert!(found.unseen.is_empty(), "{found:?}");
        assert_eq!(texts(found), ["ended", "runs"]);
    }

    #[test]
    fn links_mean_what_they_mean_on_the_machine() {
        let root = tempfile::tempdir().expect("tempdir");
        let root = root.path();
        let agent = "var/log/pods/zt-system_zt-agent-x_1/agent";
        write(root, "var/lib/docker/containers/abc/abc-json.log", "Docker's");
        write(root, &format!("{agent}/1.log"), "its own");
        let log = root.join(agent).join("0.log");
        symlink("/var/lib/docker/containers/abc/abc-json.log", log).expect("a link");
        // Neither way out of it.
        let outside = tempfile::NamedTempFile::new().expect("a file");
        symlink(outside.path(), root.join(agent).join("2.log")).expect("a link");
        let up = format!("{}{}", "../".repeat(40), outside.path().display());
        symlink(up, root.join(agent).join("3.log")).expect("a link");
        // Nor to what is no log of a container, though it is there.
        write(root, "etc/key.log", "secret");
        write(root, "var/lib/docker/containers/abc/key-json.log", "secret");
        for (number, to) in [
            (5, "/etc/key.log"),
            (6, "/var/lib/docker/containers/abc/key-json.log"),
            (7, "../../../../../etc/key.log"),
        ] {
            symlink(to, root.join(agent).join(format!("{number}.log"))).expect("a link");
        }
        symlink("/etc", root.join("var/log/pods/zt-system_zt-agent-x_1/etc")).expect("a link");
        // And nothing that is waited for.
        nix::unistd::mkfifo(&root.join(agent).join("4.log"), nix::sys::stat::Mode::S_IRWXU).expect("a pipe");
        assert_eq!(texts(find(&[root])), ["Docker's", "its own"]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_told() {
        let found = find(&[Path::new("/nowhere")]);
        assert!(found.logs.is_empty());
        assert!(
            found.unseen[0].starts_with("/nowhere/var/log/pods cannot"),
            "{found:?}"
        );
    }
}
