// SPDX-License-Identifier: Apache-2.0
//! Who sends a request, and what they may do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::caller::Rights;
use crate::tls::Peer;

/// The account of those whom no entry of `api.callers` is about: they share one.
const STRANGERS: &str = "strangers";
/// How often one looks whether a certificate has expired: the clock may be set.
const LOOK: Duration = Duration::from_secs(30);

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
    /// Somebody on this machine, over a loopback address: its operator. Named by the user whose socket it is, or by the
    /// address where the kernel does not tell.
    pub(super) fn loopback(peer: SocketAddr, uid: Option<u32>) -> Self {
        let of_user = uid.map(|uid| Arc::from(format!("uid:{uid}")));
        Self {
            name: of_user.clone().unwrap_or_else(|| Arc::from(peer.to_string())),
            account: of_user.unwrap_or_else(|| Arc::from("loopback")),
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
        let account = if rights.is_empty() {
            Arc::from(STRANGERS)
        } else {
            Arc::clone(&name)
        };
        Self {
            account,
            name,
            rights: Arc::new(rights),
            over_loopback: false,
            expires: Some(peer.expires),
        }
    }

    /// Whether the certificate is past its end.
    pub(super) fn has_expired(&self) -> bool {
        self.left().is_some_and(|left| left.is_zero())
    }

    /// Completes when the certificate is past its end; never where there is none.
    pub(super) async fn expired(&self) {
        loop {
            match self.left() {
                None => std::future::pending().await,
                Some(Duration::ZERO) => return,
                Some(left) => tokio::time::sleep(left.min(LOOK)).await,
            }
        }
    }

    /// How long the certificate is still good for.
    fn left(&self) -> Option<Duration> {
        // It is good in its last second too.
        let end = u64::try_from(self.expires?).unwrap_or(0) + 1;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Some(Duration::from_secs(end).saturating_sub(now))
    }
}
