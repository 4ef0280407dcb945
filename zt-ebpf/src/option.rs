// SPDX-License-Identifier: Apache-2.0
//! Writes the identity option into the SYN of a workload of this node, and into the SYN-ACK that answers one.
//! `docs/handshake.md` is its specification.
//!
//! The kernel offers this in two calls for a segment: how much room, and what. They are asked for before the first SYN, and
//! no longer once the handshake is complete.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::programs::SockOpsContext;
use zt_common::abi::{
    CONNECTION_OFFERS, CONNECTION_RESENDS, CONNECTION_WRITES, Connection, KeyId, NodeKey, SOCKET_WRITES,
    Socket, WITHIN,
};
use zt_common::control::{Control, HANDSHAKE};
use zt_common::counter::Counter;
use zt_common::handshake::{Bits, IdentityOption, OPTION_BYTES, RETRANSMISSIONS, Syn, SynAck};
use zt_common::identity;
use zt_common::siphash::Key;

use crate::ends::{self, ends, unacknowledged};
use crate::{context, emit, lookup, maps};

const SYN: u32 = 0x02;
const ACK: u32 = 0x10;

/// Of `bpf_load_hdr_opt`: look into the SYN, not into the segment at hand.
pub const OF_SYN: u64 = 1;

/// Whether handshakes bear identities.
#[inline(always)]
pub fn is_on(control: &Control) -> bool {
    control.flags & HANDSHAKE != 0
}

/// The key within the node of an epoch.
#[inline(always)]
pub fn key(epoch: u64) -> Option<Key> {
    let id = KeyId { peer: WITHIN, epoch };
    // SAFETY: entries are written once; read once, copied at once.
    let key: NodeKey = unsafe { maps::zt_keys.get(id) }.copied()?;
    Some(Key {
        k0: key.k0,
        k1: key.k1,
    })
}

/// Looks an option up: its length, or a negative number of the kernel.
#[inline(always)]
pub fn load(ctx: &SockOpsContext, option: &mut IdentityOption, from: u64) -> i64 {
    // SAFETY: the buffer has the length given.
    unsafe { helper::bpf_load_hdr_opt(ctx.ops, option.as_mut_ptr().cast(), OPTION_BYTES, from) }
}

/// Before the first SYN of a connection within the node: asks for the calls that write its option.
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

/// A socket begins to listen: its SYNs shall be kept until their handshake is complete, and its answers written to.
#[inline(always)]
pub fn listen(ctx: &SockOpsContext, owner: &mut Socket) {
    if !matches!(maps::zt_control.get(0), Some(control) if is_on(control)) {
        return;
    }
    save_syn(ctx);
    if ends::write_options(ctx) {
        owner.flags |= SOCKET_WRITES;
    }
}

#[inline(always)]
fn save_syn(ctx: &SockOpsContext) {
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
        );
    }
}

/// How much room the segment at hand needs.
#[inline(never)]
pub fn reserve(ctx: &SockOpsContext) {
    let flags = ends::segment(ctx);
    let whole = ends::is_whole(ctx);
    let wanted = if flags & SYN == 0 {
        whole && resends(ctx)
    } else if flags & ACK != 0 {
        // A connecting socket that answers another one's SYN (simultaneous open) has nobody to prove anything to.
        !whole && answers(ctx)
    } else {
        whole && begins(ctx)
    };
    if !wanted {
        return;
    }
    // SAFETY: a context of this call.
    if unsafe { helper::bpf_reserve_hdr_opt(ctx.ops, OPTION_BYTES, 0) } != 0 {
        emit::count(Counter::OptionsNoRoom);
    }
}

/// Whether a SYN bears the option: one that is ours, and not the last of those that nobody answers.
#[inline(always)]
fn begins(ctx: &SockOpsContext) -> bool {
    if !is_ours(ctx, CONNECTION_OFFERS) {
        return false;
    }
    let omitted = ends::retransmissions(ctx) > RETRANSMISSIONS;
    if omitted {
        emit::count(Counter::OptionsOmitted);
    }
    !omitted
}

