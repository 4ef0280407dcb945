// SPDX-License-Identifier: Apache-2.0
//! What is answered has a record: answers wait until it is stored.

use std::time::Duration;

use super::ApiState;
use super::problem::ApiProblem;
use crate::audit::pipeline::{ApiEvent, NotRecorded};

/// How long an answer waits for its record.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(5);
/// When to ask again after an evaluation that had no room, seconds.
const LATER: u64 = 60;

/// Why there is no record that is known to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unrecorded {
    /// Nothing was recorded, or it is counted as lost.
    #[error(transparent)]
    Not(#[from] NotRecorded),
    /// It may be stored yet.
    #[error(
        "the audit store did not keep the record within {} seconds: it is kept in memory and tried again, see the \
         agent's log",
        .0.as_secs()
    )]
    Late(Duration),
}

impl Unrecorded {
    /// The problem that says so; `what` is what there is no record of, and what became of that.
    pub(super) fn problem(self, code: &'static str, what: &str) -> ApiProblem {
        let code = match self {
            Self::Not(NotRecorded::Closed(_)) => "stopping",
            Self::Not(NotRecorded::ShareFull) => "audit_share_full",
            Self::Not(NotRecorded::NotStored) | Self::Late(_) => code,
        };
        let problem = ApiProblem::unavailable(code, format!("{what}: {self}"));
        match self {
            Self::Not(NotRecorded::ShareFull) => problem.with_retry_after(LATER),
            _ => problem,
        }
    }
}

/// Records what happened and waits until that is stored.
pub(super) async fn recorded(
    state: &ApiState,
    events: Vec<ApiEvent>,
    within: Duration,
) -> Result<(), Unrecorded> {
    match tokio::time::timeout(within, state.intake.record_api(events)).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(Unrecorded::Late(within)),
    }
}
