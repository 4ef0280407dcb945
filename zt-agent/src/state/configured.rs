// SPDX-License-Identifier: Apache-2.0
//! What of the configuration is taken anew while the agent runs.

use std::sync::Arc;

use crate::caller::CallerRule;
use crate::problem::Problem;

/// What of the configuration holds now, and how readings of it went. All but the callers is of the start.
#[derive(Clone, Debug, Default)]
pub struct Configured {
    /// `api.callers`.
    pub callers: Arc<[CallerRule]>,
    /// Why the configuration could not be read last time; what held before still holds.
    pub problems: Arc<[Problem]>,
    /// Other keys say something else than at the start: they are taken at the next one.
    pub restart: bool,
    /// Readings that changed the callers.
    pub taken: u64,
    /// Readings of a configuration that is not valid.
    pub refused: u64,
}
