// SPDX-License-Identifier: Apache-2.0
//! Revocation: after a change of policy or of modes, every live connection is judged again, and those that policy no
//! longer allows are destroyed, at both ends.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::thread;

use zt_common::abi::{
    CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_INBOUND, CONNECTION_IPV6, CONNECTION_LOCAL,
    Connection, MODE_ENFORCE, Workload,
};
use zt_common::entry::Flow;
use zt_common::identity;
use zt_common::verdict::Verdict;

use super::netns::{self, Namespaces};
use super::sock_diag::{ESTABLISHED, SockDiag, TCP, Target, UDP};
use crate::policy::AllowTable;

/// Threads that destroy sockets side by side: each waits for the kernel most of the time.
const WORKERS: usize = 4;

/// A connection that policy no longer allows.
#[derive(Clone, Copy, Debug)]
pub struct Revoked {
    /// Socket cookie.
    pub cookie: u64,
    /// What the kernel knew of it; source and destination as they are now.
    pub connection: Connection,
    /// What policy says of it now.
    pub verdict: Verdict,
    /// Whether the socket is gone. If not, it is tried once more, and again at the next change of policy or modes.
    pub destroyed: bool,
}

/// What a sweep did.
#[derive(Debug, Default)]
pub struct Sweep {
    /// Connections that were looked at.
    pub looked_at: usize,
    /// Those that had to go.
    pub revoked: Vec<Revoked>,
}

impl Sweep {
    /// Tries once more to destroy what is still there.
    pub fn retry(&mut self, namespaces: &Namespaces) {
        let mut left: Vec<Revoked> = self
            .revoked
            .extract_if(.., |revoked| !revoked.destroyed)
            .collect();
        destroy(&mut left, namespaces);
        self.revoked.append(&mut left);
    }
}

/// Judges connections under a table.
pub(super) fn judge(
    connections: Vec<(u64, Connection)>,
    table: &AllowTable,
    workloads: &HashMap<u64, Workload>,
) -> Sweep {
    let looked_at = connections.len();
    let revoked = connections
        .into_iter()
        .filter_map(|(cookie, mut connection)| {
            if connection.protocol == TCP && connection.flags & CONNECTION_ESTABLISHED == 0 {
                // Still in its handshake: the end of that judges it under the revision in force then.
                return None;
            }
            let own = workloads.get(&connection.workload);
            let enforced = own.map_or(connection.flags & CONNECTION_ENFORCED != 0, |own| {
                own.mode == MODE_ENFORCE
            });
            if !enforced {
                return None;
            }
            rename(&mut connection, own, table);
            let flow = Flow {
                source: connection.source,
                destination: connection.destination,
                port: connection.target_port,
                protocol: connection.protocol,
            };
            let verdict = table.decide(&flow);
            (!verdict.allowed).then_some(Revoked {
                cookie,
                connection,
                verdict,
                destroyed: false,
            })
        })
        .collect();
    Sweep { looked_at, revoked }
}

/// Gives both ends of a connection the names that they have now.
fn rename(connection: &mut Connection, own: Option<&Workload>, table: &AllowTable) {
    let local = connection.flags & CONNECTION_LOCAL != 0;
    let by_network = |number: u64| {
        // What the networks of a policy named is named by those of the next.
        let depends =
            number == identity::WORLD || number & identity::NETWORK_BIT != 0 || number == identity::UNKNOWN;
        if depends && number < identity::FIRST_WORKLOAD && !local {
            table.networks().number_at(IpAddr::from(connection.remote))
        } else {
            number
        }
    };
    let own = own.map(|own| own.identity);
    if connection.flags & CONNECTION_INBOUND != 0 {
        connection.source = by_network(connection.source);
        connection.destination = own.unwrap_or(connection.destination);
    } else {
        connection.destination = by_network(connection.destination);
        connection.source = own.unwrap_or(connection.source);
    }
}

/// Destroys what a sweep found, from several threads, namespace by namespace.
pub(super) fn destroy(revoked: &mut [Revoked], namespaces: &Namespaces) {
    let mut by_namespace: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
    for (index, revoked) in revoked.iter().enumerate() {
        by_namespace
            .entry(revoked.connection.netns)
            .or_default()
            .push(index);
    }
    // Large namespaces are shared out, small ones gathered: each share is about as long as the others.
    let share = revoked.len().div_ceil(WORKERS).max(1);
    let mut shares: Vec<Vec<(u64, Vec<usize>)>> = vec![Vec::new()];
    let mut filled = 0;
    for (netns, indices) in by_namespace {
        let mut rest = indices.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(share - filled));
            if let Some(last) = shares.last_mut() {
                last.push((netns, now.to_vec()));
            }
            filled += now.len();
            if filled >= share {
                shares.push(Vec::new());
                filled = 0;
            }
            rest = later;
        }
    }
    let targets: Vec<Target> = revoked.iter().map(target).collect();
    let done: Vec<usize> = thread::scope(|scope| {
        let workers: Vec<_> = shares
            .iter()
            .filter(|share| !share.is_empty())
            .map(|share| scope.spawn(|| destroy_share(share, &targets, namespaces)))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_default())
            .collect()
    });
    for index in done {
        if let Some(revoked) = revoked.get_mut(index) {
            revoked.destroyed = true;
        }
    }
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
fn complete(diag: &SockDiag, mut targets: Vec<Target>) -> io::Result<Vec<Target>> {
    if targets.iter().all(|target| target.protocol == TCP) {
        return Ok(targets);
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
    Ok(targets)
}

/// One worker's share; gives the indices of those that are gone.
fn destroy_share(share: &[(u64, Vec<usize>)], targets: &[Target], namespaces: &Namespaces) -> Vec<usize> {
    let mut done = Vec::new();
    for (netns, indices) in share {
        let wanted: Vec<Target> = indices
            .iter()
            .filter_map(|index| targets.get(*index).copied())
            .collect();
        let answers = namespaces.open(*netns).and_then(|namespace| {
            netns::enter(&namespace)?;
            let diag = SockDiag::open()?;
            diag.destroy(&complete(&diag, wanted)?)
        });
        match answers {
            Ok(answers) => {
                for (index, answer) in indices.iter().zip(answers) {
                    match answer {
                        Ok(()) => done.push(*index),
                        Err(error) => {
                            tracing::warn!(netns, %error, "cannot destroy a socket that policy revoked");
                        }
                    }
                }
            }
            Err(error) => {
                tracing::warn!(netns, %error, sockets = indices.len(), "cannot reach the namespace of revoked connections");
            }
        }
    }
    done
}
