// SPDX-License-Identifier: Apache-2.0
//! `zt-agent engine`.

use super::run::RunArgs;
use super::{Exit, Failure};
use crate::app;
use crate::config::Config;
use crate::confine;

/// Runs a policy engine until it is asked to stop.
pub(super) fn engine(arguments: &RunArgs, log_level: &str) -> Result<Exit, Failure> {
    crate::log::start(log_level)?;
    let sources = arguments.sources();
    let config = Config::load(&sources)?;
    confine::engine();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcome = runtime.block_on(app::run_engine(config, sources));
    // What still runs only reads: nothing is lost by not waiting for it.
    runtime.shutdown_background();
    outcome?;
    Ok(Exit::Done)
}
