// SPDX-License-Identifier: Apache-2.0
//! Follows a policy engine over its API: what the engine has in force comes into force here, whole or not at all.
//!
//! An engine is believed about policy and about nothing else. An answer whose digest is not that of its documents, whose
//! documents are not valid here, that is empty, too long or too slow changes nothing: it is refused, counted and said. What
//! came into force is kept on disk, for a start without the engine. A policy that the engine has not confirmed is called
//! stale, and stays in force.

mod ask;
mod copies;
pub(crate) mod copy;
mod fetch;
mod pace;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, timeout};

use crate::audit::clock;
use crate::cli::client::EventStream;
use crate::policy::{self, Document, PolicySet};
use crate::state::{REPORT_EVERY, SOURCE_REFUSALS, Snapshot, SourceStatus};

pub use self::ask::{Answered, Asked, ask};
pub use self::copies::Copies;
pub use self::copy::COPY;
pub use self::fetch::{FollowError, Tls};

use self::copy::Copy;
use self::fetch::{Engine, Fetched};
use self::pace::Pace;
use self::report::{older, report};

/// How long a start tries to reach the engine before it takes the copy on disk.
const START_TIME: Duration = Duration::from_secs(5);
/// An engine that says nothing for this long is gone: it sends heartbeats every five seconds.
const SILENCE: Duration = Duration::from_secs(16);
/// How long a policy may take to come into force.
const IN_FORCE_TIME: Duration = Duration::from_secs(30);
/// Behind one name there may be several engines, and the one that answers may not have yet what another announced.
const CATCH_UP_TIME: Duration = Duration::from_secs(15);
const CATCH_UP_PAUSE: Duration = Duration::from_millis(50);

/// What a follower needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The engine.
    pub url: String,
    /// This node, as it reports itself.
    pub node: String,
    /// What documents are validated with.
    pub policy: policy::Settings,
    /// The directory that the copy on disk is kept in.
    pub directory: PathBuf,
    /// With https: what is shown, and who is believed.
    pub tls: Option<Tls>,
}

/// Follows one engine.
#[derive(Debug)]
pub struct PolicyFollower {
    settings: Settings,
    engine: Engine,
    copy: Copy,
    status: watch::Sender<SourceStatus>,
    pace: Pace,
    /// When the engine of this feed was told last, and what.
    reported: Option<(Instant, Value)>,
    /// The digest that the node was given and did not put in force.
    unusable: Option<String>,
    /// Why the engine does not take reports, as it was last said.
    report_refused: Option<String>,
    /// Why the copy on disk cannot be written, as it was last said.
    not_kept: Option<String>,
}

/// What there is to start with.
#[derive(Debug)]
pub struct Start {
    /// Goes on from there.
    pub follower: PolicyFollower,
    /// The policy of the engine, or the last good one.
    pub policies: PolicySet,
}

/// An event of the feed.
#[derive(Debug, Deserialize)]
struct Announced {
    revision: u64,
    digest: String,
}

impl PolicyFollower {
    /// Asks the engine for its policy; takes the last good one from disk if it cannot be had.
    pub async fn start(settings: Settings) -> Result<Start, FollowError> {
        let engine = Engine::new(&settings);
        let copy = Copy::new(&settings.directory);
        let (status, _) = watch::channel(SourceStatus::new(&settings.url, clock::now()));
        let mut follower = Self {
            settings,
            engine,
            copy,
            status,
            pace: Pace::default(),
            reported: None,
            unusable: None,
            report_refused: None,
            not_kept: None,
        };
        let first = match timeout(START_TIME, follower.first()).await {
            Ok(fetched) => Ok(fetched),
            Err(_) => Err(follower.last_error()),
        };
        let policies = match first {
            Ok(fetched) => {
                follower.confirmed(fetched.revision);
                fetched.policies
            }
            Err(error) => {
                let copied = follower.copy.load(&follower.settings.policy);
                let kept = copied.map_err(|copy| {
                    let (url, copy) = (follower.settings.url.clone(), copy.to_string());
                    FollowError::Nothing {
                        url,
                        error: error.to_string(),
                        copy,
                    }
                })?;
                tracing::warn!(
                    engine = follower.settings.url, digest = kept.digest(), why = %error,
                    "starting with the last good policy from disk, which may be old"
                );
                kept
            }
        };
        Ok(Start { follower, policies })
    }

