// SPDX-License-Identifier: Apache-2.0
//! Who is who: the workload that acts, and the identity behind an address.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::lpm_trie::Key;
use zt_common::abi::{
    Listener, ListenerKey, LocalKey, MODE_ENFORCE, PEER_HERE, ServiceKey, Socket, Source, SourceKey,
};
use zt_common::address::Address;
use zt_common::control::{Control, HAS_ENFORCED, HAS_SERVICES, MAX_ROOTS, OBSERVE_ALL, UNKNOWN_DENY};
use zt_common::entry::{AllowEntry, AllowKey, Flow};
use zt_common::identity;
use zt_common::verdict::{self, AllowLookup, Reason, Verdict};

use crate::{context, maps};

/// How many levels below a managed root a workload may lie. A deeper cgroup still inherits: what is searched is its
/// ancestors at these levels.
const DEPTH: u32 = 8;

/// The workload at this end of a decision.
#[derive(Clone, Copy)]
pub struct Own {
    /// Key in `zt_workloads`; the plain cgroup id where there is no entry.
    pub workload: u64,
    /// Its identity.
    pub identity: u64,
    /// Whether policy's verdict happens.
    pub enforced: bool,
    /// Whether the task is outside every managed root.
    pub alien: bool,
}

impl Own {
    #[inline(always)]
    fn unknown(control: &Control, workload: u64, alien: bool) -> Self {
        let flag = if alien { HAS_ENFORCED } else { UNKNOWN_DENY };
        let enforced = control.flags & flag != 0 && control.flags & OBSERVE_ALL == 0;
        Self { workload, identity: identity::UNKNOWN, enforced, alien }
    }

    #[inline(always)]
    fn named(control: &Control, workload: u64) -> Option<Self> {
        // SAFETY: read once, copied at once.
        let entry = unsafe { maps::zt_workloads.get(workload) }?;
        let enforced = entry.mode == MODE_ENFORCE && control.flags & OBSERVE_ALL == 0;
        Some(Self { workload, identity: entry.identity, enforced, alien: false })
    }

    /// The workload of the running task: by its cgroup, else by the nearest ancestor that is one.
    #[inline(always)]
    pub fn current(control: &Control) -> Self {
        let cgroup = context::current_cgroup();
        if let Some(own) = Self::named(control, cgroup) {
            return own;
        }
        let Some(level) = root_level(control) else {
            return Self::unknown(control, cgroup, true);
        };
        let mut step = DEPTH;
        while step > 0 {
            let ancestor = context::current_ancestor(level + step);
            if ancestor != 0 && ancestor != cgroup {
                if let Some(own) = Self::named(control, ancestor) {
                    return own;
                }
            }
            step -= 1;
        }
        Self::unknown(control, cgroup, false)
    }

    /// The workload that bound a socket, where there is no task to ask.
    #[inline(always)]
    pub fn of_socket(control: &Control, socket: &Socket) -> Self {
        if let Some(own) = Self::named(control, socket.cgroup) {
            return own;
        }
        if let Some(own) = Self::named(control, socket.workload) {
            return own;
        }
        Self::unknown(control, socket.workload, false)
    }

    /// Nothing is known of who owns the socket.
    #[inline(always)]
    pub fn missing(control: &Control) -> Self {
        Self::unknown(control, 0, false)
    }

    /// The workload of a socket, by the cgroup it was born in. For contexts that may ask a socket for it.
    ///
    /// A function of its own in the object, so that its search does not share the caller's stack.
    #[inline(never)]
    pub fn of_birth(control: &Control, sock: *mut bpf_sock) -> Self {
        let cgroup = context::cgroup_of(sock);
        if let Some(own) = Self::named(control, cgroup) {
            return own;
        }
        let mut slot = 0;
        while slot < MAX_ROOTS {
            let root = control.roots[slot];
            if root.id != 0 && context::ancestor_of(sock, root.level) == root.id {
                let mut step = DEPTH;
                while step > 0 {
                    let id = context::ancestor_of(sock, root.level + step);
                    if id != 0 && id != cgroup {
                        if let Some(own) = Self::named(control, id) {
                            return own;
                        }
                    }
                    step -= 1;
                }
                return Self::unknown(control, cgroup, false);
            }
            slot += 1;
        }
        Self::unknown(control, cgroup, true)
    }
}

