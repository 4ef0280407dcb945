// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with the demo itself, as opposed to what it shows.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::cgroup::CgroupError;
use crate::cli::Exit;
use crate::cli::client::ClientError;
use crate::config::ConfigError;

/// Why the demo cannot begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// It makes cgroups and network namespaces, and loads programs.
    #[error(
        "this makes cgroups and network namespaces and loads programs into the kernel, which needs root: run it with `sudo`"
    )]
    NotRoot,
    /// The world is built with `ip`.
    #[error(
        "its network is built with the `ip` command, which is missing: run `apt-get install iproute2` \
         (or `dnf install iproute`, `apk add iproute2`)"
    )]
    NoIp,
    /// Both families are tried.
    #[error(
        "this kernel has no IPv6 (ipv6.disable=1, or net.ipv6.conf.all.disable_ipv6), which is tried too: boot it with IPv6"
    )]
    NoIpv6,
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

    /// The exit code that goes with it.
    pub fn exit(&self) -> Exit {
        match self {
            Self::NotRoot
            | Self::NoIp
            | Self::NoIpv6
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