#[inline(always)]
fn resends(ctx: &SockOpsContext) -> bool {
    is_ours(ctx, CONNECTION_RESENDS)
}

#[inline(always)]
fn is_ours(ctx: &SockOpsContext, flag: u32) -> bool {
    // SAFETY: read once.
    match unsafe { maps::zt_connections.get(context::socket_cookie(ctx.as_ptr())) } {
        Some(connection) => connection.flags & flag != 0,
        None => false,
    }
}

/// Whether a SYN-ACK answers a SYN with an option. Who answers is asked when it is written: what is reserved and not
/// written, the kernel fills.
#[inline(always)]
fn answers(ctx: &SockOpsContext) -> bool {
    let mut option = IdentityOption::SEARCH;
    load(ctx, &mut option, OF_SYN) == i64::from(OPTION_BYTES)
}

/// Writes into the segment at hand.
#[inline(never)]
pub fn write(ctx: &SockOpsContext) {
    let flags = ends::segment(ctx);
    let whole = ends::is_whole(ctx);
    if flags & SYN == 0 {
        if whole && resends(ctx) {
            said(ctx, true);
            if let Some(place) = maps::zt_connections.get_ptr_mut(context::socket_cookie(ctx.as_ptr())) {
                // SAFETY: the entry belongs to this socket.
                complete(ctx, unsafe { &mut *place });
            }
        }
    } else if flags & ACK == 0 {
        if whole && is_ours(ctx, CONNECTION_OFFERS) {
            said(ctx, false);
        }
    } else if !whole {
        answered(ctx);
    }
}

/// The source says who it is; `again` where a SYN cookie has forgotten that it did.
#[inline(never)]
fn said(ctx: &SockOpsContext, again: bool) {
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    // SAFETY: read once, copied at once; the entry belongs to this socket.
    let (source, destination) =
        match unsafe { maps::zt_connections.get(context::socket_cookie(ctx.as_ptr())) } {
            Some(connection) => (connection.source, connection.destination),
            None => return,
        };
    if !identity::is_workload(source) {
        // Who has no identity has none to prove.
        return;
    }
    let epoch = control.epoch;
    let Some(key) = key(epoch) else {
        return;
    };
    let ends = ends(ctx);
    let first = unacknowledged(ctx);
    let syn = Syn {
        audience: if identity::is_workload(destination) {
            destination
        } else {
            identity::UNKNOWN
        },
        // The SYN has been acknowledged by then.
        sequence: if again { first.wrapping_sub(1) } else { first },
        address: ends.local,
        port: ends.local_port,
    };
    let option = syn.option(&key, source, Bits::new(epoch, again));
    store(ctx, &option);
}

/// The destination says who it is. There is no socket yet: it knows itself by who listens at this place.
#[inline(never)]
fn answered(ctx: &SockOpsContext) {
    const COOKIE: u32 = 2;
    let mut asked = IdentityOption::SEARCH;
    if load(ctx, &mut asked, OF_SYN) != i64::from(OPTION_BYTES) {
        return;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return;
    };
    if !is_on(control) {
        return;
    }
    let ends = ends(ctx);
    let own = lookup::listening(context::netns_cookie(ctx.as_ptr()), &ends.local, ends.local_port);
    if !identity::is_workload(own) {
        return;
    }
    let epoch = control.epoch;
    let Some(key) = key(epoch) else {
        return;
    };
    let Some((sequence, acknowledged)) = ends::numbers(ctx) else {
        return;
    };
    let cookie = ctx.arg(0) == COOKIE;
    if cookie {
        emit::count(Counter::OptionCookies);
    }
    let answer = SynAck {
        source: asked.identity(),
        syn: acknowledged.wrapping_sub(1),
        sequence,
    };
    let option = answer.option(&key, own, Bits::new(epoch, cookie));
    store(ctx, &option);
}

#[inline(always)]
fn store(ctx: &SockOpsContext, option: &IdentityOption) {
    // SAFETY: the option has the length given. Where no room was reserved this fails, which was counted then.
    unsafe {
        helper::bpf_store_hdr_opt(ctx.ops, core::ptr::from_ref(option).cast(), OPTION_BYTES, 0);
    }
}
