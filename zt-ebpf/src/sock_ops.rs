// SPDX-License-Identifier: Apache-2.0
//! `sock_ops`: listeners, completed handshakes, and the end of a connection. Most of it runs in softirq: identity
//! comes from socket storage and from the maps, never from the running task.
//!
//! What a callback does is in *global* functions of the object (`extern "C"`). The verifier looks at each of these once, by
//! itself, whatever its callers know; inlined or static, one is walked again for every state of every caller, and kernels before
//! 6.12 give up. What they hand to each other is numbers, and memory that has a value in every byte.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock_ops;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use zt_common::abi::SOCKET_NOTED;
use zt_common::counter::Counter;
use zt_common::event::NOTICE_UNOWNED_LISTENER;

use crate::call::TCP;
use crate::ends::{ends, socket_of};
use crate::origin::Origin;
use crate::own::Own;
use crate::proof::Claim;
use crate::{admit, again, context, emit, established, keys, option, origin, proof, sender, socket};

/// The socket is about to send its first SYN, and knows the SYN's sequence number: the first callback that does.
const TIMEOUT_INIT: u32 = 1;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE_CHANGED: u32 = 10;
const LISTEN: u32 = 11;
const OPTION_LENGTH: u32 = 14;
const OPTION_WRITE: u32 = 15;

const STATE_CLOSED: u32 = 7;

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
    if owner.flags & SOCKET_NOTED != 0 {
        if owner.port == ends.local_port && owner.address == ends.local {
            return;
        }
        // It has stopped to listen, and listens somewhere else: the kernel gave it another port, and no hook saw that.
        socket::forget(&owner);
        owner.flags &= !SOCKET_NOTED;
    }
    owner.address = ends.local;
    owner.port = ends.local_port;
    owner.protocol = TCP;
    socket::note(&mut owner);
    option::listen(ctx, &mut owner);
    context::store(sock, &owner);
}
