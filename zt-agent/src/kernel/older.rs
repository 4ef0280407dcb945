// SPDX-License-Identifier: Apache-2.0
//! Sockets older than the hooks: connections that no hook has seen are found in the kernel's own lists and judged like
//! the others, and listeners are given their owners, so that what they accept from now on is judged by the hooks.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::OwnedFd;

use zt_common::abi::{
    CONNECTION_ESTABLISHED, CONNECTION_INBOUND, CONNECTION_IPV6, CONNECTION_LOCAL, CONNECTION_PROVEN,
    CONNECTION_UNCOUNTED, Connection, ListenerKey,
};
use zt_common::address::Address;
use zt_common::identity;
use zt_common::names;

use super::Owner;
use super::adopt::{Adopted, Adopter, Foundling, adopt};
use super::error::KernelError;
use super::host::Pins;
use super::netns::{self, Namespaces};
use super::refused::RefusedSocket;
use super::shares::Shares;
use super::sock_diag::{CLOSED, ESTABLISHED, Found, LISTEN, SockDiag, TCP, UDP};
use super::sweep::Revoked;
use super::tables::Tables;
use super::waiting::{self, Filed, Places};
use crate::policy::AllowTable;

/// States in which a TCP connection can still carry data.
const LIVE: u32 = 1 << ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 8;

/// A TCP connection whose first SYN has not been answered.
const OPENING: u8 = 2;

/// What one namespace holds.
pub(super) struct Listed {
    pub netns: u64,
    pub sockets: Vec<Found>,
}

/// Lists the sockets of namespaces.
pub(super) fn list(namespaces: &Namespaces, only: Option<&BTreeSet<u64>>) -> Vec<Listed> {
    namespaces
        .cookies()
        .filter(|netns| only.is_none_or(|only| only.contains(netns)))
        .filter_map(|netns| {
            let sockets = namespaces.open(netns).and_then(|namespace| {
                netns::inside(&namespace, || -> io::Result<Vec<Found>> {
                    let diag = SockDiag::open()?;
                    let mut sockets = Vec::new();
                    for ipv6 in [false, true] {
                        sockets.extend(diag.list(ipv6, TCP, LIVE | 1 << OPENING | 1 << LISTEN)?);
                        sockets.extend(diag.list(ipv6, UDP, 1 << ESTABLISHED | 1 << CLOSED)?);
                    }
                    Ok(sockets)
                })?
            });
            match sockets {
                Ok(sockets) => Some(Listed { netns, sockets }),
                Err(error) => {
                    tracing::warn!(netns, %error, "cannot list the sockets of a namespace");
                    None
                }
            }
        })
        .collect()
}

/// Which sockets are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Search {
    /// Those older than the hooks: no UDP socket is known by its bind.
    Older,
    /// Those that nobody told of while the hooks were there: a UDP socket that no hook noted was not bound by anyone.
    Missed,
}

/// Sockets that no hook had seen, or of which word was lost.
#[derive(Debug, Default)]
pub struct Older {
    /// Connections, as the hooks would have filed them now.
    pub connections: Vec<(u64, Connection)>,
    /// Those whose handshake is not complete: filed for the hooks, which judge them when it is.
    pub opening: Vec<(u64, Connection)>,
    /// Workloads with bound UDP sockets.
    pub udp_workloads: BTreeSet<u64>,
    /// Sockets that are behind their fence.
    pub fenced: Vec<RefusedSocket>,
    /// The namespaces whose sockets were listed.
    pub listed: BTreeSet<u64>,
    /// What became of listeners.
    pub adopted: Adopted,
    /// Listeners, and connections in their handshake, that found no room in the kernel's maps.
    pub left_out: usize,
}

/// What a search goes by.
pub(super) struct Finder<'a> {
    pub table: &'a AllowTable,
    pub search: Search,
    /// The workload of a cgroup, if it is below a managed root.
    pub owner: &'a Owner<'a>,
    /// Whether a cgroup is another one or lies below it.
    pub is_below: &'a dyn Fn(u64, u64) -> bool,
    /// The managed processes.
    pub pids: &'a [u32],
    /// The socket storage of other versions.
    pub elders: &'a [OwnedFd],
    /// Whether the programs of one have judged handshakes.
    pub succeeds: bool,
    /// By whom listeners are made to prove who they are, where they shall.
    pub adopter: Option<&'a dyn Fn() -> Adopter>,
}

