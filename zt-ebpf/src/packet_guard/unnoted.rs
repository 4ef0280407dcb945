// SPDX-License-Identifier: Apache-2.0
//! A connection of which nothing is noted: judged by the sockets of its namespace, and by address.

use aya_ebpf::bindings::{__sk_buff, bpf_sock, bpf_sock_tuple};
use aya_ebpf::helpers::generated as helper;
use zt_common::abi::{CONNECTION_INBOUND, ServiceKey};
use zt_common::address::Address;
use zt_common::control::HAS_SERVICES;
use zt_common::entry::Flow;
use zt_common::identity;

use super::ends::Ends;
use super::{DECIDED, Outcome, UNDECIDED, socket_of};
use crate::call::TCP;
use crate::origin::by_address;
use crate::own::Own;
use crate::{context, judge, maps};

/// A state of TCP.
const LISTENS: u32 = 10;

/// Judges a connection of which nothing is noted: [`DECIDED`], or [`UNDECIDED`] where there is nobody at its other end.
///
/// Whether the other end has proven who it is was for the handshake to ask, or is for the sweep.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_unnoted(skb: *mut __sk_buff, outcome: *mut Outcome) -> u32 {
    if outcome.is_null() {
        return UNDECIDED;
    }
    if zt_packet_ends(skb, outcome) != DECIDED {
        return UNDECIDED;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let outcome = unsafe { &mut *outcome };
    let sock = socket_of(skb);
    if sock.is_null() {
        return UNDECIDED;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return UNDECIDED;
    };
    let own = Own::of_birth(control, sock);
    if own.is_alien() {
        return UNDECIDED;
    }
    outcome.started = context::now();
    let (other, named) = (outcome.source, outcome.revision);
    let mut flow = Flow {
        source: own.identity,
        destination: other,
        port: outcome.port as u16,
        protocol: TCP,
    };
    if outcome.inbound != 0 {
        flow.source = other;
        flow.destination = own.identity;
    }
    let verdict = judge::judge(&flow);
    if named != 0 && named != verdict.revision {
        // A swap of policy fell between: the next segment is decided on.
        return UNDECIDED;
    }
    outcome.says(&own, &flow, &verdict);
    DECIDED
}

/// Finds out who is at the other end of a connection, and which end began it: `source`, `revision`, `port` and `inbound` of the outcome are the
/// other one's identity, the revision whose networks named it (or 0), the port that policy speaks about, and which end this is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_ends(skb: *mut __sk_buff, outcome: *mut Outcome) -> u32 {
    if outcome.is_null() {
        return UNDECIDED;
    }
    // SAFETY: checked above; the verifier knows the size from the type.
    let outcome = unsafe { &mut *outcome };
    let sock = socket_of(skb);
    if sock.is_null() {
        return UNDECIDED;
    }
    let Some(control) = maps::zt_control.get(0) else {
        return UNDECIDED;
    };
    let ends = Ends::of(sock);
    if is_accepted(skb, &ends) {
        outcome.inbound = CONNECTION_INBOUND;
        outcome.port = u32::from(ends.local_port);
    } else {
        outcome.port = u32::from(ends.remote_port);
        if control.flags & HAS_SERVICES != 0 {
            let key = ServiceKey {
                address: Address::from_words(ends.remote),
                port: ends.remote_port,
                protocol: TCP,
                reserved: 0,
            };
            // SAFETY: read once, copied at once.
            if let Some(service) = unsafe { maps::zt_services.get(key) } {
                outcome.source = service.identity;
                outcome.port = u32::from(service.target_port);
                return DECIDED;
            }
        }
    }
    outcome.source = neighbour(skb, &ends);
    if outcome.source != NOBODY {
        return DECIDED;
    }
    let remote = Address::from_words(ends.remote);
    if remote.is_loopback() {
        // The other end's socket is gone, and takes nothing any more.
        return UNDECIDED;
    }
    let origin = by_address(&remote);
    outcome.source = origin.identity;
    outcome.revision = origin.revision();
    DECIDED
}

/// Whether somebody listens at a socket's own place: then it is one that was accepted there.
#[inline(never)]
fn is_accepted(skb: *mut __sk_buff, ends: &Ends) -> bool {
    // Nobody calls from port 0, so that this finds no connection.
    let listener = receiver(skb, (&ends.remote, 0), (&ends.local, ends.local_port));
    if listener.is_null() {
        return false;
    }
    // SAFETY: checked above, and released at once.
    unsafe {
        let state = (*listener).state;
        helper::bpf_sk_release(listener.cast());
        state == LISTENS
    }
}

/// No identity.
const NOBODY: u64 = u64::MAX;

/// The owner of the other end's socket, where that is in the same namespace; else [`NOBODY`].
#[inline(never)]
fn neighbour(skb: *mut __sk_buff, ends: &Ends) -> u64 {
    let Some(control) = maps::zt_control.get(0) else {
        return NOBODY;
    };
    let sock = receiver(
        skb,
        (&ends.local, ends.local_port),
        (&ends.remote, ends.remote_port),
    );
    if sock.is_null() {
        return NOBODY;
    }
    // SAFETY: checked above, and released when that has been asked.
    let (state, own) = unsafe {
        let state = (*sock).state;
        let own = Own::of_birth(control, sock);
        helper::bpf_sk_release(sock.cast());
        (state, own)
    };
    if state == LISTENS {
        // One that listens on all addresses is found for any address there is.
        NOBODY
    } else if own.is_alien() {
        identity::HOST
    } else {
        own.identity
    }
}

/// The socket of the packet's namespace that a segment from one place to another would come to; to be released.
#[inline(always)]
fn receiver(skb: *mut __sk_buff, from: (&[u32; 4], u16), to: (&[u32; 4], u16)) -> *mut bpf_sock {
    const CURRENT_NETNS: u64 = u64::MAX;
    // SAFETY: numbers alone, for which zeros are values.
    let mut tuple: bpf_sock_tuple = unsafe { core::mem::zeroed() };
    let size = if Address::from_words(*to.0).is_v4() {
        // SAFETY: both members are numbers alone, of which all bits are initialized.
        let ipv4 = unsafe { &mut tuple.__bindgen_anon_1.ipv4 };
        ipv4.saddr = from.0[3];
        ipv4.daddr = to.0[3];
        ipv4.sport = from.1.to_be();
        ipv4.dport = to.1.to_be();
        size_of_val(ipv4)
    } else {
        // SAFETY: as above.
        let ipv6 = unsafe { &mut tuple.__bindgen_anon_1.ipv6 };
        ipv6.saddr = *from.0;
        ipv6.daddr = *to.0;
        ipv6.sport = from.1.to_be();
        ipv6.dport = to.1.to_be();
        size_of_val(ipv6)
    };
    // SAFETY: the tuple has the size that its family asks for.
    unsafe { helper::bpf_sk_lookup_tcp(skb.cast(), &raw mut tuple, size as u32, CURRENT_NETNS, 0) }
}
