// SPDX-License-Identifier: Apache-2.0
//! `sock_ops`: listeners, completed handshakes, and the end of a connection. Most of it runs in softirq: identity
//! comes from socket storage and from the maps, never from the running task.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::warn;
use zt_common::abi::SOCKET_NOTED;
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::event::NOTICE_UNOWNED_LISTENER;

use crate::connect::TCP;
use crate::{admit, context, emit, established, socket};

const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
const STATE_CHANGED: u32 = 10;
const LISTEN: u32 = 11;

const STATE_CLOSED: u32 = 7;
/// Our one callback: state changes. Other programs' bits are left alone.
const STATE_CALLBACK: u32 = 1 << 2;

const AF_INET: u32 = 2;

#[sock_ops]
pub fn zt_sock_ops(ctx: SockOpsContext) -> u32 {
    match ctx.op() {
        ACTIVE_ESTABLISHED => source_end(&ctx),
        PASSIVE_ESTABLISHED if established::connected_itself(&ctx) => source_end(&ctx),
        PASSIVE_ESTABLISHED => established::passive(&ctx),
        STATE_CHANGED => {
            if ctx.arg(1) == STATE_CLOSED {
                admit::gone(context::socket_cookie(ctx.as_ptr()));
            }
        }
        LISTEN => listening(&ctx),
        _ => {}
    }
    1
}

#[inline(always)]
fn source_end(ctx: &SockOpsContext) {
    if established::active(ctx) {
        established::again(ctx);
    }
}

/// Asks to be told when the connection closes.
#[inline(always)]
pub fn watch_close(ctx: &SockOpsContext) {
    // Failing leaves an entry that the agent's own checks remove.
    let _ = ctx.set_cb_flags((ctx.cb_flags() | STATE_CALLBACK) as i32);
}

/// The socket of a context.
#[inline(always)]
pub fn socket_of(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a field of the context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// The two ends as this socket sees them.
pub struct Ends {
    pub local: Address,
    pub remote: Address,
    pub local_port: u16,
    pub remote_port: u16,
    pub ipv6: bool,
}

/// Reads the two ends.
///
/// Word by word, both families and before any branch: otherwise the compiler joins the branches on a moved context
/// pointer, which the verifier refuses.
#[inline(always)]
pub fn ends(ctx: &SockOpsContext) -> Ends {
    let ops = ctx.ops;
    // SAFETY: fields of the context.
    unsafe {
        let local4 = read(&raw const (*ops).local_ip4);
        let remote4 = read(&raw const (*ops).remote_ip4);
        let local = (&raw const (*ops).local_ip6).cast::<u32>();
        let remote = (&raw const (*ops).remote_ip6).cast::<u32>();
        let local6 = [
            read(local),
            read(local.add(1)),
            read(local.add(2)),
            read(local.add(3)),
        ];
        let remote6 = [
            read(remote),
            read(remote.add(1)),
            read(remote.add(2)),
            read(remote.add(3)),
        ];
        let ipv6 = (*ops).family != AF_INET;
        let (local, remote) = if ipv6 {
            (Address::from_words(local6), Address::from_words(remote6))
        } else {
            (Address::from_v4_word(local4), Address::from_v4_word(remote4))
        };
        // The remote port is a 32-bit field in network order.
        let remote_port = u32::from_be((*ops).remote_port) as u16;
        Ends {
            local,
            remote,
            local_port: (*ops).local_port as u16,
            remote_port,
            ipv6,
        }
    }
}

/// A field of the context, read exactly here.
#[inline(always)]
unsafe fn read(field: *const u32) -> u32 {
    // SAFETY: the caller's.
    unsafe { field.read_volatile() }
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
        context::store(sock, &owner);
    }
}