impl Finder<'_> {
    /// Finds sockets of managed workloads among those listed, and gives the listeners among them their owners. `seen`
    /// is what the hooks had filed *after* the listing: what they file has a better name than can be found out here.
    pub(super) fn find(
        &self,
        pins: &Pins,
        tables: &mut Tables,
        shares: &Shares,
        listed: Vec<Listed>,
        seen: &HashMap<u64, Connection>,
    ) -> Result<Older, KernelError> {
        let mut older = Older::default();
        let mut filed = Filed {
            programs: shares.filed()?,
            agent: tables.uncounted()?,
        };
        let mut foundlings: HashMap<u32, Foundling> = HashMap::new();
        for Listed { netns, sockets } in listed {
            older.listed.insert(netns);
            // A socket whose local place is listened on is the inbound end; so is a datagram socket of its own that
            // answers one client of a port at which others are waited for.
            let listening: Vec<(u8, Address, u16)> = sockets
                .iter()
                .filter(|socket| waits(socket) && socket.target.local_port != 0)
                .map(|socket| {
                    (
                        socket.target.protocol,
                        socket.target.local,
                        socket.target.local_port,
                    )
                })
                .collect();
            // Listeners first: they name the other end of connections within the namespace.
            let (waiting, connected): (Vec<&Found>, Vec<&Found>) =
                sockets.iter().partition(|socket| waits(socket));
            let mut places = Places::new();
            for socket in waiting {
                if socket.target.local_port != 0
                    && let Some(workload) = (self.owner)(socket.cgroup, tables.workloads())
                {
                    let place = places.entry(waiting::place(netns, socket)).or_default();
                    place.push((socket, workload));
                }
            }
            for (place, sockets) in &places {
                self.note(tables, &mut filed, place, sockets, (&mut older, &mut foundlings))?;
            }
            for socket in connected {
                let target = &socket.target;
                if target.interface == names::NO_INTERFACE && target.protocol == TCP {
                    older.fenced.push(RefusedSocket::listed(netns, target));
                    continue;
                }
                let Some(workload) = (self.owner)(socket.cgroup, tables.workloads()) else {
                    continue;
                };
                match seen.get(&target.cookie) {
                    // Filed under the workload around it, before it was one of its own.
                    Some(known)
                        if known.workload != workload && (self.is_below)(workload, known.workload) =>
                    {
                        let connection = Connection { workload, ..*known };
                        older.connections.push((target.cookie, connection));
                    }
                    None if target.remote_port != 0 => {
                        let inbound = listening.iter().any(|(protocol, address, port)| {
                            *protocol == target.protocol
                                && *port == target.local_port
                                && (address.is_unspecified() || *address == target.local)
                        });
                        let mut filed = connection(tables, self.table, netns, socket, workload, inbound);
                        if self.succeeds {
                            // Another version let it pass, and has had it prove what it has to.
                            filed.flags |= CONNECTION_PROVEN;
                        }
                        if socket.state == OPENING && target.protocol == TCP {
                            let flags = filed.flags & !CONNECTION_ESTABLISHED | CONNECTION_UNCOUNTED;
                            older.opening.push((target.cookie, Connection { flags, ..filed }));
                        } else {
                            older.connections.push((target.cookie, filed));
                        }
                    }
                    _ => {}
                }
            }
        }
        let mut places = waiting::Given { tables, shares };
        older.adopted = adopt(
            pins,
            foundlings,
            self.pids,
            self.elders,
            self.adopter,
            &mut places,
        )?;
        Ok(older)
    }
}

/// Parts connections that have ended from those that live. Where a namespace cannot be listed, they count as living.
pub(super) fn by_life<'a>(
    connections: &'a mut [Revoked],
    namespaces: &Namespaces,
) -> (&'a mut [Revoked], &'a mut [Revoked]) {
    if connections.is_empty() {
        return (&mut [], connections);
    }
    let wanted: BTreeSet<u64> = connections
        .iter()
        .map(|revoked| revoked.connection.netns)
        .collect();
    let mut listed = BTreeSet::new();
    let mut live = HashSet::new();
    for Listed { netns, sockets } in list(namespaces, Some(&wanted)) {
        listed.insert(netns);
        live.extend(sockets.iter().map(|socket| socket.target.cookie));
    }
    let ended =
        |revoked: &Revoked| listed.contains(&revoked.connection.netns) && !live.contains(&revoked.cookie);
    connections.sort_unstable_by_key(|revoked| !ended(revoked));
    let middle = connections.partition_point(ended);
    connections.split_at_mut(middle)
}

/// Whether a socket waits for others to begin.
pub(super) fn waits(socket: &Found) -> bool {
    socket.state == LISTEN || (socket.target.protocol == UDP && socket.state == CLOSED)
}

/// A connection as the hooks would have filed it, its other end named by the directory.
fn connection(
    tables: &Tables,
    table: &AllowTable,
    netns: u64,
    socket: &Found,
    workload: u64,
    inbound: bool,
) -> Connection {
    let target = &socket.target;
    let local = tables.is_local(netns, &target.remote);
    let own = tables
        .workloads()
        .get(&workload)
        .map_or(identity::UNKNOWN, |own| own.identity);
    let front = (!inbound)
        .then(|| tables.service(target.remote, target.remote_port, target.protocol))
        .flatten();
    let other = if let Some(front) = front {
        front.identity
    } else if local {
        let wildcards = [target.remote, Address::UNSPECIFIED_V4, Address::UNSPECIFIED_V6];
        let listener = wildcards.into_iter().find_map(|address| {
            let key = ListenerKey {
                netns,
                address,
                port: target.remote_port,
                protocol: target.protocol,
                reserved: [0; 5],
            };
            tables.listener(&key)
        });
        match listener {
            Some(listener) if listener.ambiguous == 0 => tables
                .workloads()
                .get(&listener.workload)
                .map_or(identity::UNKNOWN, |owner| owner.identity),
            Some(_) => identity::UNKNOWN,
            None => identity::HOST,
        }
    } else {
        tables.peers().get(&target.remote).map_or_else(
            || table.networks().number_at(target.remote.into()),
            |peer| peer.identity,
        )
    };
    let (source, destination) = if inbound { (other, own) } else { (own, other) };
    let mut flags = CONNECTION_ESTABLISHED;
    for (on, flag) in [
        (inbound, CONNECTION_INBOUND),
        (target.ipv6, CONNECTION_IPV6),
        (local, CONNECTION_LOCAL),
    ] {
        if on {
            flags |= flag;
        }
    }
    Connection {
        netns,
        workload,
        source,
        destination,
        local: target.local,
        remote: target.remote,
        local_port: target.local_port,
        remote_port: target.remote_port,
        target_port: if inbound {
            target.local_port
        } else {
            front.map_or(target.remote_port, |front| front.target_port)
        },
        protocol: target.protocol,
        flags,
        ..Connection::BLANK
    }
}
