// SPDX-License-Identifier: Apache-2.0
//! Who a connection or datagram comes from, as the receiving end can know it.

use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{PEER_HERE, PEER_PROVES};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::identity;
use zt_common::verdict::Verdict;

use crate::lookup::network;
use crate::proof::Claim;
use crate::sender::{Arrival, LED, MEANT, PAST};
use crate::{emit, keys, maps};

/// Who a flow comes from, as the receiving end can know it.
#[derive(Clone, Copy)]
pub struct Origin {
    /// Its identity.
    pub identity: u64,
    /// It is a managed workload of this node, and records at its own end.
    pub managed: bool,
    /// Its address would be a name, and it did not prove to be the one.
    pub unproven: bool,
    /// See [`crate::lookup::Party`].
    pub revision: u64,
}

impl Origin {
    /// Nobody is known to be it.
    pub const NOBODY: Self = Self {
        identity: identity::UNKNOWN,
        managed: false,
        unproven: false,
        revision: 0,
    };

    /// See [`crate::lookup::Party::outdated`].
    #[inline(always)]
    pub fn outdated(&self, verdict: &Verdict) -> bool {
        self.revision != 0 && self.revision != verdict.revision
    }
}

/// The source of a connection: by what its SYN proves, by this node's own sockets, as an entity, by address.
///
/// A tag that does not verify is no better than none: whoever has one that does not could have left it out, and whose address has been
/// translated on the way has one. It names no workload, and no address of a workload does in its stead; what this kernel itself
/// knows of the very SYN stands. Nor does the address of a workload of this node name who proves nothing: its sockets do.
#[inline(never)]
pub fn origin(ctx: &SockOpsContext, claim: &Claim) -> Origin {
    if claim.is_proven() {
        return Origin {
            identity: claim.identity,
            // On another node it is not our records that its connection is in.
            managed: claim.node == 0,
            unproven: false,
            revision: 0,
        };
    }
    let arrival = Arrival::complete(ctx);
    let mut known = identity::UNKNOWN;
    let how = arrival.sender(&mut known);
    if how == MEANT || how == LED {
        return Origin {
            identity: known,
            managed: true,
            unproven: false,
            revision: 0,
        };
    }
    let home = arrival.is_home();
    let bare = claim.is_absent() || claim.is_invalid();
    // From the namespace itself, whoever is no workload is the host. With a tag that is none, he is not.
    let unproven = how == PAST || bare && !home && would_prove(&arrival.remote);
    if unproven && claim.is_absent() {
        emit::count(Counter::OptionsMissing);
    }
    if unproven || home && claim.is_invalid() {
        return Origin {
            unproven,
            ..Origin::NOBODY
        };
    }
    if home {
        return Origin {
            identity: identity::HOST,
            managed: false,
            unproven: false,
            revision: 0,
        };
    }
    let origin = by_address(&arrival.remote);
    if claim.is_invalid() && identity::is_workload(origin.identity) {
        return Origin::NOBODY;
    }
    origin
}

/// Whether one of this node's own workloads has just sent this very SYN to this place.
#[inline(always)]
pub fn is_ours(ctx: &SockOpsContext, sequence: u32) -> bool {
    unanswered(ctx, sequence) == MEANT
}

/// What this kernel knows of a SYN that nobody has answered. A function of its own in the object, so that it does not share the
/// caller's stack.
#[inline(never)]
fn unanswered(ctx: &SockOpsContext, sequence: u32) -> u32 {
    let mut known = identity::UNKNOWN;
    Arrival::unanswered(ctx, sequence).sender(&mut known)
}

/// Whether the directory has a workload at an address whose kernel has it prove who it is: one of this node, or of a node
/// whose agent says so and with which there are keys to do it with.
#[inline(always)]
fn would_prove(address: &Address) -> bool {
    // SAFETY: read once, copied at once.
    match unsafe { maps::zt_peers.get(*address) } {
        Some(peer) if identity::is_workload(peer.identity) => {
            peer.flags & PEER_HERE != 0 || peer.flags & PEER_PROVES != 0 && keys::has_key(peer.node)
        }
        _ => false,
    }
}

/// The node at an address, with which a key is shared; 0 for this one, whose own key is for whatever else there is.
#[inline(always)]
pub fn node_at(address: &Address) -> u32 {
    // SAFETY: read once, copied at once.
    match unsafe { maps::zt_peers.get(*address) } {
        Some(peer) if peer.flags & PEER_HERE == 0 => peer.node,
        _ => 0,
    }
}

/// With whom the key is shared that answers a SYN to a virtual address: 0 within this node, or another node. [`NOBODY`] where
/// its source's address was translated, or is unknown: the answer would not be understood.
#[inline(always)]
pub fn asking(ctx: &SockOpsContext, address: &Address, sequence: u32) -> u32 {
    // SAFETY: read once, copied at once.
    match unsafe { maps::zt_peers.get(*address) } {
        Some(peer)
            if peer.flags & PEER_HERE == 0 && peer.node != 0 && identity::is_workload(peer.identity) =>
        {
            return peer.node;
        }
        _ => {}
    }
    // Whatever its address: a SYN that our own socket sent, and that bears the address which that has.
    match unanswered(ctx, sequence) {
        MEANT | LED => 0,
        _ => NOBODY,
    }
}

/// No node's number.
pub const NOBODY: u32 = u32::MAX;

/// Who is behind an address that is not the namespace's own.
#[inline(never)]
pub fn by_address(address: &Address) -> Origin {
    // SAFETY: read once, copied at once.
    if let Some(peer) = unsafe { maps::zt_peers.get(*address) } {
        return Origin {
            identity: peer.identity,
            managed: false,
            unproven: false,
            revision: 0,
        };
    }
    let (identity, revision) = network(address);
    Origin {
        identity,
        managed: false,
        unproven: false,
        revision,
    }
}
