// SPDX-License-Identifier: Apache-2.0
//! Why something is not recorded.

/// The pipeline no longer takes anything: the agent is shutting down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the audit pipeline is closed: the agent is shutting down")]
pub struct Closed;

/// Why something that happened over the API has no record, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotRecorded {
    /// Nothing is taken any more.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// Evaluations have their share of the trail's space. Nothing was taken.
    #[error(
        "evaluations take up their share of the audit trail's space (audit.apiShare), and what stands between \
         them is not a day old: raise audit.maxDiskBytes, or ask a policy engine"
    )]
    ShareFull,
    /// It was taken, and the store did not keep it; it is counted as lost. Or it is stored, and the disk does not take it.
    #[error("the audit store did not keep the record: see the agent's log")]
    NotStored,
}
