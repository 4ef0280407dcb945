// SPDX-License-Identifier: Apache-2.0
//! Writes the identity option into the SYN of a workload of this node, and into the SYN-ACK that answers one.
//! `docs/handshake.md` is its specification.
//!
//! The kernel offers this in two calls for a segment: how much room, and what. They are asked for before the first SYN, and
//! no longer once the handshake is complete.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{
    CONNECTION_FRONT, CONNECTION_OFFERS, CONNECTION_OMITTED, CONNECTION_RESENDS, CONNECTION_WRITES,
    Connection, SOCKET_KEEPS, SOCKET_NOTED, SOCKET_WRITES, Socket,
};
use zt_common::counter::Counter;
use zt_common::handshake::{Bits, Caller, IdentityOption, Message, OPTION_BYTES, RETRANSMISSIONS};
use zt_common::identity;
use zt_common::siphash::Key;

use crate::ends::{self, ACK, SYN, ends, next_received, unacknowledged};
use crate::{context, emit, keys, lookup, maps, origin, proof};

/// Of `bpf_load_hdr_opt`: look into the SYN, not into the segment at hand.
pub const OF_SYN: u64 = 1;

/// Looks an option up: its length, or a negative number of the kernel.
#[inline(always)]
pub fn load(ctx: &SockOpsContext, option: &mut IdentityOption, from: u64) -> i64 {
    // SAFETY: the buffer has the length given.
    unsafe { helper::bpf_load_hdr_opt(ctx.ops, option.as_mut_ptr().cast(), OPTION_BYTES, from) }
}

/// Before the first SYN of a connection that shall bear it: asks for the calls that write its option.
#[inline(always)]
pub fn offer(ctx: &SockOpsContext, connection: &mut Connection) {
    // Not twice, for a repeated SYN; and nothing for a connection that nobody will look at in the end.
    if connection.started == 0 || connection.flags & CONNECTION_OFFERS != 0 {
        return;
    }
    connection.flags |= CONNECTION_OFFERS;
    if ends::watch_handshake(ctx) {
        connection.flags |= CONNECTION_WRITES;
    }
}

/// The handshake is complete: no data segment is looked at.
#[inline(always)]
pub fn complete(ctx: &SockOpsContext, connection: &mut Connection) {
    if connection.flags & CONNECTION_WRITES != 0 {
        ends::write_no_options(ctx);
    }
    connection.flags &= !(CONNECTION_OFFERS | CONNECTION_RESENDS | CONNECTION_WRITES);
}

/// The connection is over before its handshake was: the next one of the same socket asks anew.
#[inline(always)]
pub fn abandon(ctx: &SockOpsContext) {
    if ends::writes_options(ctx) && is_ours(ctx, CONNECTION_WRITES) {
        ends::write_no_options(ctx);
    }
}

/// A socket begins to listen: its SYNs shall be kept until their handshake is complete, and its answers written to.
#[inline(always)]
pub fn listen(ctx: &SockOpsContext, owner: &mut Socket) {
    if !keys::in_force() {
        return;
    }
    if save_syn(ctx) {
        owner.flags |= SOCKET_KEEPS;
    }
    // Nobody knows who listens at a place that is not noted.
    if owner.flags & SOCKET_NOTED != 0 && ends::write_options(ctx) {
        owner.flags |= SOCKET_WRITES;
    }
}

#[inline(always)]
fn save_syn(ctx: &SockOpsContext) -> bool {
    const SOL_TCP: i32 = 6;
    const TCP_SAVE_SYN: i32 = 27;
    let mut on: u32 = 1;
    // SAFETY: the context is this program's; the option's value is a 32-bit integer. Failing shows in the records.
    unsafe {
        helper::bpf_setsockopt(
            ctx.as_ptr(),
            SOL_TCP,
            TCP_SAVE_SYN,
            core::ptr::from_mut(&mut on).cast(),
            size_of::<u32>() as i32,
        ) == 0
    }
}

/// How much room the segment at hand needs. A *global* function of the object, as `zt_judge` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_reserve(ctx: *mut bpf_sock_ops) -> u32 {
    if keys::is_had() {
        reserve(&SockOpsContext::new(ctx));
    }
    0
}

