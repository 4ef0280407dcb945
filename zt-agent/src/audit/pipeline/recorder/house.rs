// SPDX-License-Identifier: Apache-2.0
//! What the recorder does for the store beside storing: names, limits, checkpoints.

use std::sync::Arc;

use tokio::time::Instant;

use super::{Recorder, answer};
use crate::audit::store::Sink;

impl<S: Sink> Recorder<S> {
    /// Saves new names and enforces the store's limits, as long as no decision waits.
    pub(super) async fn keep_house(&mut self) {
        self.save_names().await;
        let mut flushes = Vec::new();
        loop {
            let store = Arc::clone(&self.store);
            let Some(result) = self.patiently(store.prune(), None, &mut flushes).await else {
                return;
            };
            match result {
                Ok(pruned) => {
                    self.shared.stats.pruned(pruned.for_space, pruned.for_age);
                    // Space is made even under load: records must not fill the disk. Age can wait for a quiet moment.
                    if !pruned.more || (pruned.for_space == 0 && !self.queue.is_empty()) {
                        break;
                    }
                }
                Err(error) => {
                    self.shared.stats.prune_failed();
                    tracing::warn!(%error, "the audit store cannot make room");
                    // It looks whether the chain goes on before it signs what is left.
                    self.count_breaks();
                    break;
                }
            }
        }
        answer(flushes);
        self.look_at_damage();
        self.look_at_share();
        self.pruned_at = Instant::now();
        if self.sealed_at.elapsed() >= self.settings.seal_every {
            self.seal().await;
        }
    }

    /// Has the store sign where the chain stands.
    pub(super) async fn seal(&mut self) {
        let (store, mut flushes) = (Arc::clone(&self.store), Vec::new());
        let sealed = self.patiently(store.seal(), None, &mut flushes).await;
        answer(flushes);
        self.sealed_at = Instant::now();
        match sealed {
            Some(Ok(Some(checkpoint))) => self.shared.stats.sealed(checkpoint.seq, checkpoint.time),
            Some(Err(error)) => {
                self.shared.stats.seal_failed();
                tracing::error!(%error, "the audit trail cannot be signed: tried again in a minute");
            }
            Some(Ok(None)) | None => {}
        }
        self.count_breaks();
    }

    /// Looks how many checkpoints are kept that the chain did not go on from, and how many damaged files: also what an earlier
    /// run or another process found, and no more what somebody has taken away.
    pub(super) fn count_breaks(&self) {
        match self.store.breaks() {
            Ok(breaks) => self.shared.stats.broken(breaks),
            Err(error) => {
                tracing::warn!(%error, "cannot look whether the audit trail was found broken");
            }
        }
        match self.store.damaged() {
            Ok(files) => self.shared.stats.damaged(files),
            Err(error) => {
                tracing::warn!(%error, "cannot look whether damaged files lie beside the audit trail");
            }
        }
    }

    /// Looks whether the store was put aside because it was damaged.
    pub(super) fn look_at_damage(&self) {
        if self.shared.stats.put_aside(self.store.put_aside()) {
            self.count_breaks();
        }
    }

    pub(super) async fn save_names(&mut self) {
        let names = self.names.take_unsaved();
        if names.is_empty() {
            return;
        }
        let (store, mut flushes) = (Arc::clone(&self.store), Vec::new());
        let saved = self.patiently(store.remember(&names), None, &mut flushes).await;
        answer(flushes);
        if let Some(Err(error)) = saved {
            tracing::warn!(%error, "the audit store cannot keep names: tried again later");
            self.names.put_back(names);
        }
    }
}
