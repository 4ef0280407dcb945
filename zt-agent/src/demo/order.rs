// SPDX-License-Identifier: Apache-2.0
//! What the story asks of a workload, and what the workload reports: JSON, one object a line, over its standard input
//! and output.

use std::net::{IpAddr, SocketAddr};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::cast::Speak;

/// What a workload is asked to do.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub(super) enum Order {
    /// Connect, talk, close; `times` in a row, ending at the first that is not like the one before.
    Reach {
        /// Where.
        to: SocketAddr,
        /// What to say.
        speak: Speak,
        /// How often.
        times: u32,
    },
    /// Connect from an address, talk, close.
    ReachFrom {
        /// From where.
        from: Option<IpAddr>,
        /// Where.
        to: SocketAddr,
        /// What to say.
        speak: Speak,
    },
    /// Send a datagram until it comes back.
    Datagram {
        /// Where.
        to: SocketAddr,
        /// For how long at most, in ms.
        deadline: u64,
    },
    /// Connect and talk, and keep the connection.
    Keep {
        /// Where.
        to: SocketAddr,
        /// What to say.
        speak: Speak,
    },
    /// End what was ordered before.
    Stop,
    /// Talk again on the connection that was kept.
    Ask,
    /// Talk on the connection that was kept, without a pause, until it dies.
    Hold {
        /// For how long at most, in ms.
        deadline: u64,
    },
    /// Try again and again until a connection works, or there is another order.
    UntilReached {
        /// Where.
        to: SocketAddr,
        /// What to say.
        speak: Speak,
        /// For how long at most, in ms.
        deadline: u64,
    },
    /// Try again and again until a connection is refused, or there is another order.
    UntilRefused {
        /// Where.
        to: SocketAddr,
        /// What to say.
        speak: Speak,
        /// For how long at most, in ms.
        deadline: u64,
    },
    /// Wait until this end of an established connection is gone from the kernel's list of this namespace.
    UntilGone {
        /// This end.
        local: SocketAddr,
        /// The other end.
        peer: SocketAddr,
        /// For how long at most, in ms.
        deadline: u64,
    },
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "snake_case")]
pub(super) enum Outcome {
    /// Someone answered this.
    Reached {
        /// What.
        said: String,
    },
    /// `connect()` failed.
    Refused {
        /// With this error number.
        errno: i32,
    },
    /// The connection came about and then failed.
    Broken {
        /// With this error number; 0 if the other end closed it.
        errno: i32,
        /// The error in words.
        message: String,
    },
    /// First of two reports: what was asked has begun.
    Begun,
    /// It is gone.
    Gone,
    /// It did not happen in time.
    Late,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// What came of it, the last time if it was done several times.
    #[serde(flatten)]
    pub(super) outcome: Outcome,
    /// How often it was done.
    pub(super) attempts: u32,
    /// How many of the attempts were refused by `connect()`.
    pub(super) refused: u32,
    /// What one `connect()` took, in nanoseconds: the median of those with the last outcome.
    pub(super) connect_ns: u64,
    /// When it was known, in nanoseconds of the machine's monotonic clock.
    pub(super) at: u64,
    /// This end of the connection.
    pub(super) local: Option<SocketAddr>,
}

impl Report {
    /// One of an outcome alone, now.
    pub(super) fn now(outcome: Outcome) -> Self {
        Self {
            outcome,
            attempts: 0,
            refused: 0,
            connect_ns: 0,
            at: now(),
            local: None,
        }
    }
}

/// The monotonic clock, in nanoseconds. All processes of a machine read the same one.
pub(super) fn now() -> u64 {
    // The clock always exists.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_one_flat_object() {
        let report = Report::now(Outcome::Refused { errno: 1 });
        let text = serde_json::to_string(&report).expect("text");
        assert!(
            text.starts_with(r#"{"outcome":"refused","errno":1,"attempts":0"#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<Report>(&text).expect("back"), report);
    }
}
