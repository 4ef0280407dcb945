// SPDX-License-Identifier: Apache-2.0
//! Follows the policies of a Kubernetes cluster: what its resources say together comes into force, whole or not at all, as
//! with the files of a directory.
//!
//! A resource that is not valid, and a cluster without any, change nothing: the last good policy stays in force, and the
//! resource's status says why. That policy is kept on disk, for a start without the API. While the API is not heard the
//! policy is called stale, and stays in force.

mod edit;
mod known;
mod report;
mod stopped;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::audit::clock;
use crate::kubernetes::policies::{ReadPolicy, collections};
use crate::kubernetes::{Client, Freshness, Said, Timing, Watches};
use crate::policy::{self, PolicySet, Problem, RESOURCES};
use crate::policy_dir::Contents;
use crate::policy_follow::copy::Copy;
use crate::state::{Snapshot, SourceStatus};

pub use self::edit::Kept;
pub use self::known::Known;
pub use self::report::{CountNodes, Hears, Reporter};
pub use self::stopped::told_by_engines;

/// How long a start waits for the API before it takes the copy on disk.
const START_TIME: Duration = Duration::from_secs(5);
/// How often it is looked whether the API is still heard.
const LOOK: Duration = Duration::from_secs(1);
/// Things said that may wait.
const QUEUE: usize = 1024;
/// What this source is called.
const NAME: &str = "kubernetes";

/// What a follower needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The API.
    pub client: Client,
    /// How long things may take there.
    pub timing: Timing,
    /// What documents are validated with.
    pub policy: policy::Settings,
    /// The directory that the copy on disk is kept in.
    pub directory: PathBuf,
}

/// Why there is no policy to start with.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// The API was not heard, and there is no copy.
    #[error("the policies of the cluster are not known: {why}; and there is no last good policy: {copy}")]
    Nothing {
        /// Why they are not.
        why: String,
        /// Why the copy on disk gave none.
        copy: String,
    },
    /// What the cluster has is not valid, and there is no copy.
    #[error("{}", .0.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))]
    Invalid(Vec<Problem>),
}

/// Follows the policies of a cluster.
#[derive(Debug)]
pub struct ClusterPolicies {
    said: [mpsc::Receiver<Said<ReadPolicy>>; RESOURCES.len()],
    watches: Watches,
    known: Known,
    told: watch::Sender<Arc<Known>>,
    /// What was sent last, or is in force from the start.
    sent: Option<Contents>,
    copy: Copy,
    /// Why the copy on disk cannot be written, as it was last said.
    not_kept: Option<String>,
    status: watch::Sender<SourceStatus>,
    /// The refusal that was counted last.
    refused: Option<Arc<Vec<Problem>>>,
}

/// What there is to start with.
#[derive(Debug)]
pub struct Start {
    /// Goes on from there.
    pub follower: ClusterPolicies,
    /// The policy of the cluster, or the last good one.
    pub policies: PolicySet,
}

impl ClusterPolicies {
    /// Asks the API for all policies; takes the last good ones from disk where it does not answer, or what it has is not
    /// valid.
    pub async fn start(settings: &Settings) -> Result<Start, ClusterError> {
        let mut watches = Watches::new(settings.client.clone(), settings.timing);
        let said = collections().map(|collection| watches.follow(collection, QUEUE));
        let mut follower = Self {
            said,
            watches,
            known: Known::default(),
            told: watch::channel(Arc::default()).0,
            sent: None,
            copy: Copy::new(&settings.directory),
            not_kept: None,
            status: watch::channel(SourceStatus::new(NAME, clock::now())).0,
            refused: None,
        };
        let heard = timeout(START_TIME, follower.first()).await.is_ok();
        follower.look();
        let why = if heard {
            let contents = follower.known.contents();
            let parsed = contents
                .0
                .clone()
                .and_then(|documents| policy::parse(&documents, &settings.policy));
            match parsed {
                Ok(policies) => {
                    follower.sent = Some(contents);
                    return Ok(Start { follower, policies });
                }
                Err(problems) => Err(problems),
            }
        } else {
            Ok(follower.why())
        };
        let policies = match (follower.copy.load(&settings.policy), why) {
            (Ok(policies), why) => {
                let policies = follower.gone_back(policies, &settings.policy);
                let why = match why {
                    Ok(why) => why,
                    Err(problems) => problems.first().map(ToString::to_string).unwrap_or_default(),
                };
                tracing::warn!(
                    digest = policies.digest(),
                    why,
                    "starting with the last good policy from disk, which may be old"
                );
                policies
            }
            // Nobody has made one yet: the first can be made over this agent's own API.
            (Err(copy), Err(_)) if copy.is_missing() && follower.known.is_empty() => {
                tracing::warn!(
                    "the cluster has no policy yet: nothing is allowed to whoever is enforced upon"
                );
                PolicySet::default()
            }
            (Err(_), Err(problems)) => return Err(ClusterError::Invalid(problems)),
            (Err(copy), Ok(why)) => {
                let copy = copy.to_string();
                return Err(ClusterError::Nothing { why, copy });
            }
        };
        Ok(Start { follower, policies })
    }

