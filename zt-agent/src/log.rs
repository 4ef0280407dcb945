// SPDX-License-Identifier: Apache-2.0
//! The process's own log: text on a terminal, one JSON object a line otherwise; always on standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::fmt;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level makes no sense.
    #[error(
        "`{level}` is not a log level: write error, warn, info, debug or trace, or directives such as `info,zt_agent::kernel=debug`"
    )]
    Level {
        /// What was asked for.
        level: String,
        /// What is wrong with it.
        source: ParseError,
    },
    /// Something has set up logging before.
    #[error("logging is set up already")]
    Twice,
}

/// Starts logging at `level`: a level name, or tracing-subscriber's directives.
pub fn start(level: &str) -> Result<(), LogError> {
    let filter = EnvFilter::builder()
        .parse(level)
        .map_err(|source| LogError::Level {
            level: level.to_owned(),
            source,
        })?;
    let registry = tracing_subscriber::registry().with(filter);
    let terminal = io::stderr().is_terminal();
    let started = if terminal {
        let colour = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        registry
            .with(
                fmt::layer()
                    .with_writer(io::stderr)
                    .with_target(false)
                    .with_ansi(colour),
            )
            .try_init()
    } else {
        registry
            .with(fmt::layer().json().flatten_event(true).with_writer(io::stderr))
            .try_init()
    };
    // `try_init` also carries records of the `log` crate (aya's) over, which is why no other call is needed.
    started.map_err(|_| LogError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_level_is_explained() {
        let error = start("info,zt_agent=loud").expect_err("bad");
        assert!(
            error
                .to_string()
                .contains("`info,zt_agent=loud` is not a log level"),
            "{error}"
        );
    }
}
