// SPDX-License-Identifier: Apache-2.0
//! Destroys many sockets at once: from several threads, each with a namespace at a time, without waiting for an answer
//! to each.

use std::collections::HashMap;
use std::io;
use std::num::NonZero;
use std::thread;

use zt_common::abi::{CONNECTION_INBOUND, CONNECTION_IPV6};

use super::netns::{self, Namespaces};
use super::sock_diag::{ESTABLISHED, SockDiag, TCP, Target, UDP};
use super::sweep::{Fate, Revoked};
use super::urgent::Urgent;

/// More threads than these only wait for one another.
const MOST_WORKERS: usize = 4;
/// Fewer sockets than these are not worth another thread.
const LEAST_SHARE: usize = 64;

/// Destroys what a sweep found, and notes what became of each.
pub(super) fn all(revoked: &mut [Revoked], namespaces: &Namespaces) {
    if revoked.is_empty() {
        return;
    }
    // By namespace, so that each is entered once. The end that began a connection first: its reset ends the other, for
    // which a look is enough then.
    revoked.sort_unstable_by_key(|revoked| {
        let connection = &revoked.connection;
        (connection.netns, connection.flags & CONNECTION_INBOUND != 0)
    });
    let workers = thread::available_parallelism()
        .map_or(1, NonZero::get)
        .clamp(1, MOST_WORKERS);
    let share = revoked.len().div_ceil(workers).max(LEAST_SHARE);
    thread::scope(|scope| {
        for share in revoked.chunks_mut(share) {
            scope.spawn(move || {
                let mut urgent = Urgent::begin();
                for group in share.chunk_by_mut(|a, b| a.connection.netns == b.connection.netns) {
                    in_namespace(group, namespaces);
                    urgent.check();
                }
            });
        }
    });
}

/// Destroys sockets of one namespace, from a thread that may be left in it.
fn in_namespace(group: &mut [Revoked], namespaces: &Namespaces) {
    let Some(netns) = group.first().map(|revoked| revoked.connection.netns) else {
        return;
    };
    let destroyed = namespaces.open(netns).and_then(|namespace| {
        netns::enter(&namespace)?;
        destroy(&SockDiag::open()?, group)
    });
    if let Err(error) = destroyed {
        tracing::debug!(netns, %error, sockets = group.len(), "cannot reach the namespace of revoked connections");
    }
}

fn destroy(diag: &SockDiag, group: &mut [Revoked]) -> io::Result<()> {
    let mut targets: Vec<Target> = group.iter().map(target).collect();
    complete(diag, &mut targets)?;
    let mut told = false;
    diag.destroy(&targets, |index, answer| {
        let Some(revoked) = group.get_mut(index) else {
            return;
        };
        revoked.fate = match answer {
            Ok(()) => Fate::Destroyed,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Fate::Gone,
            Err(error) => {
                if !told {
                    told = true;
                    tracing::warn!(%error, netns = revoked.connection.netns, remote = %revoked.connection.remote, "cannot destroy a socket that policy revoked");
                }
                Fate::Failed
            }
        };
    })
}

fn target(revoked: &Revoked) -> Target {
    let connection = &revoked.connection;
    Target {
        cookie: revoked.cookie,
        local: connection.local,
        remote: connection.remote,
        local_port: connection.local_port,
        remote_port: connection.remote_port,
        protocol: connection.protocol,
        ipv6: connection.flags & CONNECTION_IPV6 != 0,
        interface: 0,
    }
}

/// Fills in what `connect` could not know: the local end of a connected UDP socket.
fn complete(diag: &SockDiag, targets: &mut [Target]) -> io::Result<()> {
    if targets.iter().all(|target| target.protocol == TCP) {
        return Ok(());
    }
    let mut found = HashMap::new();
    for ipv6 in [false, true] {
        let sockets = diag.list(ipv6, UDP, 1 << ESTABLISHED)?;
        found.extend(
            sockets
                .into_iter()
                .map(|socket| (socket.target.cookie, socket.target)),
        );
    }
    for target in targets.iter_mut().filter(|target| target.protocol == UDP) {
        if let Some(known) = found.get(&target.cookie) {
            *target = *known;
        }
    }
    Ok(())
}