    /// How it stands with the API, as that changes.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// How following each collection stands.
    pub fn freshness(&self) -> Arc<Freshness> {
        Arc::clone(self.watches.freshness())
    }

    /// What the cluster has, as that changes.
    pub fn known(&self) -> watch::Receiver<Arc<Known>> {
        self.told.subscribe()
    }

    /// Sends all policies whenever one of them is another, until nobody listens. `snapshots` shows what comes into force.
    pub async fn run(mut self, sink: mpsc::Sender<Contents>, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let mut look = interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if self.known.is_whole() {
                let contents = self.known.contents();
                if self.sent.as_ref() != Some(&contents) {
                    self.sent = Some(contents.clone());
                    if sink.send(contents).await.is_err() {
                        return;
                    }
                }
            }
            let [services, operators, rollouts] = &mut self.said;
            let (kind, said) = tokio::select! {
                Some(said) = services.recv() => (0, said),
                Some(said) = operators.recv() => (1, said),
                Some(said) = rollouts.recv() => (2, said),
                changed = snapshots.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    self.settled(&snapshot).await;
                    continue;
                }
                _ = look.tick() => {
                    self.look();
                    continue;
                }
                () = sink.closed() => return,
            };
            self.take(kind, said);
        }
    }

    /// Takes what is said until everything was listed.
    async fn first(&mut self) {
        while !self.known.is_whole() {
            let [services, operators, rollouts] = &mut self.said;
            let (kind, said) = tokio::select! {
                Some(said) = services.recv() => (0, said),
                Some(said) = operators.recv() => (1, said),
                Some(said) = rollouts.recv() => (2, said),
                // The watches are gone: there is nothing to wait for.
                else => std::future::pending().await,
            };
            self.take(kind, said);
        }
    }

    fn take(&mut self, kind: usize, said: Said<ReadPolicy>) {
        self.known.take(kind, said);
        // What is there already is one change.
        for (kind, waiting) in self.said.iter_mut().enumerate() {
            while let Ok(said) = waiting.try_recv() {
                self.known.take(kind, said);
            }
        }
        self.told.send_replace(Arc::new(self.known.clone()));
    }

    /// The copy on disk, with its rollout back where that is what the cluster says of it beside what is not valid: an agent that
    /// begins with the stage before would end, until it has read on, what may go on.
    fn gone_back(&self, copy: PolicySet, settings: &policy::Settings) -> PolicySet {
        let said = self.known.is_whole().then(|| self.known.contents().0.ok());
        let back = said.flatten().and_then(|said| copy.gone_back(&said, settings));
        back.unwrap_or(copy)
    }

    /// Something else is in force, or was refused.
    async fn settled(&mut self, snapshot: &Snapshot) {
        // Also where the cluster says something else that is not valid: a rollout may have gone back beside it.
        if snapshot.revision > 0 && self.known.is_whole() {
            self.keep(&snapshot.policies).await;
        }
        let Some(error) = &snapshot.policy_error else {
            return;
        };
        let told = self.refused.as_ref();
        if told.is_none_or(|before| !Arc::ptr_eq(before, error)) {
            self.refused = Some(Arc::clone(error));
            let cause = if self.known.is_empty() { "empty" } else { "invalid" };
            self.status
                .send_modify(|status| *status.refused.entry(cause).or_default() += 1);
        }
    }

    /// Keeps what is in force for a start without the API.
    async fn keep(&mut self, policies: &Arc<PolicySet>) {
        if policies.all().is_empty() {
            return;
        }
        let text = match self.copy.keep(NAME, Arc::clone(policies)).await {
            Ok(()) => {
                self.not_kept = None;
                return;
            }
            Err(error) => error.to_string(),
        };
        // Said once for each reason, not at each attempt.
        if self.not_kept.as_ref() != Some(&text) {
            tracing::error!(
                "the last good policy cannot be kept on disk: a start without the Kubernetes API would have an older one, or none: {text}"
            );
            self.not_kept = Some(text);
        }
        self.status
            .send_modify(|status| *status.refused.entry("copy_not_written").or_default() += 1);
    }

    /// Looks whether the API is heard.
    fn look(&self) {
        let all = self.watches.freshness().all();
        let worst = all.iter().map(|(_, status)| status).filter(|status| status.stale);
        let worst = worst.min_by_key(|status| status.since);
        let failures = all.iter().map(|(_, status)| status.failures).sum();
        let since = all.iter().map(|(_, status)| status.since).max();
        self.status.send_modify(|status| {
            status.failures = failures;
            status.stale = worst.is_some();
            status.error = worst.and_then(|worst| worst.error.clone());
            if let Some(worst) = worst {
                status.since = worst.since;
            } else {
                status.since = since.unwrap_or(status.since);
                status.confirmed = Some(clock::now());
            }
        });
    }

    fn why(&self) -> String {
        let status = self.status.borrow();
        status
            .error
            .as_deref()
            .unwrap_or("the API has not answered yet")
            .to_owned()
    }
}
