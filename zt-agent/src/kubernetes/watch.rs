// SPDX-License-Identifier: Apache-2.0
//! Following a collection: listed once in pages, then watched from there on.
//!
//! A watch that ends is taken up where it was, for as long as the server remembers; where it does not (`410 Gone`), everything
//! is listed again, and whoever listens makes the difference. While the server is away the last that was said holds.
//!
//! Nothing that a server says makes this grow: a page, a line and the number of pages have bounds, and what is not understood
//! is counted and passed over.

mod collection;
mod line;
mod pace;

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use kube::client::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

pub use self::collection::Collection;
use self::collection::encoded;
use self::line::{Lines, Told, read_line};
use self::pace::Pace;
use super::client::{Client, ClientError};
use super::freshness::Freshness;

/// Objects in one page of a list.
const PAGE: usize = 500;
/// Pages of one list.
const MOST_PAGES: usize = 2000;
/// Most bytes of a page. (An object has 1.5 MiB at most.)
const MAX_PAGE: usize = 64 << 20;
/// How often a list begins again because what it goes on from is no longer known.
const MOST_BEGINNINGS: usize = 5;
/// Statuses of a server that has too much to do.
const TOO_MANY: u16 = 429;
const UNAVAILABLE: u16 = 503;
/// After so many other errors in a row everything is listed again.
const MOST_REFUSALS: u32 = 3;
/// A watch that ends sooner without a word was none.
const QUICK: Duration = Duration::from_secs(1);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// The first pause after a failure; each further one is twice as long.
    pub first_pause: Duration,
    /// The longest pause.
    pub longest_pause: Duration,
    /// All of a cluster's nodes list again at the same moment when the server forgets: each waits up to this long first, and
    /// longer where there is much to list.
    pub spread: Duration,
    /// How long a watch may say nothing, bookmarks included, until it is opened again.
    pub silence: Duration,
    /// How long the server keeps a watch open.
    pub lifetime: Duration,
    /// How long the names of other nodes' pods are believed while nothing is heard of them.
    pub believed: Duration,
    /// What was not understood may have been of importance: so long after the last list everything is listed again.
    pub doubt: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            first_pause: Duration::from_millis(100),
            longest_pause: Duration::from_secs(15),
            spread: Duration::from_millis(500),
            // Bookmarks come about once a minute.
            silence: Duration::from_secs(90),
            lifetime: Duration::from_secs(300),
            believed: super::memory::MOST_AGE,
            doubt: Duration::from_secs(30),
        }
    }
}

/// What happened in a collection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said<T> {
    /// These are all that there are; what was known before and is not among them is gone.
    All(Vec<T>),
    /// It is new, or changed.
    Applied(T),
    /// It is gone. This is what it was last.
    Deleted(T),
}

/// Follows a collection until nobody listens to `out` any more.
pub async fn follow<T: DeserializeOwned + Send + 'static>(
    client: Client,
    collection: Collection,
    timing: Timing,
    freshness: Arc<Freshness>,
    out: mpsc::Sender<Said<T>>,
) {
    freshness.begin(collection.name);
    let mut follower = Follower {
        client,
        collection,
        timing,
        freshness,
        out,
        version: None,
        pace: Pace::new(timing),
        listed: Instant::now(),
        objects: 0,
        doubted: false,
        refusals: 0,
    };
    let out = follower.out.clone();
    let mut work = pin!(follower.run());
    tokio::select! {
        () = &mut work => {}
        () = out.closed() => {}
    }
}

struct Follower<T> {
    client: Client,
    collection: Collection,
    timing: Timing,
    freshness: Arc<Freshness>,
    out: mpsc::Sender<Said<T>>,
    /// The version from which to watch; `None`: it has to be listed first.
    version: Option<String>,
    pace: Pace,
    /// When everything was listed last.
    listed: Instant,
    /// How many objects there were then.
    objects: usize,
    /// Something was not understood since.
    doubted: bool,
    /// How often in a row the server answered an attempt at a watch with an error of its own.
    refusals: u32,
}

