// SPDX-License-Identifier: Apache-2.0
//! Who a connection or datagram comes from, as the receiving end can know it.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{PEER_HERE, PEER_PROVES, Source, SourceKey};
use zt_common::address::Address;
use zt_common::control::HAS_SERVICES;
use zt_common::counter::Counter;
use zt_common::identity;
use zt_common::verdict::Verdict;

use crate::call::TCP;
use crate::ends::{Ends, ends, next_received};
use crate::lookup::{is_local, network};
use crate::proof::Claim;
use crate::{context, emit, maps};

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
/// A tag that does not verify names nobody, and no address does in its stead; what this kernel itself knows of the very
/// SYN stands. Nor does the address of a workload of this node name who proves nothing: its sockets do.
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
    let arrival = ends(ctx);
    let netns = context::netns_cookie(ctx.as_ptr());
    let local = is_local(netns, &arrival.remote);
    // The one before the next: nothing but the SYN has been received.
    let sequence = next_received(ctx).wrapping_sub(1);
    if let Some(origin) = begun_here(&key_of(&arrival, if local { netns } else { 0 }), sequence) {
        return origin;
    }
    // It may have been sent to a virtual address.
    if has_services()
        && let Some(origin) = begun_here(&front_key(&arrival.remote, arrival.remote_port), sequence)
    {
        return origin;
    }
    // From the namespace itself, whoever is no workload is the host.
    let unproven = claim.is_absent() && !local && would_prove(&arrival.remote);
    if claim.is_invalid() || unproven {
        if unproven {
            emit::count(Counter::OptionsMissing);
        }
        return Origin {
            unproven,
            ..Origin::NOBODY
        };
    }
    if local {
        return Origin {
            identity: identity::HOST,
            managed: false,
            unproven: false,
            revision: 0,
        };
    }
    by_address(&arrival.remote)
}

/// Where a connection within the node is noted.
#[inline(always)]
fn key_of(arrival: &Ends, netns: u64) -> SourceKey {
    SourceKey {
        netns,
        source: arrival.remote,
        destination: arrival.local,
        source_port: arrival.remote_port,
        destination_port: arrival.local_port,
        protocol: TCP,
        reserved: [0; 3],
    }
}

/// Whether one of this node's own workloads has just sent this very SYN, whoever it was meant for.
#[inline(never)]
pub fn is_ours(ctx: &SockOpsContext, sequence: u32) -> bool {
    let arrival = ends(ctx);
    let netns = context::netns_cookie(ctx.as_ptr());
    let local = is_local(netns, &arrival.remote);
    begun_here(&key_of(&arrival, if local { netns } else { 0 }), sequence).is_some()
}

#[inline(always)]
fn has_services() -> bool {
    match maps::zt_control.get(0) {
        Some(control) => control.flags & HAS_SERVICES != 0,
        None => false,
    }
}

/// Whether the directory has a workload at an address whose kernel has it prove who it is: one of this node, or of a node
/// whose agent says so.
#[inline(always)]
fn would_prove(address: &Address) -> bool {
    // SAFETY: read once, copied at once.
    let peer = unsafe { maps::zt_peers.get(*address) };
    matches!(peer, Some(peer) if peer.flags & (PEER_HERE | PEER_PROVES) != 0 && identity::is_workload(peer.identity))
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
pub fn asking(address: &Address, port: u16, sequence: u32) -> u32 {
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
    if begun_here(&front_key(address, port), sequence).is_some() {
        0
    } else {
        NOBODY
    }
}

/// No node's number.
pub const NOBODY: u32 = u32::MAX;

/// Where a connection to a virtual address is noted.
#[inline(always)]
fn front_key(source: &Address, source_port: u16) -> SourceKey {
    SourceKey {
        netns: 0,
        source: *source,
        destination: Address::UNSPECIFIED_V6,
        source_port,
        destination_port: 0,
        protocol: TCP,
        reserved: [0; 3],
    }
}

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

#[inline(always)]
fn begun_here(key: &SourceKey, sequence: u32) -> Option<Origin> {
    // SAFETY: read once, copied at once.
    let source: Source = unsafe { maps::zt_sources.get(key) }.copied()?;
    // What was said of one SYN is not true of the next from the same port, whose owner must speak for himself. Nor is
    // it said once only: one SYN cookie can make more than one socket.
    if source.sequence != sequence {
        return None;
    }
    // SAFETY: as above.
    let identity = match unsafe { maps::zt_workloads.get(source.workload) } {
        Some(workload) => workload.identity,
        None => source.identity,
    };
    Some(Origin {
        identity,
        managed: true,
        unproven: false,
        revision: 0,
    })
}
