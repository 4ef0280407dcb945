// SPDX-License-Identifier: Apache-2.0
//! `cgroup_skb` on the managed roots, where `packetGuard` asks for it: no segment of an established TCP connection passes that
//! policy does not allow by now, whether the agent has destroyed its socket yet or not.
//!
//! What was decided is kept with the socket, so that a segment costs two lookups as long as the policy and who is who stay the
//! same. Otherwise the connection is judged by the names that its handshake noted, as the sweep does; one that is noted nowhere
//! (older than the hooks, or beyond its workload's share) by the sockets of its namespace and by address. Handshakes are not
//! looked at: they have programs of their own, as datagrams have `udp_guard`. A bare reset passes: it is how the other end learns
//! that a socket was destroyed.
//!
//! The parts are *global* functions of the object, called one after the other, so that they do not share a stack.

mod ends;
mod noted;
mod reset;
mod unnoted;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated as helper;
use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use zt_common::abi::{
    CONNECTION_DENIED, CONNECTION_ENFORCED, CONNECTION_ESTABLISHED, CONNECTION_IPV6, Connection, Guarded,
};
use zt_common::counter::Counter;
use zt_common::entry::Flow;
use zt_common::event::Hook;
use zt_common::names::NO_INTERFACE;
use zt_common::proof::Proof;
use zt_common::verdict::{Reason, Verdict};

use self::ends::{is_ipv6, ports, read_addresses};
use self::noted::zt_packet_noted;
use self::reset::{RESETS, zt_packet_resets};
use self::unnoted::zt_packet_unnoted;
use crate::call::TCP;
use crate::emit::Told;
use crate::own::Own;
use crate::{context, emit, judge, maps};

const DROP: i32 = 0;
const PASS: i32 = 1;
/// States in which a connection can carry data: `ESTABLISHED`, both `FIN_WAIT`s, `CLOSE_WAIT`, `LAST_ACK`, `CLOSING`.
const CARRYING: u32 = 1 << 1 | 1 << 4 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 11;

/// What [`zt_packet`] answers. Neither is 0 or 1: the compiler would hand such an answer on as the program's own, and the verifier,
/// which does not know what a global function answers, would refuse that.
const REFUSED: u32 = 2;
/// See [`REFUSED`].
const PASSES: u32 = 5;

/// It is not for the guard to decide now.
const UNDECIDED: u32 = 0;
/// The outcome says what was decided.
const DECIDED: u32 = 1;
/// Nothing is noted of the connection.
const ABSENT: u32 = 2;

#[cgroup_skb(egress)]
pub fn zt_packet_egress(ctx: SkBuffContext) -> i32 {
    if passes(ctx.skb.skb) { PASS } else { DROP }
}

#[cgroup_skb(ingress)]
pub fn zt_packet_ingress(ctx: SkBuffContext) -> i32 {
    if passes(ctx.skb.skb) { PASS } else { DROP }
}

#[inline(always)]
fn passes(skb: *mut __sk_buff) -> bool {
    let sock = socket_of(skb);
    if sock.is_null() {
        return true;
    }
    // SAFETY: checked above.
    let (protocol, state) = unsafe { ((*sock).protocol, (*sock).state) };
    if protocol != u32::from(TCP) || 1_u32.wrapping_shl(state) & CARRYING == 0 {
        return true;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return true;
    };
    let place = kept(sock, core::ptr::null_mut());
    if !place.is_null() {
        // SAFETY: the socket's own; one word, which who decides on another processor at the same time writes whole.
        let stamp = unsafe { (&raw const (*place).stamp).read_volatile() };
        if stamp == Guarded::stamp(judge::revision(), control.standing()) {
            return true;
        }
    }
    zt_packet(skb) == PASSES
}

/// The socket of a packet; null where there is none, or only a listener's request for one.
#[inline(always)]
fn socket_of(skb: *mut __sk_buff) -> *mut bpf_sock {
    // SAFETY: a field of the context; the helper takes what it gives.
    unsafe {
        let sock = (*skb).__bindgen_anon_2.sk;
        if sock.is_null() {
            return core::ptr::null_mut();
        }
        helper::bpf_sk_fullsock(sock)
    }
}

/// What is kept with a socket; null where nothing is. With something to begin with, that is kept where there was nothing.
#[inline(always)]
fn kept(sock: *mut bpf_sock, initial: *mut Guarded) -> *mut Guarded {
    const CREATE: u64 = 1;
    let flags = if initial.is_null() { 0 } else { CREATE };
    // SAFETY: the caller has a socket that the verifier knows to be one; the value has the map's type.
    unsafe {
        helper::bpf_sk_storage_get(maps::zt_guarded.as_ptr(), sock.cast(), initial.cast(), flags).cast()
    }
}

