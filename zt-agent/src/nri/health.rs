// SPDX-License-Identifier: Apache-2.0
//! How it stands with the container runtime. Everybody may look at any time.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::SessionError;

/// What came of a container's start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Its pod had an identity already.
    Named,
    /// It waited until its pod had one.
    Held,
    /// Its pod has none, and is refused nothing: nobody waited, or no longer.
    LeftAlone,
    /// It started without one: the wait was over.
    Unnamed,
    /// It is in no managed cgroup, or of no pod that can be told: nobody waited.
    Unmanaged,
}

/// The names of the outcomes, in their order.
pub const OUTCOMES: [(Outcome, &str); 5] = [
    (Outcome::Named, "named"),
    (Outcome::Held, "held"),
    (Outcome::LeftAlone, "left_alone"),
    (Outcome::Unnamed, "unnamed"),
    (Outcome::Unmanaged, "unmanaged"),
];

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// The runtime has taken this plugin, and has not hung up.
    pub connected: bool,
    /// Connections that were lost, and attempts that failed.
    pub failures: u64,
    /// Containers that wait now.
    pub holding: usize,
    /// Starts, by the order of [`OUTCOMES`].
    pub starts: [u64; OUTCOMES.len()],
    /// How long containers have waited, all together.
    pub waited: Duration,
}

/// What is known of the runtime.
#[derive(Debug, Default)]
pub struct Health {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    status: Status,
    registered: u64,
    /// It has been said that the runtime is away.
    said: bool,
}

impl Health {
    /// How it stands now.
    pub fn status(&self) -> Status {
        self.lock().status.clone()
    }

    /// How often the runtime has taken this plugin.
    pub(super) fn times_registered(&self) -> u64 {
        self.lock().registered
    }

    pub(super) fn registered(&self) {
        let mut inner = self.lock();
        inner.registered += 1;
        inner.status.connected = true;
        inner.said = false;
    }

    /// The connection is lost, or did not come about. Whether that is news.
    pub(super) fn lost(&self, error: &SessionError, was_registered: bool) -> bool {
        tracing::debug!(%error, was_registered, "NRI: no connection");
        let mut inner = self.lock();
        inner.status.connected = false;
        inner.status.holding = 0;
        inner.status.failures += 1;
        !std::mem::replace(&mut inner.said, true)
    }

    pub(super) fn holding(&self, count: usize) {
        self.lock().status.holding = count;
    }

    pub(super) fn started(&self, outcome: Outcome, waited: Duration) {
        let mut inner = self.lock();
        if let Some(slot) = OUTCOMES.iter().position(|(known, _)| *known == outcome) {
            inner.status.starts[slot] += 1;
        }
        inner.status.waited += waited;
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
