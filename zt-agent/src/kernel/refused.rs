// SPDX-License-Identifier: Apache-2.0
//! A socket that a hook refused, on its way out.

use std::io;

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
    fn target(&self) -> Target {
        Target {
            cookie: self.cookie,
            local: self.local,
            remote: self.remote,
            local_port: self.local_port,
            remote_port: self.remote_port,
            protocol: sock_diag::TCP,
            ipv6: self.ipv6,
            interface: names::NO_INTERFACE,
        }
    }

    /// A socket that a listing shows behind its fence.
    pub(super) fn listed(netns: u64, target: &Target) -> Self {
        Self {
            cookie: target.cookie,
            netns,
            local: target.local,
            remote: target.remote,
            local_port: target.local_port,
            remote_port: target.remote_port,
            ipv6: target.ipv6,
        }
    }

    /// Destroys sockets that a hook refused and fenced, and has their peers notice. Those that are still there, and why
    /// the first of them is.
    pub fn destroy(mut sockets: Vec<Self>, namespaces: &Namespaces) -> (Vec<Self>, Option<KernelError>) {
        sockets.sort_unstable_by_key(|socket| socket.netns);
        let mut left = Vec::new();
        let mut why = None;
        for group in sockets.chunk_by(|a, b| a.netns == b.netns) {
            let outcome = group
                .first()
                .ok_or_else(|| io::ErrorKind::NotFound.into())
                .and_then(|first| namespaces.open(first.netns))
                .and_then(|namespace| netns::inside(&namespace, || in_namespace(group))?);
            let error = match outcome {
                Ok((failed, error)) => {
                    left.extend(failed);
                    error
                }
                Err(error) => {
                    left.extend_from_slice(group);
                    Some(error)
                }
            };
            why = why.or(error);
        }
        let why = why.map(|source| KernelError::Network {
            what: "cannot destroy a refused socket",
            source,
        });
        (left, why)
    }
}

/// Destroys the sockets of this thread's namespace.
fn in_namespace(group: &[RefusedSocket]) -> io::Result<(Vec<RefusedSocket>, Option<io::Error>)> {
    let targets: Vec<Target> = group.iter().map(RefusedSocket::target).collect();
    let mut left = Vec::new();
    let mut why = None;
    SockDiag::open()?.destroy(&targets, |index, answer| match (answer, group.get(index)) {
        // Where it is gone, whoever had it has closed it.
        (Err(error), Some(socket)) if error.raw_os_error() != Some(libc::ENOENT) => {
            left.push(*socket);
            why.get_or_insert(error);
        }
        _ => {}
    })?;
    for socket in group {
        // Also where the workload was faster and has closed it: that told the peer as little.
        let told = reset::provoke(
            &socket.local,
            socket.local_port,
            &socket.remote,
            socket.remote_port,
        );
        if let Err(error) = told {
            tracing::debug!(%error, peer = %socket.remote, "a refused peer will notice when it speaks");
        }
    }
    Ok((left, why))
}
