// SPDX-License-Identifier: Apache-2.0
//! Who is who: the workload that acts, and the identity behind an address.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::btf_maps::lpm_trie::Key;
use zt_common::abi::{
    Listener, ListenerKey, LocalKey, MODE_ENFORCE, PEER_HERE, ServiceKey, Socket, Source, SourceKey,
};
use zt_common::address::Address;
use zt_common::control::{Control, HAS_ENFORCED, HAS_SERVICES, MAX_ROOTS, OBSERVE_ALL, UNKNOWN_DENY};
use zt_common::entry::{AllowEntry, AllowKey, Flow, Shapes};
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
    /// Not a `bool`: the compiler would compute a program's answer from the byte in memory, and the verifier, which
    /// does not know that it is 0 or 1, would refuse that.
    enforced: u64,
    /// Whether the task is outside every managed root.
    pub alien: bool,
}

impl Own {
    /// Whether policy's verdict happens.
    #[inline(always)]
    pub fn enforced(&self) -> bool {
        self.enforced != 0
    }

    /// A workload known by a stored entry.
    #[inline(always)]
    pub fn stored(control: &Control, workload: u64, identity: u64, enforced: bool) -> Self {
        let enforced = u64::from(enforced && control.flags & OBSERVE_ALL == 0);
        Self {
            workload,
            identity,
            enforced,
            alien: false,
        }
    }

    #[inline(always)]
    fn unknown(control: &Control, workload: u64, alien: bool) -> Self {
        let flag = if alien { HAS_ENFORCED } else { UNKNOWN_DENY };
        Self {
            alien,
            ..Self::stored(control, workload, identity::UNKNOWN, control.flags & flag != 0)
        }
    }

    #[inline(always)]
    fn named(control: &Control, workload: u64) -> Option<Self> {
        // SAFETY: read once, copied at once.
        let entry = unsafe { maps::zt_workloads.get(workload) }?;
        Some(Self::stored(
            control,
            workload,
            entry.identity,
            entry.mode == MODE_ENFORCE,
        ))
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
    /// The revision whose networks named it, or 0 where its name does not depend on the policy.
    revision: u64,
}

impl Party {
    /// Whether the party was named under another policy than the one that judged it: then ask once more. Between two
    /// swaps lie milliseconds, so that the second time both are of one revision.
    #[inline(always)]
    pub fn outdated(&self, verdict: &Verdict) -> bool {
        self.revision != 0 && self.revision != verdict.revision
    }
}

/// Whether `address` reaches the namespace itself.
#[inline(always)]
pub fn is_local(netns: u64, address: &Address) -> bool {
    if address.is_loopback() || address.is_unspecified() {
        return true;
    }
    let key = LocalKey {
        netns,
        address: *address,
    };
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
    let Target {
        netns,
        address,
        port,
        protocol,
    } = *target;
    if control.flags & HAS_SERVICES != 0 {
        let key = ServiceKey {
            address,
            port,
            protocol,
            reserved: 0,
        };
        // SAFETY: read once, copied at once.
        if let Some(service) = unsafe { maps::zt_services.get(key) } {
            return Party {
                identity: service.identity,
                port: service.target_port,
                here: false,
                local: false,
                revision: 0,
            };
        }
    }
    // Plain numbers with a value on every path: an `Option` of a copy leaves registers unset, which the verifier refuses.
    // SAFETY: read once, copied at once.
    let (known, peer, flags) = match unsafe { maps::zt_peers.get(address) } {
        Some(peer) => (true, peer.identity, peer.flags),
        None => (false, identity::UNKNOWN, 0),
    };
    // The address of a workload elsewhere is never this namespace's own: one lookup less.
    let elsewhere = known && flags & PEER_HERE == 0 && identity::is_workload(peer);
    if !elsewhere && is_local(netns, &address) {
        let identity = local_owner(netns, &address, port, protocol);
        return Party {
            identity,
            port,
            here: true,
            local: true,
            revision: 0,
        };
    }
    if known {
        return Party {
            identity: peer,
            port,
            here: flags & PEER_HERE != 0,
            local: false,
            revision: 0,
        };
    }
    let (identity, revision) = network(&address);
    Party {
        identity,
        port,
        here: false,
        local: false,
        revision,
    }
}

/// Whether an address is that of a workload of this node, which records what it sends at its own end.
#[inline(always)]
pub fn is_here(address: &Address, identity: u64) -> bool {
    // SAFETY: read once, copied at once.
    let peer = unsafe { maps::zt_peers.get(*address) };
    identity::is_workload(identity) && matches!(peer, Some(peer) if peer.flags & PEER_HERE != 0)
}

/// Who listens at a local place: exactly there, else on a wildcard of either family; the host where no workload does.
#[inline(always)]
fn local_owner(netns: u64, address: &Address, port: u16, protocol: u8) -> u64 {
    let mut key = ListenerKey {
        netns,
        address: *address,
        port,
        protocol,
        reserved: [0; 5],
    };
    let v4 = address.is_v4();
    if address.is_unspecified() {
        // What the kernel turns an unspecified destination into.
        key.address = if v4 {
            Address::from_v4([127, 0, 0, 1])
        } else {
            Address::from_words([0, 0, 0, 1_u32.to_be()])
        };
    }
    let mut listener = listener_at(&key);
    if listener.is_none() && v4 {
        key.address = Address::UNSPECIFIED_V4;
        listener = listener_at(&key);
    }
    if listener.is_none() {
        key.address = Address::UNSPECIFIED_V6;
        listener = listener_at(&key);
    }
    match listener {
        None => identity::HOST,
        Some(listener) if listener.ambiguous != 0 => identity::UNKNOWN,
        // SAFETY: read once, copied at once.
        Some(listener) => match unsafe { maps::zt_workloads.get(listener.workload) } {
            Some(workload) => workload.identity,
            None => identity::UNKNOWN,
        },
    }
}

#[inline(always)]
fn listener_at(key: &ListenerKey) -> Option<&'static Listener> {
    // SAFETY: read before the program returns; an entry reused meanwhile is another listener of the same map.
    unsafe { maps::zt_listeners.get(key) }
}

