// SPDX-License-Identifier: Apache-2.0
//! The two fences around a refused socket, until the agent destroys it.
//!
//! The sockhash drops every byte in both directions, from the first; it cannot take a multipath socket, or any when
//! it is full. Binding to an interface that does not exist stops senders already blocked and resets the peer at
//! once; alone it would let the establishing segment through. Hence both.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::bindings::sk_action::SK_DROP;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::{sk_msg, stream_verdict};
use aya_ebpf::programs::{SkBuffContext, SkMsgContext, SockOpsContext};
use aya_log_ebpf::warn;
use zt_common::counter::Counter;
use zt_common::names::NO_INTERFACE;

use crate::{emit, maps};

/// Puts both fences up; whether at least one holds.
#[inline(always)]
pub fn raise(ctx: &SockOpsContext, cookie: u64) -> bool {
    zt_raise(ctx.ops, cookie) != 0
}

/// [`raise`], as a *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_raise(ops: *mut bpf_sock_ops, cookie: u64) -> u32 {
    u32::from(up(&SockOpsContext::new(ops), cookie))
}

#[inline(always)]
fn up(ctx: &SockOpsContext, cookie: u64) -> bool {
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTOIFINDEX: i32 = 62;

    let mut key = cookie;
    // SAFETY: the context is this program's; map and key are of the types that the helper expects.
    let hash = unsafe {
        helper::bpf_sock_hash_update(
            ctx.ops,
            core::ptr::from_ref(&maps::zt_refused).cast_mut().cast(),
            core::ptr::from_mut(&mut key).cast(),
            0,
        )
    };
    let mut index = NO_INTERFACE;
    // SAFETY: as above; the option's value is a 32-bit integer.
    let bind = unsafe {
        helper::bpf_setsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            core::ptr::from_mut(&mut index).cast(),
            size_of::<u32>() as i32,
        )
    };
    if hash != 0 {
        emit::count(Counter::FenceHashFailed);
    }
    if bind != 0 {
        emit::count(Counter::FenceBindFailed);
    }
    if (hash != 0 || bind != 0) && emit::diagnostics() {
        warn!(ctx, "socket {}: sockhash {}, bind {}", cookie, hash, bind);
    }
    hash == 0 || bind == 0
}

#[stream_verdict]
pub fn zt_refuse_in(_: SkBuffContext) -> u32 {
    SK_DROP
}

#[sk_msg]
pub fn zt_refuse_out(_: SkMsgContext) -> u32 {
    SK_DROP
}