#[inline(always)]
fn reserve(ctx: &SockOpsContext) {
    if !keys::in_force() {
        // Room that is reserved and not written to is room that another version's program does not have.
        if ends::is_whole(ctx) {
            abandon(ctx);
        }
        return;
    }
    let (place, connection) = place(ctx);
    let wanted = match place {
        Place::Syn => {
            let omitted = is_late(ctx);
            if omitted {
                emit::count(Counter::OptionsOmitted);
                if !connection.is_null() {
                    // SAFETY: checked above; the entry belongs to this socket, whose SYN this is.
                    unsafe { (*connection).flags |= CONNECTION_OMITTED };
                }
            }
            !omitted
        }
        // Who answers is asked when it is written: what is reserved and not written, the kernel fills.
        Place::Answer => {
            let mut asked = IdentityOption::SEARCH;
            load(ctx, &mut asked, OF_SYN) == i64::from(OPTION_BYTES)
        }
        Place::Again => true,
        Place::Nowhere => false,
    };
    if !wanted {
        return;
    }
    // SAFETY: a context of this call.
    if unsafe { helper::bpf_reserve_hdr_opt(ctx.ops, OPTION_BYTES, 0) } != 0 {
        emit::count(Counter::OptionsNoRoom);
    }
}

/// What the segment at hand is to the option.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A SYN of ours.
    Syn,
    /// A listener's SYN-ACK.
    Answer,
    /// A segment after a SYN-ACK that asked for the option.
    Again,
    /// Nothing.
    Nowhere,
}

#[inline(always)]
fn place(ctx: &SockOpsContext) -> (Place, *mut Connection) {
    const NONE: *mut Connection = core::ptr::null_mut();
    let flags = ends::segment(ctx);
    let whole = ends::is_whole(ctx);
    if flags & SYN != 0 && flags & ACK != 0 {
        // A connecting socket that answers another one's SYN (simultaneous open) has nobody to prove anything to.
        return (if whole { Place::Nowhere } else { Place::Answer }, NONE);
    }
    if !whole {
        return (Place::Nowhere, NONE);
    }
    let Some(filed) = maps::zt_connections.get_ptr_mut(context::socket_cookie(ctx.as_ptr())) else {
        return (Place::Nowhere, NONE);
    };
    // SAFETY: the entry belongs to this socket.
    let connection = unsafe { &mut *filed };
    if flags & SYN != 0 {
        return if connection.flags & CONNECTION_OFFERS != 0 {
            (Place::Syn, filed)
        } else {
            (Place::Nowhere, NONE)
        };
    }
    if connection.flags & CONNECTION_RESENDS == 0 {
        return (Place::Nowhere, NONE);
    }
    if ends::is_unheard(ctx) {
        return (Place::Again, filed);
    }
    complete(ctx, connection);
    (Place::Nowhere, NONE)
}

/// Whether a SYN is one of the last of those that nobody answers, which go without.
#[inline(always)]
fn is_late(ctx: &SockOpsContext) -> bool {
    ends::retransmissions(ctx) > RETRANSMISSIONS
}

#[inline(always)]
fn is_ours(ctx: &SockOpsContext, flag: u32) -> bool {
    // SAFETY: read once.
    match unsafe { maps::zt_connections.get(context::socket_cookie(ctx.as_ptr())) } {
        Some(connection) => connection.flags & flag != 0,
        None => false,
    }
}

/// Writes into the segment at hand. A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_write(ops: *mut bpf_sock_ops) -> u32 {
    if !keys::is_had() {
        return 0;
    }
    let ctx = SockOpsContext::new(ops);
    let (place, connection) = place(&ctx);
    match place {
        // What is reserved then is another program's.
        Place::Syn if is_late(&ctx) => 0,
        Place::Syn => zt_said(ops, connection, 0),
        Place::Again => zt_said(ops, connection, 1),
        Place::Answer => zt_answered(ops),
        Place::Nowhere => 0,
    }
}

/// The source says who it is; `again` where the SYN-ACK asked for it. A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_said(ctx: *mut bpf_sock_ops, connection: *const Connection, again: u32) -> u32 {
    if keys::is_had() && !connection.is_null() {
        // SAFETY: checked above; the verifier knows the size from the type.
        said(&SockOpsContext::new(ctx), unsafe { &*connection }, again != 0);
    }
    0
}

