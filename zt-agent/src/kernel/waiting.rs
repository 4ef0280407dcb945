// SPDX-License-Identifier: Apache-2.0
//! Sockets that wait for others to begin, and that no hook has noted: given their places, all that share one together.

use std::collections::{HashMap, HashSet};

use zt_common::abi::{
    CONNECTION_ESTABLISHED, CONNECTION_UNCOUNTED, Connection, ListenerKey, SHARE_LISTENERS, SOCKET_LEFT,
    SOCKET_NOTED, Socket,
};
use zt_common::address::Address;
use zt_common::names::LISTENER_SHARE;

use super::adopt::Foundling;
use super::error::KernelError;
use super::older::{Finder, Listed, Older, Search, waits};
use super::shares::{self, Shares, Uncounted};
use super::sock_diag::{Found, UDP};
use super::tables::{Noted, Tables};

/// Those of one namespace, by the place where they wait, each with its workload.
pub(super) type Places<'a> = HashMap<ListenerKey, Vec<(&'a Found, u64)>>;

/// What is filed of each share: by the programs, and by the agent itself.
pub(super) struct Filed {
    pub programs: HashMap<u64, u64>,
    pub agent: Uncounted,
}

/// The place at which a socket waits.
pub(super) fn place(netns: u64, socket: &Found) -> ListenerKey {
    let target = &socket.target;
    ListenerKey {
        netns,
        address: wildcard_of_family(target.local, target.ipv6),
        port: target.local_port,
        protocol: target.protocol,
        reserved: [0; 5],
    }
}

impl Finder<'_> {
    /// Notes a place at which sockets of workloads wait, if no hook has. By whom they are to be known goes into `foundlings`.
    pub(super) fn note(
        &self,
        tables: &mut Tables,
        filed: &mut Filed,
        key: &ListenerKey,
        sockets: &[(&Found, u64)],
        (older, foundlings): (&mut Older, &mut HashMap<u32, Foundling>),
    ) -> Result<(), KernelError> {
        let Some(&(_, first)) = sockets.first() else {
            return Ok(());
        };
        let there = tables.listener(key);
        let udp = key.protocol == UDP;
        if udp && (there.is_some() || self.search == Search::Older) {
            older
                .udp_workloads
                .extend(sockets.iter().map(|(_, workload)| *workload));
        }
        if udp && self.search == Search::Missed {
            // A UDP port that the kernel chose is not waited at.
            return Ok(());
        }
        let (owned, flag) = if let Some(there) = there {
            // By the hooks, or by a predecessor for which handshakes may not have borne identities.
            let asked = !udp && self.adopter.is_some() && self.search == Search::Older;
            if !asked && sockets.len() as u64 <= there.sockets {
                return Ok(());
            }
            (true, 0)
        } else {
            let share = first | SHARE_LISTENERS;
            let noted = if shares::has_room(&filed.programs, &filed.agent, share, LISTENER_SHARE) {
                let ambiguous = sockets.iter().any(|(_, workload)| *workload != first);
                tables.add_listener(key, first, sockets.len(), ambiguous)?
            } else {
                Noted::Full
            };
            match noted {
                Noted::Added => {
                    *filed.agent.entry(share).or_default() += 1;
                    (false, SOCKET_NOTED)
                }
                Noted::There => (true, 0),
                Noted::Full => {
                    older.left_out += sockets.len();
                    (false, SOCKET_LEFT)
                }
            }
        };
        for (socket, workload) in sockets {
            let cookie = socket.target.cookie;
            let entry = Socket {
                workload: *workload,
                cgroup: socket.cgroup,
                netns: key.netns,
                address: key.address,
                port: key.port,
                protocol: key.protocol,
                flags: flag,
                holder: cookie as u32,
            };
            foundlings.insert(socket.inode, Foundling { entry, cookie, owned });
        }
        Ok(())
    }
}

/// Where it is said of a borrowed socket that it waits at its place.
pub(super) struct Given<'a> {
    pub tables: &'a mut Tables,
    pub shares: &'a Shares,
}

impl Given<'_> {
    /// Counts one more socket at a place that is noted.
    pub(super) fn join(&mut self, socket: &Socket) -> Result<(), KernelError> {
        let key = ListenerKey {
            netns: socket.netns,
            address: socket.address,
            port: socket.port,
            protocol: socket.protocol,
            reserved: [0; 5],
        };
        self.tables.join_listener(&key, socket.workload)
    }

    /// Says that one waits at a place that is not noted.
    pub(super) fn leave_out(&self, netns: u64) -> Result<(), KernelError> {
        self.shares.listener_left(netns)
    }
}

/// What a listing shows, to be compared with what is filed.
#[derive(Default)]
pub(super) struct Present {
    namespaces: HashSet<u64>,
    waiting: HashSet<(u64, u8, u16)>,
    cookies: HashSet<u64>,
}

impl Present {
    pub(super) fn of(listed: &[Listed]) -> Self {
        let mut present = Self::default();
        for Listed { netns, sockets } in listed {
            present.namespaces.insert(*netns);
            for socket in sockets {
                let target = &socket.target;
                present.cookies.insert(target.cookie);
                // A datagram socket keeps its place while it is connected.
                if waits(socket) || target.protocol == UDP {
                    present
                        .waiting
                        .insert((*netns, target.protocol, target.local_port));
                }
            }
        }
        present
    }

    /// Whether nobody waits at a place, at whatever address.
    pub(super) fn lacks_place(&self, key: &ListenerKey) -> bool {
        self.namespaces.contains(&key.netns) && !self.waiting.contains(&(key.netns, key.protocol, key.port))
    }

    /// Whether a connection that the agent has filed in its handshake is not there any more.
    pub(super) fn lacks(&self, cookie: u64, connection: &Connection) -> bool {
        connection.flags & (CONNECTION_UNCOUNTED | CONNECTION_ESTABLISHED) == CONNECTION_UNCOUNTED
            && self.namespaces.contains(&connection.netns)
            && !self.cookies.contains(&cookie)
    }
}

/// Listings show the wildcard of an IPv6 socket as `::`, of an IPv4 socket as zeros that mean `0.0.0.0`.
fn wildcard_of_family(address: Address, ipv6: bool) -> Address {
    match (address.is_unspecified(), ipv6) {
        (true, true) => Address::UNSPECIFIED_V6,
        (true, false) => Address::UNSPECIFIED_V4,
        (false, _) => address,
    }
}
