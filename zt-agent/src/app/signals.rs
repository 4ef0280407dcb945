// SPDX-License-Identifier: Apache-2.0
//! The signals that the agent answers.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::AppError;

/// What the agent listens for, from the moment on that this is made.
pub(super) struct Signals {
    /// `SIGTERM`: end in order.
    pub terminate: Signal,
    /// `SIGINT`: the same.
    pub interrupt: Signal,
    /// `SIGUSR1`: the kernel side's diagnostics, on or off.
    pub diagnose: Signal,
}

impl Signals {
    /// Begins to listen.
    pub(super) fn listen() -> Result<Self, AppError> {
        let listen = |kind| {
            signal(kind).map_err(|source| AppError::System {
                what: "wait for signals",
                source,
            })
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            diagnose: listen(SignalKind::user_defined1())?,
        })
    }
}
