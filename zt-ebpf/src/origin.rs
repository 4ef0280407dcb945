// SPDX-License-Identifier: Apache-2.0
//! Who a connection or datagram comes from, as the receiving end can know it.

use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{PEER_HERE, PEER_PROVES};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::identity;
use zt_common::verdict::Verdict;

use crate::lookup::network;
use crate::proof::Claim;
use crate::sender::{Arrival, LED, MEANT, PAST};
use crate::{emit, keys, maps, unnoted};

/// Who a flow comes from, as the receiving end can know it. Laid out without gaps, as it is handed from function to function
/// of the object.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Origin {
    /// Its identity.
    pub identity: u64,
    /// See [`crate::lookup::Party`].
    revision: u64,
    recording: u32,
    unproven: u32,
}

impl Origin {
    /// Nobody is known to be it.
    pub const NOBODY: Self = Self::of(identity::UNKNOWN);

    /// Somebody, whose name depends on no policy.
    #[inline(always)]
    pub const fn of(identity: u64) -> Self {
        Self {
            identity,
            revision: 0,
            recording: 0,
            unproven: 0,
        }
    }

    /// The same, and whether it is a managed workload of this node.
    #[inline(always)]
    pub fn recording(self, recording: bool) -> Self {
        Self {
            recording: u32::from(recording),
            ..self
        }
    }

    /// Whether it is a managed workload of this node, and records at its own end.
    #[inline(always)]
    pub fn is_recording(&self) -> bool {
        self.recording != 0
    }

    /// Whether its address would be a name, and it did not prove to be the one.
    #[inline(always)]
    pub fn is_unproven(&self) -> bool {
        self.unproven != 0
    }

    /// The revision whose networks named it, or 0 where its name does not depend on the policy.
    #[inline(always)]
    pub fn revision(&self) -> u64 {
        self.revision
    }

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
///
/// A *global* function of the object, as `zt_judge` is: it writes `origin`, and its result says nothing.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_origin(ctx: *mut bpf_sock_ops, claim: *const Claim, origin: *mut Origin) -> u32 {
    if claim.is_null() || origin.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the sizes from the types.
    unsafe { *origin = who(&SockOpsContext::new(ctx), &*claim) };
    0
}

#[inline(always)]
fn who(ctx: &SockOpsContext, claim: &Claim) -> Origin {
    if claim.is_proven() {
        // On another node it is not our records that its connection is in.
        return Origin::of(claim.identity).recording(claim.node == 0);
    }
    let arrival = Arrival::complete(ctx);
    let mut known = identity::UNKNOWN;
    let how = arrival.sender(&mut known);
    if how == MEANT || how == LED {
        // What it was led from is what the source's end has recorded.
        return Origin::of(known).recording(how == MEANT);
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
            unproven: u32::from(unproven),
            ..Origin::NOBODY
        };
    }
    if home && unnoted::has_callers(arrival.home()) {
        // Or a workload of whose call nothing is noted.
        return Origin::NOBODY;
    }
    if home {
        return Origin::of(identity::HOST);
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

/// What this kernel knows of a SYN that nobody has answered.
#[inline(always)]
fn unanswered(ctx: &SockOpsContext, sequence: u32) -> u32 {
    zt_unanswered(ctx.ops, sequence)
}

/// [`unanswered`], as a *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_unanswered(ctx: *mut bpf_sock_ops, sequence: u32) -> u32 {
    let mut known = identity::UNKNOWN;
    Arrival::unanswered(&SockOpsContext::new(ctx), sequence).sender(&mut known)
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

/// Whether whoever is at an address of another node has that address alone for a name: nobody there proves, or the agent is not
/// heard any more. Its kernel goes on with tags that nobody here can believe; it could as well have left them out. What comes from the
/// node's own address, unless a workload is there, was somebody else's there.
#[inline(always)]
pub fn is_believed(address: &Address) -> bool {
    // SAFETY: read once, copied at once.
    match unsafe { maps::zt_peers.get(*address) } {
        Some(peer) => {
            peer.node != 0
                && peer.identity != identity::REMOTE_NODE
                && peer.flags & (PEER_HERE | PEER_PROVES) == 0
        }
        None => false,
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
        return Origin::of(peer.identity);
    }
    let (identity, revision) = network(address);
    Origin {
        revision,
        ..Origin::of(identity)
    }
}