/// Level of the managed root above the running task.
#[inline(always)]
fn root_level(control: &Control) -> Option<u32> {
    let mut slot = 0;
    while slot < MAX_ROOTS {
        let root = control.roots[slot];
        if root.id != 0 && context::current_ancestor(root.level) == root.id {
            return Some(root.level);
        }
        slot += 1;
    }
    None
}

/// The other party of a decision.
#[derive(Clone, Copy)]
pub struct Party {
    /// Its identity.
    pub identity: u64,
    /// The port that policy speaks about.
    pub port: u16,
    /// It is a workload of this node, whose own sockets are known here.
    pub here: bool,
    /// It is in the same network namespace.
    pub local: bool,
}

/// Whether `address` reaches the namespace itself.
#[inline(always)]
pub fn is_local(netns: u64, address: &Address) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let key = LocalKey { netns, address: *address };
    // SAFETY: presence only.
    unsafe { maps::zt_local.get(key) }.is_some()
}

/// Where a connection or datagram goes.
#[derive(Clone, Copy)]
pub struct Target {
    pub netns: u64,
    pub address: Address,
    pub port: u16,
    pub protocol: u8,
}

/// The destination of a connection or datagram.
///
/// A listener is asked for only where the address is the namespace's own: a wildcard listener accepts on every
/// address that its namespace has, and on no other.
#[inline(never)]
pub fn destination(control: &Control, target: &Target) -> Party {
    let Target { netns, address, port, protocol } = *target;
    if control.flags & HAS_SERVICES != 0 {
        let key = ServiceKey { address, port, protocol, reserved: 0 };
        // SAFETY: read once, copied at once.
        if let Some(service) = unsafe { maps::zt_services.get(key) } {
            return Party { identity: service.identity, port: service.target_port, here: false, local: false };
        }
    }
    // SAFETY: read once, copied at once.
    let peer = unsafe { maps::zt_peers.get(address) }.copied();
    // The address of a workload elsewhere is never this namespace's own: one lookup less.
    let elsewhere = matches!(peer, Some(peer) if peer.flags & PEER_HERE == 0 && identity::is_workload(peer.identity));
    if !elsewhere && is_local(netns, &address) {
        let identity = match listener(netns, &address, port, protocol) {
            Some(listener) if listener.ambiguous != 0 => identity::UNKNOWN,
            // SAFETY: read once, copied at once.
            Some(listener) => match unsafe { maps::zt_workloads.get(listener.workload) } {
                Some(workload) => workload.identity,
                None => identity::UNKNOWN,
            },
            None => identity::HOST,
        };
        return Party { identity, port, here: true, local: true };
    }
    match peer {
        Some(peer) => Party { identity: peer.identity, port, here: peer.flags & PEER_HERE != 0, local: false },
        None => Party { identity: network(&address), port, here: false, local: false },
    }
}

/// Whether an address is that of a workload of this node, which records what it sends at its own end.
#[inline(always)]
pub fn is_here(address: &Address, identity: u64) -> bool {
    // SAFETY: read once, copied at once.
    let peer = unsafe { maps::zt_peers.get(*address) };
    identity::is_workload(identity) && matches!(peer, Some(peer) if peer.flags & PEER_HERE != 0)
}

/// Who listens at a local place: exactly there, else on a wildcard of either family.
#[inline(always)]
fn listener(netns: u64, address: &Address, port: u16, protocol: u8) -> Option<Listener> {
    let mut key = ListenerKey { netns, address: *address, port, protocol, reserved: [0; 5] };
    if address.is_unspecified() {
        // What the kernel turns an unspecified destination into.
        key.address = if address.is_v4() {
            Address::from_v4([127, 0, 0, 1])
        } else {
            Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
        };
    }
    let v4 = key.address.is_v4();
    // SAFETY: read once, copied at once.
    if let Some(found) = unsafe { maps::zt_listeners.get(key) } {
        return Some(*found);
    }
    if v4 {
        key.address = Address::UNSPECIFIED_V4;
        // SAFETY: as above.
        if let Some(found) = unsafe { maps::zt_listeners.get(key) } {
            return Some(*found);
        }
    }
    key.address = Address::UNSPECIFIED_V6;
    // SAFETY: as above.
    unsafe { maps::zt_listeners.get(key) }.copied()
}

