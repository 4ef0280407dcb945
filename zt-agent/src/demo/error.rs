// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the demo itself, as opposed to what it shows.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::CgroupError;
use crate::cli::Exit;
use crate::cli::client::ClientError;
use crate::config::ConfigError;
use crate::kernel::KernelError;

/// Why the demo cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// It makes cgroups and network namespaces, and loads programs.
    #[error(
        "this makes cgroups and network namespaces and loads programs into the kernel, which needs root: run it with `sudo`"
    )]
    NotRoot,
    /// A capability is missing that its agent needs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The kernel has no interfaces of a kind that its network is made of.
    #[error(
        "this kernel makes no interfaces of the kind `{kind}`: run `modprobe {kind}` on the host, and see whether it has CONFIG_{}",
        .kind.to_uppercase()
    )]
    NoSuchLinks {
        /// `bridge` or `veth`.
        kind: &'static str,
    },
    /// A container has no directory that something could be mounted on.
    #[error(
        "{path} cannot be made: the file system is read-only, and none of its directories is there to mount a tmpfs on; mount a \
         writable volume there"
    )]
    NoPlace {
        /// What cannot be made.
        path: PathBuf,
    },
    /// Something keeps root from what a container's world is made with.
    #[error(
        "cannot {what}: {source}; what is allowed here may be less than root's capabilities: see whether AppArmor, SELinux or seccomp \
         refuses it, or run this on the host"
    )]
    Ground {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration that is to be tried is bad.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no cgroup2 hierarchy.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// bpffs cannot be mounted.
    #[error(
        "cannot mount bpffs ({source}): run `mount -t bpf bpf /sys/fs/bpf`, and see whether the kernel has CONFIG_BPF_SYSCALL"
    )]
    Bpffs {
        /// What the kernel said.
        source: io::Error,
    },
    /// A file, directory or process could not be dealt with.
    #[error("cannot {what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A command failed.
    #[error("`{command}` failed: {output}")]
    Command {
        /// Which.
        command: String,
        /// What it said.
        output: String,
    },
    /// A workload ended, or said something strange.
    #[error("the workload {who} {message}; see {log}")]
    Workload {
        /// Which.
        who: &'static str,
        /// What happened.
        message: String,
        /// Where its output is.
        log: String,
    },
    /// The agent ended, or never became ready.
    #[error("the agent {message}; its last output:\n{log}")]
    Agent {
        /// What happened.
        message: String,
        /// The kernel or a privilege is missing.
        unavailable: bool,
        /// The end of its log.
        log: String,
    },
    /// The agent could not be asked.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Something took too long.
    #[error("still waiting after {deadline:?} for {what}")]
    Late {
        /// For what.
        what: String,
        /// How long.
        deadline: Duration,
    },
    /// Nobody reads what the demo says any more.
    #[error("cannot print: {0}")]
    Print(io::Error),
}

impl DemoError {
    /// For `map_err`: `what` was tried, such as "make the cgroup /x".
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// [`Self::io`] with a path at the end.
    pub(super) fn at(what: &str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        Self::io(format!("{what} {}", path.display()))
    }

    /// [`Self::io`] of what the place may not allow.
    pub(super) fn ground(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Self {
        let what = what.into();
        move |errno| Self::Ground {
            what,
            source: errno.into(),
        }
    }

    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotRoot
            | Self::Kernel(_)
            | Self::NoSuchLinks { .. }
            | Self::NoPlace { .. }
            | Self::Ground { .. }
            | Self::Cgroup(_)
            | Self::Bpffs { .. }
            | Self::Agent {
                unavailable: true, ..
            } => Exit::Unavailable,
            Self::Config(_) => Exit::Invalid,
            _ => Exit::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn what_a_place_does_not_allow_is_no_failure_of_what_is_tried() {
        let error = DemoError::ground("make /x writable")(Errno::EACCES);
        assert_eq!(error.exit(), Exit::Unavailable);
        let text = error.to_string();
        assert!(text.starts_with("cannot make /x writable: "), "{text}");
        for guard in ["AppArmor", "SELinux", "seccomp"] {
            assert!(text.contains(guard), "{text}");
        }
    }
}
