// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between the agent and the kernel, and what to do about it.

use std::io;
use std::path::PathBuf;

/// An error of the kernel side.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The process may not do what enforcement needs.
    #[error(
        "missing privilege: {capability} ({purpose}); run as root, or grant the capabilities that deploy/zt-agent.service lists"
    )]
    Privilege {
        /// Which capability.
        capability: &'static str,
        /// What it is needed for.
        purpose: &'static str,
    },
    /// The kernel lacks something.
    #[error(
        "the kernel lacks {missing}: {cause}; zt needs Linux 6.1 or later with CONFIG_CGROUP_BPF, CONFIG_BPF_SYSCALL and CONFIG_INET_DIAG_DESTROY"
    )]
    Missing {
        /// What is missing.
        missing: String,
        /// How the kernel said so.
        cause: String,
    },
    /// A program did not load.
    #[error("program {program} does not load: {cause}")]
    Load {
        /// Its name.
        program: &'static str,
        /// The verifier's or kernel's words.
        cause: String,
    },
    /// A hook could not be attached.
    #[error("cannot attach {program} to {}: {source}; if another tool attached a program there without BPF_F_ALLOW_MULTI, it must go first (bpftool cgroup tree {})", cgroup.display(), cgroup.display())]
    Attach {
        /// The program's name.
        program: &'static str,
        /// The cgroup.
        cgroup: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A link stays where it is.
    #[error(
        "cannot detach the link {}: {source}; its pin goes all the same, and its hook with the last process that holds it: stop the agent that runs, or take the link off with `bpftool link detach id ID` (`bpftool link show` has the id)",
        pin.display()
    )]
    Detach {
        /// Where it is pinned.
        pin: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It cannot be said that pins are removed on purpose.
    #[error(
        "cannot rename {}, by which an agent that runs would see that it was removed on purpose: {source}; it puts back what is detached: stop it, see that the BPF file system may be written to there, and run this again",
        directory.display()
    )]
    Unmarked {
        /// The directory of a version.
        directory: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A map is not what it should be.
    #[error("map {map}: {cause}; if it was pinned by another build, remove it with `zt-agent detach`")]
    Map {
        /// Its name.
        map: &'static str,
        /// What happened.
        cause: String,
    },
    /// The policy's table does not fit.
    #[error(
        "the policy compiles to {needed} entries, and a table holds at most {limit}: the table in force stays"
    )]
    TooLarge {
        /// Entries asked for.
        needed: usize,
        /// Entries that fit.
        limit: usize,
    },
    /// What shall be in a map does not fit.
    #[error(
        "{needed} entries are wanted in {map}, and {limit} fit: as many as fit are there, and what is no longer so was taken out; declare fewer workloads or addresses on this node"
    )]
    TooMany {
        /// The map's name.
        map: &'static str,
        /// Entries asked for.
        needed: usize,
        /// Entries that fit.
        limit: usize,
    },
    /// Another agent works where the pins were.
    #[error(
        "the pins' directory {} was gone for a moment, and {holder} has been started on it since: two agents enforce, each by its own maps; end that one, and this one pins again",
        directory.display()
    )]
    Displaced {
        /// The directory.
        directory: PathBuf,
        /// Who has it.
        holder: String,
    },
    /// A file operation failed.
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A netlink or namespace operation failed.
    #[error("{what}: {source}")]
    Network {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

impl KernelError {
    /// A closure that wraps an I/O error.
    pub(super) fn io(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { what, path, source }
    }

    /// A closure that wraps an error of a map.
    pub(super) fn map<E: std::fmt::Display>(map: &'static str) -> impl FnOnce(E) -> Self {
        move |cause| Self::Map {
            map,
            cause: cause.to_string(),
        }
    }

    /// Whether this is the host's lack rather than a passing failure (exit code 77).
    pub fn is_unsupported(&self) -> bool {
        matches!(
            self,
            Self::Privilege { .. } | Self::Missing { .. } | Self::Load { .. } | Self::Attach { .. }
        )
    }
}
