// SPDX-License-Identifier: Apache-2.0
//! What a socket call says (`connect`, `sendmsg`), and what a hook may answer.

use aya_ebpf::bindings::{bpf_sock, bpf_sock_addr};
use zt_common::address::Address;

/// The call goes on.
pub const ALLOW: i32 = 1;
/// The call fails with `EPERM`.
pub const REFUSE: i32 = 0;

/// IP protocol number.
pub const TCP: u8 = 6;
/// IP protocol number.
pub const UDP: u8 = 17;

/// The destination of an IPv6 call, word by word as the verifier wants it read.
#[inline(always)]
pub fn destination_v6(ctx: *mut bpf_sock_addr) -> Address {
    // SAFETY: fields of the context.
    unsafe {
        let ip6 = &raw const (*ctx).user_ip6;
        Address::from_words([(*ip6)[0], (*ip6)[1], (*ip6)[2], (*ip6)[3]])
    }
}

/// Destination port and protocol of a call.
#[inline(always)]
pub fn port_and_protocol(ctx: *mut bpf_sock_addr) -> (u16, u8) {
    // SAFETY: fields of the context; the port is 16 bits in network order in a 32-bit field.
    unsafe { (u16::from_be((*ctx).user_port as u16), (*ctx).protocol as u8) }
}

/// The socket of a call.
#[inline(always)]
pub fn socket_of(ctx: *mut bpf_sock_addr) -> *mut bpf_sock {
    // SAFETY: a field of the context.
    unsafe { (*ctx).__bindgen_anon_1.sk }
}

/// Local port of the call's socket, 0 before it has one.
#[inline(always)]
pub fn local_port(ctx: *mut bpf_sock_addr) -> u16 {
    let socket = socket_of(ctx);
    if socket.is_null() {
        return 0;
    }
    // SAFETY: checked above.
    unsafe { (*socket).src_port as u16 }
}
