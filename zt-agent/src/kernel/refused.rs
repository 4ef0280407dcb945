// SPDX-License-Identifier: Apache-2.0
//! A socket that a hook refused, on its way out.

use std::fs::File;

use zt_common::address::Address;
use zt_common::names;

use super::error::KernelError;
use super::netns::{self, Namespaces};
use super::reset;
use super::sock_diag::{self, SockDiag, Target};

/// A socket that a hook refused: fenced, and waiting to be destroyed.
#[derive(Clone, Copy, Debug)]
pub struct RefusedSocket {
    /// Socket cookie.
    pub cookie: u64,
    /// Cookie of its namespace.
    pub netns: u64,
    /// Its address.
    pub local: Address,
    /// The other end's address.
    pub remote: Address,
    /// Its port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// Of the IPv6 family.
    pub ipv6: bool,
}

impl RefusedSocket {
    /// Destroys a socket that a hook refused and fenced, and has its peer notice.
    pub fn destroy(&self, namespaces: &Namespaces) -> Result<(), KernelError> {
        let failed = |source| KernelError::Network {
            what: "cannot destroy a refused socket",
            source,
        };
        let target = Target {
            cookie: self.cookie,
            local: self.local,
            remote: self.remote,
            local_port: self.local_port,
            remote_port: self.remote_port,
            protocol: sock_diag::TCP,
            ipv6: self.ipv6,
            interface: names::NO_INTERFACE,
        };
        let namespace: File = namespaces.open(self.netns).map_err(failed)?;
        let answers = netns::inside(&namespace, || {
            let answers = SockDiag::open()?.destroy(&[target]);
            // Also where the workload was faster and has closed it: that told the peer as little.
            let told = reset::provoke(&self.local, self.local_port, &self.remote, self.remote_port);
            if let Err(error) = told {
                tracing::debug!(%error, peer = %self.remote, "a refused peer will notice when it speaks");
            }
            answers
        });
        answers
            .map_err(failed)?
            .map_err(failed)?
            .into_iter()
            .collect::<Result<Vec<()>, _>>()
            .map(drop)
            .map_err(failed)
    }
}
