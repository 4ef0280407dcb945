// SPDX-License-Identifier: Apache-2.0
//! Who is who: the identity behind an address, as the sending end can know it.

use aya_ebpf::btf_maps::lpm_trie::Key;
use zt_common::abi::{
    CONNECTION_FRONT, CONNECTION_PORTS, Listener, ListenerKey, LocalKey, PEER_HERE, SERVICE_PORTS,
    SERVICE_WORKLOADS, ServiceKey,
};
use zt_common::address::Address;
use zt_common::control::{Control, HAS_SERVICES};
use zt_common::entry::{AllowKey, Shapes};
use zt_common::identity;
use zt_common::verdict::{AllowLookup, Verdict};

use crate::call::TCP;
use crate::judge::Table;
use crate::{maps, unnoted};

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
    /// [`CONNECTION_FRONT`] where it is in the mesh and behind a virtual address, with [`CONNECTION_PORTS`] where that
    /// leads to several ports.
    pub front: u32,
    /// The node that it is on, see [`zt_common::abi::Peer`].
    pub node: u32,
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
            let mut front = 0;
            if service.flags & SERVICE_WORKLOADS != 0 && service.identity != identity::UNKNOWN {
                front = CONNECTION_FRONT;
                if service.flags & SERVICE_PORTS != 0 {
                    front |= CONNECTION_PORTS;
                }
            }
            return Party {
                identity: service.identity,
                port: service.target_port,
                here: false,
                local: false,
                front,
                node: 0,
                revision: 0,
            };
        }
    }
    // Plain numbers with a value on every path: an `Option` of a copy leaves registers unset, which the verifier refuses.
    // SAFETY: read once, copied at once.
    let (known, peer, flags, node) = match unsafe { maps::zt_peers.get(address) } {
        Some(peer) => (true, peer.identity, peer.flags, peer.node),
        None => (false, identity::UNKNOWN, 0, 0),
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
            front: 0,
            node: 0,
            revision: 0,
        };
    }
    if known {
        return Party {
            identity: peer,
            port,
            here: flags & PEER_HERE != 0,
            local: false,
            front: 0,
            node,
            revision: 0,
        };
    }
    let (identity, revision) = network(&address);
    Party {
        identity,
        port,
        here: false,
        local: false,
        front: 0,
        node: 0,
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
        // Or a workload of whose place there is no note.
        None if unnoted::has_listeners(netns) => identity::UNKNOWN,
        None => identity::HOST,
        Some(listener) if listener.ambiguous != 0 => identity::UNKNOWN,
        // SAFETY: read once, copied at once.
        Some(listener) => match unsafe { maps::zt_workloads.get(listener.workload) } {
            Some(workload) => workload.identity,
            None => identity::UNKNOWN,
        },
    }
}

/// The workload that accepts connections at a place of its namespace, if it is one.
#[inline(always)]
pub fn listening(netns: u64, address: &Address, port: u16) -> u64 {
    zt_owner(netns, &raw const *address, u32::from(port))
}

/// [`listening`], as a *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_owner(netns: u64, address: *const Address, port: u32) -> u64 {
    if address.is_null() {
        return identity::UNKNOWN;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    local_owner(netns, unsafe { &*address }, port as u16, TCP)
}

#[inline(always)]
fn listener_at(key: &ListenerKey) -> Option<&'static Listener> {
    // SAFETY: read before the program returns; an entry reused meanwhile is another listener of the same map.
    unsafe { maps::zt_listeners.get(key) }
}

/// The entity or named network of an address that no directory entry names, and the revision whose networks said so.
#[inline(always)]
pub fn network(address: &Address) -> (u64, u64) {
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