/// The entity or named network of an address that no directory entry names, and the revision whose networks said so.
#[inline(always)]
fn network(address: &Address) -> (u64, u64) {
    let (revision, bits) = match Table::in_force() {
        Some(table) => match table.get(&AllowKey::HEADER) {
            Some(header) => (header.number, header.bits),
            None => (0, 0),
        },
        None => (0, 0),
    };
    let slot = u32::from(bits & Shapes::NETWORK_SLOT != 0);
    let number = match maps::zt_networks.get(slot) {
        Some(networks) => match networks.get(&Key::new(128, *address)) {
            Some(number) => *number,
            None => identity::WORLD,
        },
        None => identity::WORLD,
    };
    (number, revision)
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
    /// See [`Party`].
    pub revision: u64,
}

impl Origin {
    /// See [`Party::outdated`].
    #[inline(always)]
    pub fn outdated(&self, verdict: &Verdict) -> bool {
        self.revision != 0 && self.revision != verdict.revision
    }
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
        return Origin {
            identity: identity::HOST,
            managed: false,
            revision: 0,
        };
    }
    by_address(&arrival.remote)
}

/// Who is behind an address that is not the namespace's own.
#[inline(never)]
pub fn by_address(address: &Address) -> Origin {
    // SAFETY: read once, copied at once.
    if let Some(peer) = unsafe { maps::zt_peers.get(*address) } {
        return Origin {
            identity: peer.identity,
            managed: false,
            revision: 0,
        };
    }
    let (identity, revision) = network(address);
    Origin {
        identity,
        managed: false,
        revision,
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
    Some(Origin {
        identity,
        managed: true,
        revision: 0,
    })
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
#[inline(always)]
pub fn judge(flow: &Flow) -> Verdict {
    let mut judged = Judged { rule: 0, revision: 0 };
    let port_and_protocol = u32::from(flow.port) | u32::from(flow.protocol) << 16;
    let answer = zt_judge(flow.source, flow.destination, port_and_protocol, &raw mut judged);
    Verdict {
        allowed: answer & ALLOWED_BIT != 0,
        // SAFETY: the low byte is a `Reason` that `zt_judge` cast to its number.
        reason: unsafe { core::mem::transmute::<u8, Reason>(answer as u8) },
        rule: judged.rule,
        revision: judged.revision,
    }
}

const ALLOWED_BIT: u32 = 1 << 8;

/// The part of a verdict that `zt_judge` hands back through memory.
#[repr(C)]
pub struct Judged {
    rule: u64,
    revision: u64,
}

/// The verdict function over the table in force: the reason's number, and [`ALLOWED_BIT`].
///
/// A *global* function of the object: the verifier looks at it once, by itself, and not again for every state of
/// every caller. Its search over the shapes of a table would otherwise exceed what the verifier is willing to walk.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_judge(
    source: u64,
    destination: u64,
    port_and_protocol: u32,
    judged: *mut Judged,
) -> u32 {
    if judged.is_null() {
        return Reason::NoPolicy as u32;
    }
    let flow = Flow {
        source,
        destination,
        port: port_and_protocol as u16,
        protocol: (port_and_protocol >> 16) as u8,
    };
    let verdict = match Table::in_force() {
        Some(table) => verdict::verdict(&table, &flow),
        None => Verdict::refusal(Reason::NoPolicy, 0),
    };
    // SAFETY: checked above; the verifier knows the size from the type.
    unsafe {
        (*judged).rule = verdict.rule;
        (*judged).revision = verdict.revision;
    }
    verdict.reason as u32 | if verdict.allowed { ALLOWED_BIT } else { 0 }
}

/// The revision in force, 0 before the first.
#[inline(always)]
pub fn revision() -> u64 {
    match Table::in_force() {
        Some(table) => table.revision(),
        None => 0,
    }
}