/// Nobody listens any more.
struct Unheard;

impl<T: DeserializeOwned + Send + 'static> Follower<T> {
    async fn run(&mut self) {
        loop {
            let done = match self.version.clone() {
                None => self.list().await,
                Some(version) => self.watch(version).await,
            };
            let error = match done {
                Ok(Ok(())) => continue,
                Ok(Err(Unheard)) => return,
                Err(error) => error,
            };
            let name = self.collection.name;
            if let ClientError::Failed { code, .. } = &error
                && ![TOO_MANY, UNAVAILABLE].contains(code)
            {
                self.refusals += 1;
                if self.refusals >= MOST_REFUSALS {
                    // It may not have got as far as we have, having been put back to what it was.
                    self.version = None;
                }
            }
            let pause = if matches!(error, ClientError::Gone { .. }) {
                // Nothing is wrong with the server. What happened meanwhile is not known until it is listed.
                self.version = None;
                tracing::debug!(collection = name, %error, "listing again");
                self.freshness.stale_since_now(name, &error.to_string());
                self.pace.spread_of(self.objects).max(self.pace.pause() / 2)
            } else {
                let message = error.to_string();
                if self.freshness.stale_since_now(name, &message) || self.pace.is_calm() {
                    tracing::warn!(collection = name, error = %message, "the Kubernetes API is not heard: what is known of it holds");
                }
                self.pace.pause().max(error.retry_after().unwrap_or_default())
            };
            sleep(pause).await;
        }
    }

    fn heard(&mut self) {
        self.pace.calm();
        self.refusals = 0;
        if self.freshness.fresh(self.collection.name) {
            tracing::info!(collection = self.collection.name, "following the Kubernetes API");
        }
    }

    /// Lists everything, page by page.
    async fn list(&mut self) -> Result<Result<(), Unheard>, ClientError> {
        for _ in 0..MOST_BEGINNINGS {
            match self.pages().await {
                // In the middle of it: what the next page goes on from is no longer known.
                Err(ClientError::Gone { .. }) => {}
                Err(error) => return Err(error),
                Ok((objects, version)) => {
                    self.freshness.with(self.collection.name, |status| {
                        status.listed = true;
                        status.lists += 1;
                        status.objects = objects.len() as u64;
                    });
                    self.version = Some(version);
                    self.objects = objects.len();
                    self.listed = Instant::now();
                    self.doubted = false;
                    return Ok(self.out.send(Said::All(objects)).await.map_err(|_| Unheard));
                }
            }
        }
        Err(ClientError::Garbled {
            what: self.collection.path.clone(),
            message: "its lists are too old before they are read".to_owned(),
        })
    }

    async fn pages(&self) -> Result<(Vec<T>, String), ClientError> {
        #[derive(Deserialize)]
        struct Page<'a> {
            metadata: PageMetadata,
            #[serde(borrow, default)]
            items: Option<Vec<&'a RawValue>>,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct PageMetadata {
            resource_version: String,
            #[serde(rename = "continue", default)]
            next: Option<String>,
        }
        let what = &self.collection.path;
        let mut objects = Vec::new();
        let mut next: Option<String> = None;
        let mut limit = PAGE;
        for _ in 0..MOST_PAGES {
            let mut parameters = format!("limit={limit}");
            if let Some(next) = &next {
                parameters.push_str("&continue=");
                parameters.push_str(&encoded(next));
            }
            let uri = self.collection.uri(&parameters);
            let body = match self.client.get(&uri, what, MAX_PAGE).await {
                // Of the largest objects that there may be, fewer fit: whoever may make some must not keep us from the rest.
                Err(ClientError::TooLong { .. }) if limit > 1 => {
                    limit /= 2;
                    continue;
                }
                body => body?,
            };
            let page: Page<'_> = serde_json::from_slice(&body).map_err(|error| ClientError::Garbled {
                what: what.clone(),
                message: error.to_string(),
            })?;
            for item in page.items.unwrap_or_default() {
                match serde_json::from_str(item.get()) {
                    Ok(object) => objects.push(object),
                    Err(error) => self.passed_over(&error),
                }
            }
            next = page.metadata.next.filter(|next| !next.is_empty());
            if next.is_none() {
                return Ok((objects, page.metadata.resource_version));
            }
        }
        Err(ClientError::TooLong {
            what: what.clone(),
            limit: MOST_PAGES * MAX_PAGE,
        })
    }

    fn passed_over(&self, error: &serde_json::Error) {
        self.freshness
            .with(self.collection.name, |status| status.unreadable += 1);
        tracing::debug!(collection = self.collection.name, %error, "an object that is not understood is passed over");
    }

    /// Watches from a version on, until the watch ends.
    async fn watch(&mut self, version: String) -> Result<Result<(), Unheard>, ClientError> {
        let lifetime = self.timing.lifetime + self.pace.spread() * 8;
        let parameters = format!(
            "watch=true&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={}",
            lifetime.as_secs().max(1),
            encoded(&version)
        );
        let uri = self.collection.uri(&parameters);
        let path = self.collection.path.clone();
        let response = self.client.open(&uri, &path).await?;
        self.freshness
            .with(self.collection.name, |status| status.watches += 1);
        let mut lines = Lines::new(response.into_body(), path);
        let opened = Instant::now();
        let mut heard = false;
        let mut said = false;
        loop {
            // What has been opened is believed to be heard when it has said something, or at least nothing amiss for a moment.
            let mut wait = if heard {
                self.timing.silence
            } else {
                self.timing.first_pause
            };
            if self.doubted {
                let left = self.timing.doubt.saturating_sub(self.listed.elapsed());
                if left.is_zero() {
                    self.version = None;
                    return Ok(Ok(()));
                }
                wait = wait.min(left);
            }
            let line = match timeout(wait, lines.next()).await {
                Ok(line) => line?,
                Err(_) if !heard => {
                    heard = true;
                    self.heard();
                    continue;
                }
                Err(_) if self.doubted => continue,
                // Whether it is still there shows when it is opened again.
                Err(_) => return Ok(Ok(())),
            };
            let Some(line) = line else {
                // One that is always closed at once is not to be asked at once, for ever.
                if !said && opened.elapsed() < QUICK {
                    return Err(ClientError::Unreachable(
                        "it ended a watch that had hardly begun".to_owned(),
                    ));
                }
                return Ok(Ok(()));
            };
            let told = read_line(&line, &self.collection.path)?;
            said = true;
            if !heard {
                heard = true;
                self.heard();
            }
            if self.take(told).await.is_err() {
                return Ok(Err(Unheard));
            }
        }
    }

    /// Takes what a line says.
    async fn take(&mut self, told: Told<'_>) -> Result<(), Unheard> {
        let (version, said) = match told {
            Told::Bookmark { version } => (Some(version), None),
            Told::Event {
                version,
                object,
                deleted,
            } => {
                let object = serde_json::from_str(object.get());
                self.freshness.with(self.collection.name, |status| {
                    status.events += 1;
                });
                match object {
                    Ok(object) if deleted => (version, Some(Said::Deleted(object))),
                    Ok(object) => (version, Some(Said::Applied(object))),
                    Err(error) => {
                        self.passed_over(&error);
                        self.doubted = true;
                        (version, None)
                    }
                }
            }
            Told::Nonsense(error) => {
                self.passed_over(&error);
                self.doubted = true;
                (None, None)
            }
        };
        if let Some(said) = said {
            self.out.send(said).await.map_err(|_| Unheard)?;
        }
        // Only then: what was not taken is heard again.
        if version.is_some() {
            self.version = version;
        }
        Ok(())
    }
}
