// SPDX-License-Identifier: Apache-2.0
//! Collections of one API that are followed together.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinError, JoinSet};

use super::watch::{Collection, Said, Timing, follow};
use super::{Client, Freshness};

/// Follows collections until it is dropped.
#[derive(Debug)]
pub struct Watches {
    client: Client,
    timing: Timing,
    freshness: Arc<Freshness>,
    /// Aborted when this is dropped.
    tasks: JoinSet<()>,
}

impl Watches {
    /// Follows nothing yet.
    pub fn new(client: Client, timing: Timing) -> Self {
        Self {
            client,
            timing,
            freshness: Arc::default(),
            tasks: JoinSet::new(),
        }
    }

    /// Begins to follow a collection. `queue` things said may wait.
    pub fn follow<T: DeserializeOwned + Send + 'static>(
        &mut self,
        collection: Collection,
        queue: usize,
    ) -> mpsc::Receiver<Said<T>> {
        self.follow_for_now(collection, queue).0
    }

    /// The same, until it is aborted.
    pub fn follow_for_now<T: DeserializeOwned + Send + 'static>(
        &mut self,
        collection: Collection,
        queue: usize,
    ) -> (mpsc::Receiver<Said<T>>, AbortHandle) {
        let (sender, receiver) = mpsc::channel(queue);
        let (client, freshness) = (self.client.clone(), Arc::clone(&self.freshness));
        let following = follow(client, collection, self.timing, freshness, sender);
        (receiver, self.tasks.spawn(following))
    }

    /// How following each stands.
    pub fn freshness(&self) -> &Arc<Freshness> {
        &self.freshness
    }

    /// Waits until one of them ends; `None` where none is left.
    pub async fn ended(&mut self) -> Option<Result<(), JoinError>> {
        self.tasks.join_next().await
    }
}
