// SPDX-License-Identifier: Apache-2.0
//! `sock_ops`: listeners, completed handshakes, and the end of a connection. Most of it runs in softirq: identity
//! comes from socket storage and from the maps, never from the running task.
//!
//! What a callback does is in *global* functions of the object (`extern "C"`). The verifier looks at each of these once, by
//! itself, whatever its callers know; inlined or static, one is walked again for every state of every caller, and kernels before
//! 6.12 give up. What they hand to each other is numbers, and memory that has a value in every byte.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use zt_common::abi::SOCKET_NOTED;
use zt_common::counter::Counter;
use zt_common::event::NOTICE_UNOWNED_LISTENER;

use crate::call::TCP;
use crate::ends::{ends, socket_of, watch_close};
use crate::origin::Origin;
use crate::own::Own;
use crate::proof::Claim;
use crate::{admit, again, context, emit, established, keys, option, origin, proof, sender, socket, unnoted};

/// The socket is about to send its first SYN, and knows the SYN's sequence number: the first callback that does.
const TIMEOUT_INIT: u32 = 1;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE_CHANGED: u32 = 10;
const LISTEN: u32 = 11;
const OPTION_LENGTH: u32 = 14;
const OPTION_WRITE: u32 = 15;

const STATE_CLOSED: u32 = 7;
const STATE_LISTENS: u32 = 10;

#[sock_ops]
pub fn zt_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        TIMEOUT_INIT => {
            sender::zt_begun(ctx.ops);
        }
        ACTIVE_ESTABLISHED => {
            zt_source_end(ctx.ops, 0);
        }
        PASSIVE_ESTABLISHED if established::connected_itself(&ctx) => {
            zt_source_end(ctx.ops, 1);
        }
        PASSIVE_ESTABLISHED => {
            zt_destination_end(ctx.ops);
        }
        STATE_CHANGED if ctx.arg(0) == STATE_LISTENS => {
            zt_listened(ctx.ops);
        }
        STATE_CHANGED => {
            if ctx.arg(1) == STATE_CLOSED {
                // The same socket may connect once more.
                option::abandon(&ctx);
                admit::closed(context::socket_cookie(ctx.as_ptr()));
            }
        }
        LISTEN => {
            zt_listening(ctx.ops);
        }
        // What programs that bore identities have asked for: not any more.
        OPTION_LENGTH if !keys::is_had() => option::abandon(&ctx),
        OPTION_LENGTH => {
            option::zt_reserve(ctx.ops);
        }
        OPTION_WRITE if keys::is_had() => {
            option::zt_write(ctx.ops);
        }
        _ => {}
    }
    1
}

/// The source's end of a completed handshake. A *global* function of the object: see the module.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_source_end(ctx: *mut bpf_sock_ops, passive: u32) -> u32 {
    let mut claim = Claim::NONE;
    if established::zt_active(ctx, passive, &raw mut claim) != 0 {
        again::zt_again(ctx, &raw const claim);
    }
    0
}

/// The destination's end of a completed handshake. A *global* function of the object: see the module.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_destination_end(ctx: *mut bpf_sock_ops) -> u32 {
    let (mut own, mut claim, mut origin) = (Own::NOBODY, Claim::NONE, Origin::NOBODY);
    let keeps = established::zt_accepted(ctx, &raw mut own);
    proof::zt_of_source(ctx, own.identity, keeps, &raw mut claim);
    origin::zt_origin(ctx, &raw const claim, &raw mut origin);
    if established::zt_passive(ctx, &raw const own, &raw const claim, &raw const origin, 0) == 0 {
        origin::zt_origin(ctx, &raw const claim, &raw mut origin);
        established::zt_passive(ctx, &raw const own, &raw const claim, &raw const origin, 1);
    }
    0
}

/// Notes who listens. A *global* function of the object: see the module.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_listening(ctx: *mut bpf_sock_ops) -> u32 {
    listening(&SockOpsContext::new(ctx));
    0
}

#[inline(always)]
fn listening(ctx: &SockOpsContext) {
    let sock = socket_of(ctx);
    let Some(mut owner) = context::stored(sock) else {
        // Listening without a bind: the kernel chose the port, and no hook saw the task. The agent finds the owner by
        // the cgroup of the socket; until then what it accepts belongs to nobody.
        emit::count(Counter::OwnerMissing);
        emit::notice(NOTICE_UNOWNED_LISTENER, 0, 0, context::netns_cookie(ctx.as_ptr()));
        if emit::diagnostics() {
            warn!(
                ctx,
                "port {}: a listener that never bound has no owner yet",
                ctx.local_port()
            );
        }
        return;
    };
    let ends = ends(ctx);
    let cookie = context::socket_cookie(ctx.as_ptr());
    let there = owner.port == ends.local_port && owner.address == ends.local;
    if there && owner.flags & SOCKET_NOTED != 0 && owner.is_held_by(cookie) {
        return;
    }
    // It has stopped to listen, and listens somewhere else: the kernel gave it another port, and no hook saw that.
    socket::forget(&mut owner, cookie);
    owner.address = ends.local;
    owner.port = ends.local_port;
    owner.protocol = TCP;
    let doubtful = unnoted::has_listeners(owner.netns) && shares_its_port(ctx);
    socket::note(&mut owner, cookie, doubtful);
    watch_close(ctx);
    option::listen(ctx, &mut owner);
    context::store(sock, &owner);
}

/// Whether others may listen at the socket's port as well, by themselves.
#[inline(always)]
fn shares_its_port(ctx: &SockOpsContext) -> bool {
    const SOL_SOCKET: i32 = 1;
    const SO_REUSEPORT: i32 = 15;
    let mut shared: u32 = 0;
    // SAFETY: the context is this program's; the option's value is a 32-bit integer.
    let known = unsafe {
        helper::bpf_getsockopt(
            ctx.as_ptr(),
            SOL_SOCKET,
            SO_REUSEPORT,
            core::ptr::from_mut(&mut shared).cast(),
            size_of::<u32>() as i32,
        ) == 0
    };
    !known || shared != 0
}

/// A listener is none any more, and may keep its port: whoever listens there next is somebody else. A *global* function of the
/// object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_listened(ctx: *mut bpf_sock_ops) -> u32 {
    let ctx = SockOpsContext::new(ctx);
    let sock = socket_of(&ctx);
    if let Some(mut owner) = context::stored(sock)
        && socket::forget(&mut owner, context::socket_cookie(ctx.as_ptr()))
    {
        context::store(sock, &owner);
    }
    0
}