/// What was decided of a connection. Laid out without gaps, as it is handed from function to function of the object.
#[repr(C)]
pub struct Outcome {
    started: u64,
    workload: u64,
    netns: u64,
    source: u64,
    destination: u64,
    rule: u64,
    revision: u64,
    /// The port that policy speaks about.
    port: u32,
    /// `CONNECTION_INBOUND`, or nothing.
    inbound: u32,
    allowed: u32,
    enforced: u32,
}

impl Outcome {
    /// Before anything is.
    const NONE: Self = Self {
        started: 0,
        workload: 0,
        netns: 0,
        source: 0,
        destination: 0,
        rule: 0,
        revision: 0,
        port: 0,
        inbound: 0,
        allowed: 0,
        enforced: 0,
    };

    #[inline(always)]
    fn says(&mut self, own: &Own, flow: &Flow, verdict: &Verdict) {
        self.workload = own.workload;
        self.source = flow.source;
        self.destination = flow.destination;
        self.port = u32::from(flow.port);
        self.rule = verdict.rule;
        self.revision = verdict.revision;
        self.allowed = u32::from(verdict.allowed);
        self.enforced = u32::from(own.enforced(verdict.revision));
    }
}

/// Decides on a segment, keeps what was decided, and has a refusal recorded: [`PASSES`] or [`REFUSED`].
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet(skb: *mut __sk_buff) -> u32 {
    let sock = socket_of(skb);
    // SAFETY: checked first.
    if sock.is_null() || unsafe { (*sock).bound_dev_if } == NO_INTERFACE {
        // Its handshake was refused: it is behind its fences, and that is recorded.
        return PASSES;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return PASSES;
    };
    // Before it is decided: what changes meanwhile has the next segment decided on.
    let standing = control.standing();
    let cookie = context::socket_cookie(skb.cast());
    let mut outcome = Outcome::NONE;
    let mut how = zt_packet_noted(skb, cookie, &raw mut outcome);
    if how == ABSENT {
        how = zt_packet_unnoted(skb, &raw mut outcome);
    }
    if how != DECIDED {
        return PASSES;
    }
    if outcome.allowed != 0 || outcome.enforced == 0 {
        zt_packet_kept(skb, Guarded::stamp(outcome.revision, standing));
        return PASSES;
    }
    if zt_packet_resets(skb) == RESETS {
        return PASSES;
    }
    emit::count(Counter::PacketsRefused);
    if zt_packet_kept(skb, Guarded::NEVER) == UNTOLD {
        zt_packet_told(skb, cookie, &raw const outcome);
    }
    REFUSED
}

/// No refusal of the socket was recorded before.
const UNTOLD: u32 = 1;

/// Keeps with the socket under what its segments pass, as [`Guarded::stamp`] has it. [`UNTOLD`] for the first that does not pass.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_kept(skb: *mut __sk_buff, stamp: u64) -> u32 {
    let sock = socket_of(skb);
    if sock.is_null() {
        return 0;
    }
    let mut initial = Guarded { stamp, untold: 1 };
    let place = kept(sock, &raw mut initial);
    if place.is_null() {
        // No memory: each segment is decided on, and a refusal is counted.
        return 0;
    }
    // SAFETY: the socket's own; of two who write at the same time the word is one's or the other's, each of which is true of what it
    // names, and of two who take the record one has it.
    unsafe {
        (&raw mut (*place).stamp).write_volatile(stamp);
        if stamp == Guarded::NEVER && context::take(&raw mut (*place).untold) != 0 {
            UNTOLD
        } else {
            0
        }
    }
}

/// Makes the record of a refusal.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_told(skb: *mut __sk_buff, cookie: u64, outcome: *const Outcome) -> u32 {
    if outcome.is_null() {
        return 0;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let outcome = unsafe { &*outcome };
    let sock = socket_of(skb);
    if sock.is_null() {
        return 0;
    }
    let (local_port, remote_port) = ports(sock);
    let mut connection = Connection {
        netns: outcome.netns,
        workload: outcome.workload,
        source: outcome.source,
        destination: outcome.destination,
        rule: outcome.rule,
        revision: outcome.revision,
        local_port,
        remote_port,
        target_port: outcome.port as u16,
        protocol: TCP,
        reason: Reason::Revoked as u8,
        flags: CONNECTION_ESTABLISHED | CONNECTION_DENIED | CONNECTION_ENFORCED | outcome.inbound,
        latency: (context::now() - outcome.started) as u32,
        ..Connection::BLANK
    };
    // SAFETY: the socket is checked above; an address is four words, and both are at multiples of eight bytes.
    unsafe {
        read_addresses(
            sock,
            (&raw mut connection.local).cast(),
            (&raw mut connection.remote).cast(),
        );
    }
    if is_ipv6(sock) {
        connection.flags |= CONNECTION_IPV6;
    }
    let told = Told {
        hook: Hook::Packet,
        flags: 0,
        proof: Proof::None,
    };
    emit::told(cookie, outcome.started, &connection, told);
    0
}
