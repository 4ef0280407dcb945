// SPDX-License-Identifier: Apache-2.0
//! What the operator wrote: policy, workloads, the managed cgroups.

use std::path::PathBuf;
use std::time::Duration;

use zt_common::control::MAX_ROOTS;

use super::AppError;
use super::feed::PolicyFeed;
use super::node;
use crate::cgroup;
use crate::config::{Config, IdentitySource, PolicySource};
use crate::identity::{WorkloadRecord, file as identity_file};
use crate::kubernetes;
use crate::policy::PolicySet;
use crate::problem::Problem;
use crate::watch::Follower;

/// How long the Kubernetes API may take for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// What the operator wrote, read before anything is touched.
pub(super) struct Input {
    pub(super) policies: PolicySet,
    pub(super) policy_feed: PolicyFeed,
    pub(super) records: Vec<WorkloadRecord>,
    /// `None` where no identity comes from a file.
    pub(super) workload_follower: Option<Follower<identity_file::Contents>>,
    pub(super) mount: PathBuf,
    pub(super) root_paths: Vec<PathBuf>,
    /// The way to the Kubernetes API, where something comes from there.
    pub(super) kubernetes: Option<kubernetes::Client>,
}

/// The way to the Kubernetes API, where something comes from there.
pub(super) async fn kubernetes(config: &Config) -> Result<Option<kubernetes::Client>, AppError> {
    let wanted =
        config.policy_source == PolicySource::Kubernetes || config.identity.has(IdentitySource::Kubernetes);
    if !wanted {
        return Ok(None);
    }
    let client = kubernetes::Client::new(config.kubeconfig.as_deref(), PATIENCE).await?;
    Ok(Some(client))
}

impl Input {
    pub(super) async fn read(config: &Config) -> Result<Self, AppError> {
        let bad = |problems| AppError::Input { problems };
        let kubernetes = kubernetes(config).await?;
        let (policy_feed, policies) = PolicyFeed::open(config, kubernetes.as_ref()).await?;
        let mount = cgroup::mount_point()?;
        let root_paths = config.managed_cgroup.roots();
        if root_paths.len() > MAX_ROOTS {
            return Err(bad(vec![Problem {
                file: "configuration".into(),
                line: 0,
                column: 0,
                field: "managedCgroup".into(),
                message: format!(
                    "names {} cgroups; a node has at most {MAX_ROOTS}",
                    root_paths.len()
                ),
            }]));
        }
        let (mut workload_follower, mut records) = (None, Vec::new());
        if config.identity.has(IdentitySource::File) {
            let (follower, contents) = identity_file::follow(config.identity.file.clone());
            records = node::read_workloads(&contents, config, &root_paths).map_err(bad)?;
            workload_follower = Some(follower);
        }
        Ok(Self {
            policies,
            policy_feed,
            records,
            workload_follower,
            mount,
            root_paths,
            kubernetes,
        })
    }
}
