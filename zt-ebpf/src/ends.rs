// SPDX-License-Identifier: Apache-2.0
//! What a `sock_ops` context says of its socket: the two ends, the segment at hand, and the callbacks that we ask for.

use aya_ebpf::bindings::bpf_sock;
use aya_ebpf::programs::SockOpsContext;
use zt_common::address::Address;

/// State changes. Other programs' bits are left alone.
const STATE_CALLBACK: u32 = 1 << 2;
/// The options of each segment that is sent. Asked for during handshakes only.
pub const OPTION_CALLBACK: u32 = 1 << 6;
const AF_INET: u32 = 2;
/// A flag of a segment.
pub const SYN: u32 = 0x02;
/// See [`SYN`].
pub const ACK: u32 = 0x10;

/// Asks to be told when the connection closes, or a listener ends to be one.
#[inline(always)]
pub fn watch_close(ctx: &SockOpsContext) {
    have(ctx, ctx.cb_flags() | STATE_CALLBACK);
}

/// Asks to be told when an accepted connection closes, and takes back what its listener asked for by us (`writes`) and it has
/// inherited: nothing of ours runs for a data segment.
#[inline(always)]
pub fn watch_accepted(ctx: &SockOpsContext, writes: bool) {
    let mut wanted = ctx.cb_flags() | STATE_CALLBACK;
    if writes {
        wanted &= !OPTION_CALLBACK;
    }
    have(ctx, wanted);
}

/// Asks for callbacks, if that is not what is asked for.
#[inline(always)]
fn have(ctx: &SockOpsContext, wanted: u32) {
    if wanted != ctx.cb_flags() {
        // Failing leaves an entry behind when the connection closes; the cookie is never used again.
        let _ = ctx.set_cb_flags(wanted as i32);
    }
}

/// Asks to write options, and to be told when the handshake fails; whether nobody else had asked to write.
#[inline(always)]
pub fn watch_handshake(ctx: &SockOpsContext) -> bool {
    ask(ctx, STATE_CALLBACK | OPTION_CALLBACK)
}

/// Asks to write options; whether nobody else had.
#[inline(always)]
pub fn write_options(ctx: &SockOpsContext) -> bool {
    ask(ctx, OPTION_CALLBACK)
}

#[inline(always)]
fn ask(ctx: &SockOpsContext, wanted: u32) -> bool {
    let before = ctx.cb_flags();
    ctx.set_cb_flags((before | wanted) as i32).is_ok() && before & OPTION_CALLBACK == 0
}

/// Whether somebody has asked to write options.
#[inline(always)]
pub fn writes_options(ctx: &SockOpsContext) -> bool {
    ctx.cb_flags() & OPTION_CALLBACK != 0
}

/// Takes back what [`watch_handshake`] or [`write_options`] asked for: nothing of ours runs for a data segment.
#[inline(always)]
pub fn write_no_options(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() & !OPTION_CALLBACK) as i32);
}

/// Whether the context has a socket, and not just a listener's request for one.
#[inline(always)]
pub fn is_whole(ctx: &SockOpsContext) -> bool {
    // SAFETY: a field of the context.
    unsafe { read(&raw const (*ctx.ops).is_fullsock) != 0 }
}

/// The flags of the segment at hand.
#[inline(always)]
pub fn segment(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { read(&raw const (*ctx.ops).skb_tcp_flags) }
}

/// Whether a connection that has just become one is of a SYN that bore data (Fast Open): nobody has answered it yet.
#[inline(always)]
pub fn is_fast_open(ctx: &SockOpsContext) -> bool {
    segment(ctx) & (SYN | ACK) == SYN
}

/// How many segments were sent again.
#[inline(always)]
pub fn retransmissions(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { read(&raw const (*ctx.ops).total_retrans) }
}

/// Whether nothing shows yet that the other end has a socket for this connection: it has acknowledged the SYN and nothing
/// else, and has sent nothing.
#[inline(always)]
pub fn is_unheard(ctx: &SockOpsContext) -> bool {
    // SAFETY: fields of the context.
    let (acknowledged, received) = unsafe {
        (
            (&raw const (*ctx.ops).bytes_acked).read_volatile(),
            (&raw const (*ctx.ops).bytes_received).read_volatile(),
        )
    };
    // The SYN counts as one.
    acknowledged <= 1 && received == 0
}

/// Sequence and acknowledgement number of the segment that is being written.
#[inline(always)]
pub fn numbers(ctx: &SockOpsContext) -> Option<(u32, u32)> {
    const SEQUENCE: usize = 4;
    const ACKNOWLEDGED: usize = 8;
    const END: usize = 12;
    // SAFETY: fields of the context; the verifier sees that no more is read than was checked for.
    unsafe {
        let data = (*ctx.ops).__bindgen_anon_3.skb_data as usize;
        let end = (*ctx.ops).__bindgen_anon_4.skb_data_end as usize;
        if data + END > end {
            return None;
        }
        let sequence = ((data + SEQUENCE) as *const u32).read_volatile();
        let acknowledged = ((data + ACKNOWLEDGED) as *const u32).read_volatile();
        Some((u32::from_be(sequence), u32::from_be(acknowledged)))
    }
}

/// The socket of a context.
#[inline(always)]
pub fn socket_of(ctx: &SockOpsContext) -> *mut bpf_sock {
    // SAFETY: a field of the context.
    unsafe { (*ctx.ops).__bindgen_anon_2.sk }
}

/// Whether the socket is about to send its SYN, for the first time or once more. Requests that a listener has in hand
/// come by the same callback, and are no whole sockets.
#[inline(always)]
pub fn opens(ctx: &SockOpsContext) -> bool {
    const SYN_SENT: u32 = 2;
    // SAFETY: fields of the context.
    unsafe { read(&raw const (*ctx.ops).is_fullsock) != 0 && read(&raw const (*ctx.ops).state) == SYN_SENT }
}

/// Sequence number of the first that the other end has not acknowledged: of the SYN, as long as that is under way.
#[inline(always)]
pub fn unacknowledged(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { read(&raw const (*ctx.ops).snd_una) }
}

/// Sequence number of the SYN of a socket whose handshake is complete: with Fast Open data may have been acknowledged with it.
#[inline(always)]
pub fn opened_with(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    let acknowledged = unsafe { (&raw const (*ctx.ops).bytes_acked).read_volatile() };
    unacknowledged(ctx).wrapping_sub(acknowledged as u32)
}

/// Sequence number of what this end receives next.
#[inline(always)]
pub fn next_received(ctx: &SockOpsContext) -> u32 {
    // SAFETY: a field of the context.
    unsafe { read(&raw const (*ctx.ops).rcv_nxt) }
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
///
/// # Safety
///
/// `field` must be one of the context that the program was given.
#[inline(always)]
unsafe fn read(field: *const u32) -> u32 {
    // SAFETY: the caller's.
    unsafe { field.read_volatile() }
}
