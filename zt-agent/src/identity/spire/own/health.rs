// SPDX-License-Identifier: Apache-2.0
//! How it stands with the certificate of this agent, for metrics, `/v1/status` and `/readyz`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spiffe::x509_source::{MetricsErrorKind, MetricsRecorder};

use crate::identity::since::now;

const NANOSECONDS: i64 = 1_000_000_000;

/// What is known, as a copy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whom the certificate names, once there is one.
    pub spiffe: Option<Arc<str>>,
    /// When it, or something that it rests on, ends to be valid; Unix seconds.
    pub expires: Option<i64>,
    /// Why there is none, or why it is not renewed.
    pub error: Option<Arc<str>>,
    /// Certificates that were taken.
    pub renewals: u64,
    /// What went wrong since the start: attempts at the Workload API, and answers that could not be used.
    pub failures: u64,
}

impl Status {
    /// What is wrong with it, in words; `None` while it is valid and renewed.
    pub fn problem(&self) -> Option<String> {
        let why = self.error.as_deref().unwrap_or("SPIRE has not answered yet");
        match self.expires {
            None => Some(format!("SPIRE has given this agent no certificate: {why}")),
            Some(expires) if expires <= now() / NANOSECONDS => {
                Some(format!("the certificate of this agent has expired: {why}"))
            }
            Some(_) => self
                .error
                .as_ref()
                .map(|why| format!("the certificate of this agent is not renewed: {why}")),
        }
    }
}

/// How it stands. Everybody may look at any time.
#[derive(Debug, Default)]
pub struct Health(Mutex<Status>);

impl Health {
    /// How it stands now.
    pub fn status(&self) -> Status {
        self.lock().clone()
    }

    pub(super) fn renewed(&self, spiffe: &str, expires: i64) {
        let mut status = self.lock();
        status.spiffe = Some(Arc::from(spiffe));
        status.expires = Some(expires);
        status.error = None;
        status.renewals += 1;
    }

    /// Something failed. Whether it is another thing than before.
    pub(super) fn failed(&self, why: &str) -> bool {
        let mut status = self.lock();
        status.failures += 1;
        let is_new = status.error.as_deref() != Some(why);
        status.error = Some(Arc::from(why));
        is_new
    }

    fn lock(&self) -> MutexGuard<'_, Status> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the library that follows the Workload API tells of by this way alone.
pub(super) struct Recorder(pub(super) Arc<Health>);

impl MetricsRecorder for Recorder {
    fn record_update(&self) {
        // What becomes of it is said by who writes it.
    }

    fn record_reconnect(&self) {
        // The failure before it counts.
    }

    fn record_error(&self, kind: MetricsErrorKind) {
        let why = match kind {
            MetricsErrorKind::ClientCreation => "the Workload API cannot be reached (identity.spireSocket)",
            MetricsErrorKind::StreamConnect => "the Workload API refuses to say who this agent is",
            MetricsErrorKind::StreamError => {
                "what the Workload API says cannot be read, or its connection broke"
            }
            MetricsErrorKind::StreamEnded => "the Workload API has ended the connection",
            MetricsErrorKind::NoSuitableSvid => "the Workload API has no SVID for this agent that is valid",
            // The sum of others, and what says nothing of the certificate.
            MetricsErrorKind::InitialSyncFailed | MetricsErrorKind::SupervisorJoinFailed => return,
            _ => "what the Workload API says is refused (too many or too large)",
        };
        self.0.failed(why);
    }
}
