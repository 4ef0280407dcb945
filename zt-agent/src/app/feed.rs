// SPDX-License-Identifier: Apache-2.0
//! Where policy comes from: a directory, or an engine.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::AppError;
use crate::config::{Config, PolicySource};
use crate::metrics::Metrics;
use crate::policy::{self, PolicySet};
use crate::policy_dir::{self, Contents};
use crate::policy_follow::{self, PolicyFollower};
use crate::state::{Snapshot, SourceStatus};
use crate::watch::Follower;

/// What tells of new policy.
pub(super) enum PolicyFeed {
    Directory(Box<Follower<Contents>>),
    Engine(Box<PolicyFollower>),
}

impl PolicyFeed {
    /// Begins to follow the configured source; the policy to start with.
    pub(super) async fn open(config: &Config) -> Result<(Self, PolicySet), AppError> {
        if let (PolicySource::Engine, Some(url)) = (config.policy_source, &config.engine_url) {
            let tls = config.api.tls.all().map(|(cert, key, ca)| policy_follow::Tls {
                cert: cert.clone(),
                key: key.clone(),
                ca: ca.clone(),
            });
            let settings = policy_follow::Settings {
                url: url.clone(),
                node: config.node.clone(),
                policy: config.policy_settings(),
                directory: config.state_directory(),
                tls,
            };
            let start = PolicyFollower::start(settings).await?;
            return Ok((Self::Engine(Box::new(start.follower)), start.policies));
        }
        let (follower, contents) = policy_dir::follow(config.policy_path.clone());
        let bad = |problems| AppError::Input { problems };
        let policies = policy::parse(&contents.0.map_err(bad)?, &config.policy_settings()).map_err(bad)?;
        Ok((Self::Directory(Box::new(follower)), policies))
    }

    /// What is known of the engine, where there is one; the metrics tell it too.
    pub(super) fn status(&self, metrics: &Metrics) -> Option<watch::Receiver<SourceStatus>> {
        let Self::Engine(follower) = self else {
            return None;
        };
        metrics.read_source(follower.status());
        Some(follower.status())
    }

    /// Sends new policy until nobody wants it any more.
    pub(super) async fn run(self, sink: mpsc::Sender<Contents>, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let follower = match self {
            Self::Directory(follower) => return follower.run(sink).await,
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
