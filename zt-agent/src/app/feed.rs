// SPDX-License-Identifier: Apache-2.0
//! Where policy comes from: a directory, an engine, or a Kubernetes cluster.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::AppError;
use crate::api::{PolicyStore, ToldElsewhere};
use crate::config::{Config, PolicySource};
use crate::kubernetes::{Client, Timing};
use crate::metrics::Metrics;
use crate::policy::{self, PolicySet};
use crate::policy_cluster::{self, ClusterPolicies, Kept};
use crate::policy_dir::{self, Contents, Editor};
use crate::policy_follow::{self, PolicyFollower};
use crate::state::{Snapshot, SourceStatus};
use crate::watch::Follower;

/// What it takes to follow the engine that policy comes from, if it comes from one.
pub fn engine_to_follow(config: &Config) -> Option<policy_follow::Settings> {
    let url = config.engine_url.as_ref();
    let url = url.filter(|_| config.policy_source == PolicySource::Engine)?;
    let tls = config.api.tls.all().map(|(cert, key, ca)| policy_follow::Tls {
        cert: cert.clone(),
        key: key.clone(),
        ca: ca.clone(),
    });
    Some(policy_follow::Settings {
        url: url.clone(),
        node: config.node.clone(),
        policy: config.policy_settings(),
        directory: config.state_directory(),
        tls,
    })
}

/// What tells of new policy.
pub(super) enum PolicyFeed {
    Directory(Box<Follower<Contents>>),
    Engine(Box<PolicyFollower>),
    Cluster(Box<ClusterPolicies>),
}

impl PolicyFeed {
    /// Begins to follow the configured source; the policy to start with.
    pub(super) async fn open(
        config: &Config,
        kubernetes: Option<&Client>,
    ) -> Result<(Self, PolicySet), AppError> {
        let bad = |problems| AppError::Input { problems };
        if let (PolicySource::Kubernetes, Some(client)) = (config.policy_source, kubernetes) {
            let settings = policy_cluster::Settings {
                client: client.clone(),
                timing: Timing::default(),
                policy: config.policy_settings(),
                directory: config.state_directory(),
            };
            let start = ClusterPolicies::start(&settings).await?;
            return Ok((Self::Cluster(Box::new(start.follower)), start.policies));
        }
        if let Some(settings) = engine_to_follow(config) {
            let start = PolicyFollower::start(settings).await?;
            return Ok((Self::Engine(Box::new(start.follower)), start.policies));
        }
        let (follower, contents) = policy_dir::follow(config.policy_path.clone());
        let policies = policy::parse(&contents.0.map_err(bad)?, &config.policy_settings()).map_err(bad)?;
        Ok((Self::Directory(Box::new(follower)), policies))
    }

    /// What is known of the engine, where there is one; the metrics tell it too.
    pub(super) fn status(&self, metrics: &Metrics) -> Option<watch::Receiver<SourceStatus>> {
        let status = match self {
            Self::Directory(_) => return None,
            Self::Engine(follower) => follower.status(),
            Self::Cluster(follower) => follower.status(),
        };
        metrics.read_source(status.clone());
        Some(status)
    }

    /// Where policies are kept, and what changes them there.
    pub(super) fn editor(&self, config: &Config, kubernetes: Option<&Client>) -> (PolicyStore, Editor) {
        let settings = config.policy_settings();
        match (self, kubernetes) {
            (Self::Cluster(_), Some(client)) => {
                let kept = Arc::new(Kept::new(client.clone()));
                (PolicyStore::Kubernetes, Editor::of_store(kept, settings))
            }
            (Self::Engine(_), _) => (
                PolicyStore::Engine,
                Editor::new(config.policy_path.clone(), settings),
            ),
            _ => (
                PolicyStore::Directory,
                Editor::new(config.policy_path.clone(), settings),
            ),
        }
    }

    /// What policy engines say of their nodes, where the cluster keeps the policies; not what the one called `own` says.
    pub(super) fn stopped_elsewhere(&self, own: Option<&str>) -> Option<Box<ToldElsewhere>> {
        let Self::Cluster(follower) = self else {
            return None;
        };
        let (known, own) = (follower.known(), own.map(str::to_owned));
        Some(Box::new(move || {
            let known = Arc::clone(&known.borrow());
            policy_cluster::told_by_engines(&known, own.as_deref())
        }))
    }

    /// Sends new policy until nobody wants it any more.
    pub(super) async fn run(self, sink: mpsc::Sender<Contents>, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let follower = match self {
            Self::Directory(follower) => return follower.run(sink).await,
            Self::Cluster(follower) => return follower.run(sink, snapshots).await,
            Self::Engine(follower) => follower,
        };
        let (sender, mut documents) = mpsc::channel(1);
        let forward = async {
            while let Some(documents) = documents.recv().await {
                if sink.send(Contents(Ok(documents))).await.is_err() {
                    break;
                }
            }
            // The follower ends with its receiver.
            drop(documents);
        };
        tokio::join!(follower.run(sender, snapshots), forward);
    }
}
