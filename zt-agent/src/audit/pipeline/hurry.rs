// SPDX-License-Identifier: Apache-2.0
//! Whether somebody waits for what is on its way: then no batch waits for more repeats.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio::sync::futures::Notified;

/// Who waits.
#[derive(Debug, Default)]
pub(super) struct Hurry {
    waiting: AtomicUsize,
    called: Notify,
}

/// Somebody waits as long as this lives.
pub(super) struct Waiting<'h>(&'h Hurry);

impl Hurry {
    /// Somebody waits from now on.
    pub(super) fn wait(&self) -> Waiting<'_> {
        self.stay();
        Waiting(self)
    }

    /// From now on somebody always does.
    pub(super) fn stay(&self) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        self.call();
    }

    /// Has the batch under way look whether it may go on waiting.
    pub(super) fn call(&self) {
        self.called.notify_waiters();
    }

    /// Whether somebody waits.
    pub(super) fn is_on(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    /// Completes with the first call after this was made: made before it is looked whether somebody waits, it misses none.
    pub(super) fn called(&self) -> Notified<'_> {
        self.called.notified()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
