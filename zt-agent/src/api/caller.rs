// SPDX-License-Identifier: Apache-2.0
//! Who sends a request, and what they may do.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::caller::Rights;
use crate::tls::Peer;

/// Who sends the requests of one connection. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Caller {
    /// As records name it.
    pub(super) name: Arc<str>,
    /// For whom requests are counted: the same for all connections of one caller.
    pub(super) account: Arc<str>,
    /// What they may do; nothing, for someone who is known and about whom nothing is said.
    pub(super) rights: Arc<Rights>,
    /// Whether they came over a loopback address, where a web page in a browser here may do so too.
    pub(super) over_loopback: bool,
    /// When their certificate ends, Unix seconds.
    pub(super) expires: Option<i64>,
}

impl Caller {
    /// Somebody on this machine, over a loopback address: its operator.
    pub(super) fn loopback(peer: SocketAddr) -> Self {
        Self {
            name: Arc::from(peer.to_string()),
            account: Arc::from("loopback"),
            rights: Arc::new(Rights::operator()),
            over_loopback: true,
            expires: None,
        }
    }

    /// A process on this machine that may open the socket: its operator. The kernel says which it is.
    pub(super) fn process(uid: u32, pid: Option<i32>) -> Self {
        let pid = pid.map_or_else(|| "?".to_owned(), |pid| pid.to_string());
        Self {
            name: Arc::from(format!("uid:{uid} pid:{pid}")),
            account: Arc::from(format!("uid:{uid}")),
            rights: Arc::new(Rights::operator()),
            over_loopback: false,
            expires: None,
        }
    }

    /// A workload elsewhere, by its certificate.
    pub(super) fn workload(peer: &Peer, rights: Rights) -> Self {
        let name: Arc<str> = Arc::from(peer.id.as_str());
        Self {
            account: Arc::clone(&name),
            name,
            rights: Arc::new(rights),
            over_loopback: false,
            expires: Some(peer.expires),
        }
    }
}
