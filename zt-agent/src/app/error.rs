// SPDX-License-Identifier: Apache-2.0
//! Why the agent did not start, or stopped, and the exit code that goes with it.

use std::net::SocketAddr;
use std::time::Duration;

use crate::api;
use crate::audit::archive::ArchiveError;
use crate::cgroup::CgroupError;
use crate::identity::kubernetes::TemplateError;
use crate::identity::peers::RosterError;
use crate::kernel::KernelError;
use crate::kubernetes::ClientError;
use crate::policy::CompileError;
use crate::policy_cluster::ClusterError;
use crate::problem::Problem;
use crate::tls;

/// Why the agent did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The policy or the workloads cannot be used.
    #[error("{}", lines(problems))]
    Input {
        /// Each with its place.
        problems: Vec<Problem>,
    },
    /// The policy does not compile.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The kernel side.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The way to the Kubernetes API.
    #[error(transparent)]
    Kubernetes(#[from] ClientError),
    /// How pods are named.
    #[error("identity.template: {0}")]
    Template(#[from] TemplateError),
    /// The policies of the cluster.
    #[error(transparent)]
    ClusterPolicies(#[from] ClusterError),
    /// The cgroup tree.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The agent that runs was asked to hand over, and did not.
    #[error("{holder} was asked to hand over and has not ended after {} s: look at its log, and if it hangs, kill it (kill -9); the kernel goes on enforcing", patience.as_secs())]
    NotHandedOver {
        /// Who has the pins.
        holder: String,
        /// How long it was waited for.
        patience: Duration,
    },
    /// There is no policy to start with, though there is an engine to follow.
    #[error(transparent)]
    Follow(#[from] crate::policy_follow::FollowError),
    /// The audit store.
    #[error("audit.dsn: {0}")]
    Store(#[from] ArchiveError),
    /// The API.
    #[error(transparent)]
    Serve(#[from] api::ServeError),
    /// The certificates of the API.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The list of other nodes.
    #[error("identity.peers.nodes: {source}")]
    Roster {
        /// What is wrong with it.
        source: RosterError,
    },
    /// The address at which other agents reach this one.
    #[error("identity.peers.listen: cannot listen at {listen}: {source}; is another program there?")]
    Peers {
        /// The address.
        listen: SocketAddr,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A thread or signal handler of the agent.
    #[error("cannot {what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A part that must live as long as the agent ended.
    #[error("{part} ended unexpectedly; enforcement goes on in the kernel with the last good policy")]
    Ended {
        /// Which.
        part: &'static str,
    },
}

impl AppError {
    /// Whether what the operator wrote is at fault: nothing was started (exit code 64).
    pub fn is_input(&self) -> bool {
        matches!(
            self,
            Self::Input { .. }
                | Self::Compile(_)
                | Self::Tls(_)
                | Self::Kubernetes(_)
                | Self::Template(_)
                | Self::Roster { .. }
                | Self::ClusterPolicies(_)
                | Self::Serve(api::ServeError::NotLoopback { .. })
                | Self::Kernel(KernelError::TooLarge { .. })
        ) || matches!(self, Self::Store(error) if error.is_input())
    }

    /// Whether this host lacks something (exit code 77).
    pub fn is_unsupported(&self) -> bool {
        match self {
            Self::Kernel(error) => error.is_unsupported(),
            Self::Cgroup(_) => true,
            _ => false,
        }
    }
}

fn lines(problems: &[Problem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("\n")
}
