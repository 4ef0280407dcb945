// SPDX-License-Identifier: Apache-2.0
//! `sock_ops`: listeners, completed handshakes, and the end of a connection. Most of it runs in softirq: identity
//! comes from socket storage and from the maps, never from the running task.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use zt_common::abi::SOCKET_NOTED;
use zt_common::counter::Counter;
use zt_common::event::NOTICE_UNOWNED_LISTENER;

use crate::call::TCP;
use crate::ends::{ends, socket_of};
use crate::own::Own;
use crate::proof::Claim;
use crate::{admit, context, emit, established, keys, option, origin, sender, socket};

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
        TIMEOUT_INIT => sender::begun(&ctx),
        ACTIVE_ESTABLISHED => source_end(&ctx, false),
        PASSIVE_ESTABLISHED if established::connected_itself(&ctx) => source_end(&ctx, true),
        PASSIVE_ESTABLISHED => destination_end(&ctx),
        STATE_CHANGED => {
            if ctx.arg(1) == STATE_CLOSED {
                // The same socket may connect once more.
                option::abandon(&ctx);
                admit::closed(context::socket_cookie(ctx.as_ptr()));
            }
        }
        LISTEN => listening(&ctx),
        // What programs that bore identities have asked for: not any more.
        OPTION_LENGTH if !keys::is_had() => option::abandon(&ctx),
        OPTION_LENGTH => option::reserve(&ctx),
        OPTION_WRITE if keys::is_had() => option::write(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn source_end(ctx: &SockOpsContext, passive: bool) {
    let mut claim = Claim::NONE;
    if established::active(ctx, passive, &mut claim) {
        established::again(ctx, &claim);
    }
}

#[inline(always)]
fn destination_end(ctx: &SockOpsContext) {
    let (mut own, mut claim) = (Own::NOBODY, Claim::NONE);
    established::accepted(ctx, &mut own, &mut claim);
    let mut origin = origin::origin(ctx, &claim);
    if !established::passive(ctx, &own, &claim, &origin, false) {
        origin = origin::origin(ctx, &claim);
        established::passive(ctx, &own, &claim, &origin, true);
    }
}

/// Notes who listens.
#[inline(never)]
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
    if owner.flags & SOCKET_NOTED == 0 {
        let ends = ends(ctx);
        owner.address = ends.local;
        owner.port = ends.local_port;
        owner.protocol = TCP;
        socket::note(&mut owner);
        option::listen(ctx, &mut owner);
        context::store(sock, &owner);
    }
}
