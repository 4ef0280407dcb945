// SPDX-License-Identifier: Apache-2.0
//! A spool whose file is damaged goes on in a new one. What waited is lost and counted, and the server is told so, signed; what
//! comes from then on is shipped as ever.

use std::future::Future;

use super::{Spool, SpoolError};
use crate::audit::sqlite::StoreError;

impl Spool {
    /// Does what the agent needs; where the file is damaged, once more with a new one.
    pub(super) async fn or_anew<T, W>(&self, mut work: impl FnMut() -> W + Send) -> Result<T, SpoolError>
    where
        T: Send,
        W: Future<Output = Result<T, SpoolError>> + Send,
    {
        let seen = self.store.times_replaced();
        match work().await {
            Err(SpoolError::Store(error)) if error.is_damage() => {
                self.begin_anew(seen, error).await?;
                work().await
            }
            done => done,
        }
    }

    /// Puts the file aside for what is wrong with it, unless somebody has since one saw `seen`. Waits for what is under way to
    /// the server: what it has is not lost.
    pub(super) async fn begin_anew(&self, seen: u64, why: StoreError) -> Result<(), StoreError> {
        let _flight = self.flight.lock().await;
        let _turn = self.turn.lock().await;
        let state = self.state.lock().await;
        // Of a file before that one it says nothing.
        let known = (state.file == seen).then(|| {
            let lost = self.account.lost_behind(state.noted.shipped);
            (state.noted, lost)
        });
        if self.store.times_replaced() != seen {
            return Ok(());
        }
        self.store.begin_anew(seen, why, known).await?;
        self.recent().clear();
        self.account.begins_anew();
        self.account.lost_to_damage(self.store.lost_to_damage());
        drop(state);
        // Where that fails it is read when it is needed.
        drop(self.state().await?);
        self.more.notify_one();
        Ok(())
    }
}
