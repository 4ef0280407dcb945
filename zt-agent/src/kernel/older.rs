// SPDX-License-Identifier: Apache-2.0
//! Sockets older than the hooks: connections that no hook has seen are found in the kernel's own lists and judged like
//! the others, and listeners are given their owners, so that what they accept from now on is judged by the hooks.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

use aya::maps::{Map, MapData, SkStorage};
use zt_common::abi::{
    CONNECTION_ESTABLISHED, CONNECTION_INBOUND, CONNECTION_IPV6, CONNECTION_LOCAL, Connection, ListenerKey,
    SOCKET_NOTED, Socket,
};
use zt_common::address::Address;
use zt_common::identity;
use zt_common::names;

use super::error::KernelError;
use super::host::Pins;
use super::load;
use super::netns::{self, Namespaces};
use super::sock_diag::{CLOSED, ESTABLISHED, Found, LISTEN, SockDiag, TCP, UDP};
use super::tables::Tables;
use crate::policy::AllowTable;

/// States in which a TCP connection can still carry data.
const LIVE: u32 = 1 << ESTABLISHED | 1 << 4 | 1 << 5 | 1 << 8;

/// What one namespace holds.
struct Listed {
    netns: u64,
    sockets: Vec<Found>,
}

/// Lists the sockets of every known namespace.
fn list(namespaces: &Namespaces) -> Vec<Listed> {
    namespaces
        .cookies()
        .filter_map(|netns| {
            let sockets = namespaces.open(netns).and_then(|namespace| {
                netns::inside(&namespace, || -> io::Result<Vec<Found>> {
                    let diag = SockDiag::open()?;
                    let mut sockets = Vec::new();
                    for ipv6 in [false, true] {
                        sockets.extend(diag.list(ipv6, TCP, LIVE | 1 << LISTEN)?);
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

/// Sockets that no hook had seen.
#[derive(Debug, Default)]
pub struct Older {
    /// Connections, as the hooks would have filed them.
    pub connections: Vec<(u64, Connection)>,
    /// Workloads with bound UDP sockets.
    pub udp_workloads: Vec<u64>,
}

/// Finds the sockets of managed workloads that no hook has seen, and gives the listeners among them their owners.
///
/// `owner` gives the workload of a cgroup, if it is below a managed root. `pids` are the managed processes.
pub(super) fn find(
    pins: &Pins,
    tables: &mut Tables,
    table: &AllowTable,
    seen: &HashMap<u64, Connection>,
    namespaces: &Namespaces,
    owner: &dyn Fn(u64) -> Option<u64>,
    pids: &[u32],
) -> Result<Older, KernelError> {
    let storage = Map::SkStorage(load::open(pins, names::SOCKETS)?);
    let mut storage: SkStorage<MapData, Socket> =
        storage.try_into().map_err(KernelError::map(names::SOCKETS))?;
    let mut older = Older::default();
    let mut orphans: HashMap<u32, Socket> = HashMap::new();
    for Listed { netns, sockets } in list(namespaces) {
        // A TCP socket whose local place is listened on is the inbound end.
        let listening: Vec<(Address, u16)> = sockets
            .iter()
            .filter(|socket| socket.state == LISTEN && socket.target.protocol == TCP)
            .map(|socket| (socket.target.local, socket.target.local_port))
            .collect();
        // Listeners first: they name the other end of connections within the namespace.
        let (waiting, connected): (Vec<&Found>, Vec<&Found>) =
            sockets.iter().partition(|socket| waits(socket));
        for socket in waiting.into_iter().chain(connected) {
            let Some(workload) = owner(socket.cgroup) else {
                continue;
            };
            let target = &socket.target;
            if waits(socket) {
                if target.local_port == 0 {
                    continue;
                }
                let key = ListenerKey {
                    netns,
                    address: wildcard_of_family(target.local, target.ipv6),
                    port: target.local_port,
                    protocol: target.protocol,
                    reserved: [0; 5],
                };
                if tables.listener(&key).is_some() {
                    continue;
                }
                tables.add_listener(key, workload)?;
                if target.protocol == UDP {
                    older.udp_workloads.push(workload);
                }
                let entry = Socket {
                    workload,
                    cgroup: socket.cgroup,
                    netns,
                    address: key.address,
                    port: key.port,
                    protocol: key.protocol,
                    flags: SOCKET_NOTED,
                    reserved: 0,
                };
                orphans.insert(socket.inode, entry);
            } else if !seen.contains_key(&target.cookie) && target.remote_port != 0 {
                let inbound = target.protocol == TCP
                    && listening.iter().any(|(address, port)| {
                        *port == target.local_port && (address.is_unspecified() || *address == target.local)
                    });
                older.connections.push((
                    target.cookie,
                    connection(tables, table, netns, socket, workload, inbound),
                ));
            }
        }
    }
    if !orphans.is_empty() {
        adopt(&mut storage, orphans, pids);
    }
    Ok(older)
}

/// Whether a socket waits for others to begin.
fn waits(socket: &Found) -> bool {
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
    let other = if local {
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
        rule: 0,
        revision: 0,
        local: target.local,
        remote: target.remote,
        local_port: target.local_port,
        remote_port: target.remote_port,
        target_port: if inbound {
            target.local_port
        } else {
            target.remote_port
        },
        protocol: target.protocol,
        flags,
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

/// Stores owners with listening sockets, through descriptors borrowed from the processes that hold them.
fn adopt(storage: &mut SkStorage<MapData, Socket>, mut orphans: HashMap<u32, Socket>, pids: &[u32]) {
    for &pid in pids {
        if orphans.is_empty() {
            return;
        }
        let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else {
            continue;
        };
        for entry in entries.flatten() {
            let Some(inode) = socket_inode(&entry.path()) else {
                continue;
            };
            let Some(socket) = orphans.get(&inode) else {
                continue;
            };
            let number = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok());
            let stored = number
                .ok_or(io::ErrorKind::InvalidData.into())
                .and_then(|number| {
                    let fd = borrow_descriptor(pid, number)?;
                    storage
                        .insert(&fd.as_raw_fd(), socket, 0)
                        .map_err(io::Error::other)
                });
            match stored {
                Ok(()) => {
                    orphans.remove(&inode);
                }
                Err(error) => tracing::warn!(pid, %error, "cannot give a listening socket its owner"),
            }
        }
    }
    if !orphans.is_empty() {
        tracing::warn!(
            sockets = orphans.len(),
            "listening sockets whose holder was not found: what they accept is `unknown`"
        );
    }
}

fn socket_inode(path: &Path) -> Option<u32> {
    let link = fs::read_link(path).ok()?;
    link.to_str()?
        .strip_prefix("socket:[")?
        .strip_suffix(']')?
        .parse()
        .ok()
}

/// A copy of another process's descriptor.
#[expect(unsafe_code, reason = "nix offers neither pidfd_open nor pidfd_getfd")]
fn borrow_descriptor(pid: u32, number: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system calls; the results are descriptors that nobody else owns.
    unsafe {
        let process = libc::syscall(libc::SYS_pidfd_open, pid, 0);
        if process < 0 {
            return Err(io::Error::last_os_error());
        }
        let process = OwnedFd::from_raw_fd(process as i32);
        let copy = libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0);
        if copy < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(OwnedFd::from_raw_fd(copy as i32))
    }
}
