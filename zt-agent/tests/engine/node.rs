// SPDX-License-Identifier: Apache-2.0
//! A node that follows an engine: what it takes from it, without the kernel.

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use zt_agent::identity::Mode;
use zt_agent::policy::{self, PolicySet, Settings};
use zt_agent::policy_follow::{self, FollowError, PolicyFollower, Start};
use zt_agent::state::{NodeModes, Snapshot, SourceStatus};

use super::world::eventually;

/// A node's way to its policy, without the kernel.
pub(crate) struct Node {
    pub(crate) snapshots: watch::Receiver<Arc<Snapshot>>,
    pub(crate) status: watch::Receiver<SourceStatus>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Node {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub(crate) fn settings(url: &str, name: &str, directory: &Path) -> policy_follow::Settings {
    policy_follow::Settings {
        url: url.to_owned(),
        node: name.to_owned(),
        policy: Settings::default(),
        directory: directory.to_path_buf(),
        tls: None,
    }
}

impl Node {
    pub(crate) async fn start(settings: policy_follow::Settings) -> Result<Self, FollowError> {
        let Start { follower, policies } = PolicyFollower::start(settings).await?;
        let status = follower.status();
        let (sender, snapshots) = zt_agent::state::channel(snapshot(1, policies));
        let (sink, mut documents) = mpsc::channel(1);
        let following = follower.run(sink, snapshots.clone());
        let task = tokio::spawn(async move {
            let in_force = async {
                while let Some(documents) = documents.recv().await {
                    let policies = policy::parse(&documents, &Settings::default()).expect("verified before");
                    let revision = sender.newest().revision + 1;
                    sender.publish(snapshot(revision, policies));
                }
            };
            tokio::join!(following, in_force);
        });
        Ok(Self {
            snapshots,
            status,
            task,
        })
    }

    pub(crate) fn digest(&self) -> String {
        self.snapshots.borrow().policies.digest().to_owned()
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.status.borrow().stale
    }

    /// Waits until this digest is in force, and known to be the engine's.
    pub(crate) async fn has(&self, digest: &str) {
        eventually("the node to converge", || async {
            (self.digest() == digest && !self.is_stale()).then_some(())
        })
        .await;
    }

    pub(crate) async fn becomes_stale(&self) {
        eventually("the node to say that it is stale", || async {
            self.is_stale().then_some(())
        })
        .await;
    }

    /// Answers that were refused for this.
    pub(crate) fn refused(&self, cause: &str) -> u64 {
        self.status
            .borrow()
            .refused
            .get(cause)
            .copied()
            .unwrap_or_default()
    }

    /// Waits until there are more than that.
    pub(crate) async fn refuses(&self, cause: &str, before: u64) {
        eventually(&format!("the refusal for `{cause}`"), || async {
            (self.refused(cause) > before).then_some(())
        })
        .await;
    }
}

fn snapshot(revision: u64, policies: PolicySet) -> Snapshot {
    let modes = NodeModes::new(Mode::Observe.into(), &policies, &Settings::default(), "node");
    Snapshot {
        revision,
        policies: Arc::new(policies),
        modes,
        ..Snapshot::default()
    }
}