#[inline(always)]
fn said(ctx: &SockOpsContext, connection: &Connection, again: bool) {
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    let (source, node, netns) = (connection.source, connection.node, connection.netns);
    if !is_still(connection.workload, source) {
        // Who has no identity has none to prove, nor has he who has lost it.
        return;
    }
    if connection.flags & CONNECTION_FRONT != 0 && !again {
        store(ctx, &IdentityOption::deferred(source));
        return;
    }
    let epoch = keys::epoch(control, node);
    let Some(key) = keys::sent(node, epoch) else {
        return;
    };
    let audience = if identity::is_workload(connection.destination) {
        connection.destination
    } else {
        identity::UNKNOWN
    };
    let ends = ends(ctx);
    let first = unacknowledged(ctx);
    let mut caller = Caller {
        address: ends.local.within(netns),
        port: ends.local_port,
        syn: first,
    };
    let message = if again {
        // The SYN has been acknowledged, and nothing but the SYN-ACK has been received.
        caller.syn = first.wrapping_sub(1);
        Message::resent(&caller, audience, next_received(ctx).wrapping_sub(1))
    } else {
        Message::syn(&caller, audience, connection.target_port)
    };
    sign(ctx, &key, &message, source, Bits::new(epoch, again));
}

/// Whether a workload has the identity that it had when it called `connect`.
#[inline(always)]
fn is_still(workload: u64, identity: u64) -> bool {
    // SAFETY: read once, copied at once.
    let now = unsafe { maps::zt_workloads.get(workload) };
    identity::is_workload(identity) && matches!(now, Some(now) if now.identity == identity)
}

/// The destination says who it is. There is no socket yet: it knows itself by who listens at this place.
///
/// It says so only in answer to an option that verifies, to a workload of this node that has just sent this very SYN, and to
/// where a SYN to a virtual address really comes from: otherwise whoever has seen a SYN could fetch the answer to it.
///
/// A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_answered(ctx: *mut bpf_sock_ops) -> u32 {
    if keys::is_had() {
        answered(&SockOpsContext::new(ctx));
    }
    0
}

#[inline(always)]
fn answered(ctx: &SockOpsContext) {
    const COOKIE: u32 = 2;
    let mut asked = IdentityOption::SEARCH;
    let length = load(ctx, &mut asked, OF_SYN);
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    if !keys::is_on(control) || !proof::is_option(length, &asked) {
        return;
    }
    let ends = ends(ctx);
    let netns = context::netns_cookie(ctx.as_ptr());
    let own = lookup::listening(netns, &ends.local, ends.local_port);
    if !identity::is_workload(own) {
        return;
    }
    let Some((sequence, acknowledged)) = ends::numbers(ctx) else {
        return;
    };
    let caller = Caller {
        address: ends.remote.within(netns),
        port: ends.remote_port,
        syn: acknowledged.wrapping_sub(1),
    };
    let deferred = asked.bits().deferred();
    let node = if deferred {
        origin::asking(ctx, &ends.remote, caller.syn)
    } else {
        if asked.bits().resend() {
            return;
        }
        let mut node = origin::node_at(&ends.remote);
        let mut message = Message::syn(&caller, own, ends.local_port);
        if !proof::verifies(node, &mut message, &asked) {
            // It may have been meant for somebody else, who is not here: its source is to hear who is.
            if !origin::is_ours(ctx, caller.syn) {
                return;
            }
            node = 0;
        }
        node
    };
    if node == origin::NOBODY {
        return;
    }
    let epoch = keys::epoch(control, node);
    let Some(key) = keys::sent(node, epoch) else {
        return;
    };
    let cookie = ctx.arg(0) == COOKIE;
    if cookie {
        emit::count(Counter::OptionCookies);
    }
    let message = Message::syn_ack(&caller, asked.identity(), deferred, sequence);
    sign(ctx, &key, &message, own, Bits::new(epoch, cookie || deferred));
}

#[inline(always)]
fn sign(ctx: &SockOpsContext, key: &Key, message: &Message, identity: u64, bits: Bits) {
    let tag = proof::tag(key, message, identity, bits);
    store(ctx, &IdentityOption::new(identity, bits, tag));
}

#[inline(always)]
fn store(ctx: &SockOpsContext, option: &IdentityOption) {
    // SAFETY: the option has the length given. Where no room was reserved this fails, which was counted then.
    unsafe {
        helper::bpf_store_hdr_opt(ctx.ops, core::ptr::from_ref(option).cast(), OPTION_BYTES, 0);
    }
}
