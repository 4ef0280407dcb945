// SPDX-License-Identifier: Apache-2.0
//! What the driver tells a worker to do, and what the worker says when it is done. One line of JSON each, outside of
//! what is measured.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// One thing for a worker to do. Addresses to connect to are those of a listener of the same worker unless it says so:
/// with both ends in one thread nothing waits for a scheduler.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Move to a cgroup. What was opened before stays of the cgroup it was opened in.
    Enter { cgroup: PathBuf },
    /// Be scheduled before everything else on the machine, as long as only short batches are ordered.
    Urgent,
    /// Listen, in place of what was listened at before.
    Listen { at: SocketAddr },
    /// `socket`, `connect`, `accept`, `close`, `close`; so many times.
    Connects { to: SocketAddr, count: u32 },
    /// `socket`, `connect`, `close`, where `connect` fails; so many times.
    Failures { to: SocketAddr, count: u32 },
    /// One connection, over which a byte goes there and one back; so many times.
    RoundTrips { to: SocketAddr, count: u32 },
    /// One connection, over which so many chunks of 64 KiB go.
    Bulk { to: SocketAddr, chunks: u32 },
    /// Connect over and over until `connect` no longer answers as the first time.
    Flip { to: SocketAddr },
    /// `socket`, `connect`, `send` a byte, `accept`, `recv` it, `close`, `close`; so many times.
    Calls { to: SocketAddr, count: u32 },
    /// Have a byte get through a connection, from an address of its own where one is given.
    Reach { to: SocketAddr, from: Option<IpAddr> },
    /// The same over and over until it no longer ends as the first time.
    Turn { to: SocketAddr },
    /// Connects that fail, so many each millisecond (0: as fast as it goes), for so many milliseconds.
    Storm {
        to: SocketAddr,
        per_millisecond: u32,
        milliseconds: u32,
    },
    /// Open connections to a listener of another worker and keep them.
    Dial { to: SocketAddr, count: u32 },
    /// Accept connections and keep them.
    Accept { count: u32 },
    /// Wait until every connection that is kept is dead.
    Deaths,
}

/// What came of an order.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Done {
    /// Why it could not be done.
    pub(crate) error: Option<String>,
    /// How long the measured part took.
    pub(crate) nanoseconds: u64,
    /// How many there were of what was asked for.
    pub(crate) count: u64,
    /// How `connect`, or what came after it, failed; 0 where it did not, or where it is not what the order is about.
    pub(crate) errno: i32,
    /// When it was over, on `CLOCK_MONOTONIC`.
    pub(crate) at: u64,
    /// Where it listens.
    pub(crate) address: Option<SocketAddr>,
}
