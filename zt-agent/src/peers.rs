// SPDX-License-Identifier: Apache-2.0
//! Agents of different nodes, in pairs: one connection each, mutual TLS 1.3, over which both say who lives on their node and
//! at which address, and from which both derive the keys that prove identities in handshakes between the two.
//!
//! A pair is one task: the node whose name is lower dials. What a node says is believed about its own addresses and about
//! identities whose SVIDs it shows to hold (`identity::peers`), and reaches the node thread as [`Told`].

mod allowance;
mod connection;
mod crowd;
mod door;
mod health;
mod keys;
mod local;
mod memory;
mod pair;
mod proof;
mod protocol;
mod reach;
mod recalled;
mod retiring;
mod service;

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tokio::sync::oneshot;
use zt_common::siphash::Key;

use crate::identity::peers::Located;
use crate::spiffe_id::SpiffeId;

pub use self::health::{Health, NodeStatus, REFUSALS, State, Status};
pub use self::local::follow as follow_local;
pub use self::memory::FILE;
pub use self::recalled::Recalled;
pub use self::service::{Parts, Service};

/// What is spoken (ALPN).
pub const PROTOCOL: &[u8] = b"zt-peers/1";

/// What the pairs go by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node's name.
    pub node: Arc<str>,
    /// The trust domain of identities.
    pub trust_domain: String,
    /// Workloads of this node prove who they are in handshakes.
    pub proves: bool,
    /// How long what a node said is believed when it is no longer heard.
    pub hold: Duration,
    /// Where it is kept what the next agent goes on with. No keys.
    pub memory: PathBuf,
    /// How patient everybody is.
    pub timing: Timing,
}

/// How patient everybody is.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How often an end says that it is there.
    pub beat: Duration,
    /// An end that says nothing for that long is gone.
    pub silence: Duration,
    /// How long a connection and its TLS handshake may take.
    pub handshake: Duration,
    /// How long a key is used.
    pub rotate: Duration,
    /// The pause before another try, which doubles up to the longest one.
    pub pauses: (Duration, Duration),
    /// How long a key that the other end no longer uses is accepted: handshakes that began with it may be under way.
    pub overlap: Duration,
    /// How long what is new may wait to be kept for the next agent.
    pub save: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            beat: Duration::from_secs(5),
            silence: Duration::from_secs(20),
            handshake: Duration::from_secs(10),
            rotate: Duration::from_secs(600),
            pauses: (Duration::from_millis(200), Duration::from_secs(30)),
            // Longer than a SYN is repeated, with all the others after it.
            overlap: Duration::from_secs(180),
            save: Duration::from_secs(5),
        }
    }
}

/// What the node thread is to do. Cannot be printed: there are keys in it.
pub enum Told {
    /// Others, or nobody, are at addresses of a node, or other identities live there.
    Changed {
        /// The node's number.
        node: u32,
        /// Who is there now; `None`: nobody that is known.
        addresses: Vec<(IpAddr, Option<Located>)>,
        /// Everybody who lives there, where that has changed.
        identities: Option<Vec<SpiffeId>>,
    },
    /// Verify what the node sends with this key too, and then say so.
    Verify {
        /// The node's number.
        node: u32,
        /// The key's epoch.
        epoch: u64,
        /// The key.
        key: Key,
        /// The places (epochs modulo four) that are needed; what is in others is forgotten.
        needed: Vec<u64>,
        /// Answered when it is done; dropped where it could not be.
        done: oneshot::Sender<()>,
    },
    /// Forget the keys of what the node sends that are in none of these places.
    Needed {
        /// The node's number.
        node: u32,
        /// The places that are needed.
        needed: Vec<u64>,
    },
    /// The node has said all that there is to say about these networks, and proves it: nobody else is believed about them.
    Speaks {
        /// The node's number.
        node: u32,
        /// Which; none as long as it is not heard.
        networks: Vec<IpNet>,
    },
    /// Send to the node with this key from now on, and then say so.
    Use {
        /// The node's number.
        node: u32,
        /// The key's epoch.
        epoch: u64,
        /// The key.
        key: Key,
        /// Answered when it is done; dropped where it could not be.
        done: oneshot::Sender<()>,
    },
    /// Forget all keys of the node.
    Forget {
        /// The node's number.
        node: u32,
    },
    /// There is no such node any more: forget everything of it.
    Removed {
        /// The node's number.
        node: u32,
    },
}

#[cfg(test)]
mod tests;