    /// What is known of the engine, as it changes.
    pub fn status(&self) -> watch::Receiver<SourceStatus> {
        self.status.subscribe()
    }

    /// Sends each new policy of the engine into `sink` until its receiver is gone. `snapshots` shows what comes into force.
    pub async fn run(mut self, sink: mpsc::Sender<Vec<Document>>, snapshots: watch::Receiver<Arc<Snapshot>>) {
        let closed = sink.clone();
        let following = async move {
            // What the node started with, if it came from the engine, is good and in force.
            if !self.status.borrow().stale {
                self.keep(&snapshots).await;
            }
            loop {
                if let Err(error) = self.follow(&sink, &snapshots).await {
                    self.lost(&error);
                }
                tokio::time::sleep(self.pace.next()).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = closed.closed() => {}
        }
    }

    /// The first answer that is good, however long that takes.
    async fn first(&mut self) -> Fetched {
        loop {
            match self.engine.fetch().await {
                Ok(fetched) => return fetched,
                Err(error) => self.lost(&error),
            }
            tokio::time::sleep(self.pace.next()).await;
        }
    }

    fn last_error(&self) -> FollowError {
        let status = self.status.borrow();
        let why = status.error.as_deref().unwrap_or("it does not answer");
        FollowError::Unreachable {
            url: self.settings.url.clone(),
            cause: why.to_owned(),
        }
    }

    /// Follows the feed of one connection, until it breaks.
    async fn follow(
        &mut self,
        sink: &mpsc::Sender<Vec<Document>>,
        snapshots: &watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), FollowError> {
        let mut feed = self.engine.feed().await?;
        // It may be another one, or one that was restarted and has heard of nobody.
        self.reported = None;
        loop {
            let announced = self.next(&mut feed).await?;
            self.catch_up(&announced, &mut feed, sink, snapshots).await?;
            self.report(snapshots).await;
        }
    }

    async fn next(&self, feed: &mut EventStream) -> Result<Announced, FollowError> {
        let url = || self.settings.url.clone();
        let event = match timeout(SILENCE, feed.next()).await {
            Ok(Ok(Some(event))) => event,
            Ok(Ok(None)) => return Err(FollowError::Ended { url: url() }),
            Ok(Err(error)) => return Err(FollowError::of(&self.settings.url, error)),
            Err(_) => return Err(FollowError::Silent { url: url() }),
        };
        serde_json::from_str(&event.data).map_err(|_| FollowError::NotAnEngine { url: url() })
    }

    /// Brings what was announced into force, if it is not.
    async fn catch_up(
        &mut self,
        announced: &Announced,
        feed: &mut EventStream,
        sink: &mpsc::Sender<Vec<Document>>,
        snapshots: &watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), FollowError> {
        let deadline = Instant::now() + CATCH_UP_TIME;
        let mut wanted = Announced {
            revision: announced.revision,
            digest: announced.digest.clone(),
        };
        loop {
            if snapshots.borrow().policies.digest() == wanted.digest {
                self.unusable = None;
                self.confirmed(wanted.revision);
                // A copy that could not be written is tried again with each word of the engine.
                self.keep(snapshots).await;
                return Ok(());
            }
            // Asking again would give the same: until the engine says something else, the last good one stays.
            if self.unusable.as_ref() == Some(&wanted.digest) {
                return Ok(());
            }
            let fetched = self.engine.fetch().await?;
            if fetched.policies.digest() == wanted.digest {
                self.put_in_force(fetched, sink, snapshots).await?;
                continue;
            }
            if Instant::now() >= deadline {
                return Err(FollowError::Disagreement {
                    url: self.settings.url.clone(),
                    announced: wanted.digest,
                    found: fetched.policies.digest().to_owned(),
                });
            }
            // Another engine's answer, or one that is newer than the announcement: the next one tells.
            if let Ok(newer) = timeout(CATCH_UP_PAUSE, self.next(feed)).await {
                wanted = newer?;
            }
        }
    }

    async fn put_in_force(
        &mut self,
        fetched: Fetched,
        sink: &mpsc::Sender<Vec<Document>>,
        snapshots: &watch::Receiver<Arc<Snapshot>>,
    ) -> Result<(), FollowError> {
        let mut snapshots = snapshots.clone();
        let before = snapshots.borrow_and_update().policy_error.clone();
        let wanted = fetched.policies.digest().to_owned();
        if sink.send(fetched.documents).await.is_err() {
            // The node is stopping, and so will this.
            return std::future::pending().await;
        }
        let settled = snapshots.wait_for(|snapshot| {
            let error = snapshot.policy_error.as_ref();
            let refused = error.is_some_and(|new| before.as_ref().is_none_or(|old| !Arc::ptr_eq(old, new)));
            snapshot.policies.digest() == wanted || refused
        });
        let settled = timeout(IN_FORCE_TIME, settled).await;
        let settled = settled.map(|ended| ended.map(|snapshot| snapshot.policies.digest() == wanted));
        let in_force = match settled {
            Ok(Ok(in_force)) => in_force,
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => false,
        };
        if in_force {
            return Ok(());
        }
        self.unusable = Some(wanted.clone());
        Err(FollowError::Unusable {
            url: self.settings.url.clone(),
            digest: wanted,
        })
    }

    /// Keeps what is in force for a start without the engine.
    async fn keep(&mut self, snapshots: &watch::Receiver<Arc<Snapshot>>) {
        let policies = Arc::clone(&snapshots.borrow().policies);
        let Err(error) = self.copy.keep(&self.settings.url, policies).await else {
            self.not_kept = None;
            return;
        };
        let text = error.to_string();
        // Said once for each reason, not at each attempt.
        if self.not_kept.as_ref() != Some(&text) {
            tracing::error!(
                "the last good policy cannot be kept on disk: a start without the engine would have an older one, or none: {text}"
            );
            self.not_kept = Some(text);
        }
        self.status
            .send_modify(|status| *status.refused.entry("copy_not_written").or_default() += 1);
    }

    /// Tells the engine what is in force here. It is for people to see: a report that is lost changes nothing.
    async fn report(&mut self, snapshots: &watch::Receiver<Arc<Snapshot>>) {
        let snapshot = Arc::clone(&snapshots.borrow());
        let body = report(&snapshot);
        let told = self.reported.as_ref();
        if told.is_some_and(|(at, before)| at.elapsed() < REPORT_EVERY && *before == body) {
            return;
        }
        let node = &self.settings.node;
        let mut told = self.engine.report(node, &body).await;
        // One of an older version refuses what it does not know.
        let is_older = matches!(&told, Err(error) if error.is_not_understood());
        if let Some(body) = older(&body).filter(|_| is_older) {
            told = self.engine.report(node, &body).await;
        }
        match told {
            Ok(()) => {
                self.report_refused = None;
                self.reported = Some((Instant::now(), body));
            }
            Err(error) => self.report_failed(&error),
        }
    }

    /// An engine that does not take reports is no reason not to follow it: said once, for whoever set it up.
    fn report_failed(&mut self, error: &FollowError) {
        let text = error.to_string();
        if matches!(error, FollowError::Refused { .. }) && self.report_refused.as_ref() != Some(&text) {
            tracing::warn!(
                node = self.settings.node,
                "this node follows, and its reports are not taken: {text}"
            );
            self.report_refused = Some(text);
        } else {
            tracing::debug!(%error, "the engine did not take the report of this node");
        }
    }

    /// What is in force is the engine's policy.
    fn confirmed(&mut self, revision: u64) {
        self.pace.reset();
        let now = clock::now();
        self.status.send_modify(|status| {
            if status.stale && status.error.is_some() {
                tracing::info!(engine = %status.url, revision, "the policy in force is the engine's again");
            }
            if status.stale {
                status.since = now;
            }
            status.stale = false;
            status.error = None;
            status.confirmed = Some(now);
            status.revision = Some(revision);
        });
    }

    /// The engine was lost, or its answer refused.
    fn lost(&mut self, error: &FollowError) {
        let text = error.to_string();
        let now = clock::now();
        self.status.send_modify(|status| {
            // Said once for each reason, not at each attempt.
            if status.error.as_deref() != Some(text.as_str()) {
                tracing::warn!(engine = %status.url, "{text}; the last good policy stays in force");
            }
            if !status.stale {
                status.since = now;
            }
            status.stale = true;
            match error.refusal() {
                Some(cause) => {
                    debug_assert!(SOURCE_REFUSALS.contains(&cause), "{cause} is in no list");
                    *status.refused.entry(cause).or_default() += 1;
                }
                None => status.failures += 1,
            }
            status.error = Some(text.as_str().into());
        });
    }
}