/// The entity or named network of an address that no directory entry names.
#[inline(always)]
fn network(address: &Address) -> u64 {
    match maps::zt_networks.get(&Key::new(128, *address)) {
        Some(number) => *number,
        None => identity::WORLD,
    }
}

/// What this end sees of a flow that reached it.
pub struct Arrival {
    /// Namespace of this end, or 0 where the context cannot tell.
    pub netns: u64,
    /// The other end's address.
    pub remote: Address,
    /// This end's address.
    pub local: Address,
    /// The other end's port.
    pub remote_port: u16,
    /// This end's port.
    pub local_port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// Who a flow comes from, as the receiving end can know it.
#[derive(Clone, Copy)]
pub struct Origin {
    /// Its identity.
    pub identity: u64,
    /// It is a managed workload of this node, and records at its own end.
    pub managed: bool,
}

/// The source of a connection: by this node's own sockets, as an entity, by address.
#[inline(never)]
pub fn origin(arrival: &Arrival) -> Origin {
    let local = is_local(arrival.netns, &arrival.remote);
    let key = SourceKey {
        netns: if local { arrival.netns } else { 0 },
        source: arrival.remote,
        destination: arrival.local,
        source_port: arrival.remote_port,
        destination_port: arrival.local_port,
        protocol: arrival.protocol,
        reserved: [0; 3],
    };
    if let Some(origin) = begun_here(&key) {
        return origin;
    }
    if local {
        return Origin { identity: identity::HOST, managed: false };
    }
    Origin { identity: by_address(&arrival.remote), managed: false }
}

/// The identity behind an address that is not the namespace's own.
#[inline(always)]
pub fn by_address(address: &Address) -> u64 {
    // SAFETY: read once, copied at once.
    match unsafe { maps::zt_peers.get(*address) } {
        Some(peer) => peer.identity,
        None => network(address),
    }
}

#[inline(always)]
fn begun_here(key: &SourceKey) -> Option<Origin> {
    // SAFETY: read once, copied at once.
    let source: Source = unsafe { maps::zt_sources.get(key) }.copied()?;
    // SAFETY: as above.
    let identity = match unsafe { maps::zt_workloads.get(source.workload) } {
        Some(workload) => workload.identity,
        None => source.identity,
    };
    Some(Origin { identity, managed: true })
}

/// The allow table in force, as the verdict function sees it.
pub struct Table(&'static maps::AllowTable);

impl Table {
    /// The table in force, or `None` before the first was put in place.
    #[inline(always)]
    pub fn in_force() -> Option<Self> {
        maps::zt_allow.get(0).map(|table| {
            // SAFETY: an inner map that a program has looked up lives until the program returns.
            Self(unsafe { &*core::ptr::from_ref(table) })
        })
    }

    /// Its revision.
    #[inline(always)]
    pub fn revision(&self) -> u64 {
        self.get(&AllowKey::HEADER).map_or(0, |header| header.number)
    }
}

impl AllowLookup for Table {
    #[inline(always)]
    fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
        // SAFETY: a table in force only ever gains entries; the value is copied at once.
        unsafe { self.0.get(key) }.copied()
    }
}

/// What the table in force says about a flow.
///
/// A function of its own in the object, so that its keys do not share the caller's stack.
#[inline(never)]
pub fn judge(flow: &Flow) -> Verdict {
    match Table::in_force() {
        Some(table) => verdict::verdict(&table, flow),
        None => Verdict::refusal(Reason::NoPolicy, 0),
    }
}

/// The revision in force, 0 before the first.
#[inline(always)]
pub fn revision() -> u64 {
    match Table::in_force() {
        Some(table) => table.revision(),
        None => 0,
    }
}
