// SPDX-License-Identifier: Apache-2.0
//! What a socket says of its two ends.

use aya_ebpf::bindings::bpf_sock;
use zt_common::address::Address;

const AF_INET6: u32 = 10;

/// The two ends of a socket, addresses as words.
pub(super) struct Ends {
    pub(super) local: [u32; 4],
    pub(super) remote: [u32; 4],
    pub(super) local_port: u16,
    pub(super) remote_port: u16,
}

impl Ends {
    /// Reads them.
    #[inline(always)]
    pub(super) fn of(sock: *mut bpf_sock) -> Self {
        let mut ends = Self {
            local: [0; 4],
            remote: [0; 4],
            local_port: 0,
            remote_port: 0,
        };
        // SAFETY: the caller's socket, and places of four words each.
        unsafe { read_addresses(sock, (&raw mut ends.local).cast(), (&raw mut ends.remote).cast()) };
        (ends.local_port, ends.remote_port) = ports(sock);
        ends
    }
}

/// Reads a socket's own port and that of the other end.
#[inline(always)]
pub(super) fn ports(sock: *mut bpf_sock) -> (u16, u16) {
    // SAFETY: fields of a socket, which the caller has.
    unsafe {
        let local = (&raw const (*sock).src_port).read_volatile();
        let remote = (&raw const (*sock).dst_port).read_volatile();
        (local as u16, u16::from_be(remote))
    }
}

/// Reads the addresses of a socket's ends, its own and the other one's.
///
/// Word by word, each straight to where it belongs: what the compiler keeps meanwhile, it keeps on the stack. Those of IPv4 come last and have
/// no counterpart, as the compiler joins branches on a moved pointer, which the verifier refuses.
///
/// # Safety
///
/// The caller has the socket, and there is room for four words at both places.
#[inline(always)]
pub(super) unsafe fn read_addresses(sock: *mut bpf_sock, local: *mut u32, remote: *mut u32) {
    // SAFETY: the caller's.
    unsafe {
        let own = (&raw const (*sock).src_ip6).cast::<u32>();
        let other = (&raw const (*sock).dst_ip6).cast::<u32>();
        local.write_volatile(own.read_volatile());
        local.add(1).write_volatile(own.add(1).read_volatile());
        local.add(2).write_volatile(own.add(2).read_volatile());
        local.add(3).write_volatile(own.add(3).read_volatile());
        remote.write_volatile(other.read_volatile());
        remote.add(1).write_volatile(other.add(1).read_volatile());
        remote.add(2).write_volatile(other.add(2).read_volatile());
        remote.add(3).write_volatile(other.add(3).read_volatile());
        if !is_ipv6(sock) {
            write(local, (&raw const (*sock).src_ip4).read_volatile());
            write(remote, (&raw const (*sock).dst_ip4).read_volatile());
        }
    }
}

/// Writes an IPv4 address in its mapped form.
///
/// # Safety
///
/// There is room for four words.
#[inline(always)]
unsafe fn write(place: *mut u32, address: u32) {
    let [a, b, c, d] = Address::from_v4_word(address).words();
    // SAFETY: the caller's.
    unsafe {
        place.write_volatile(a);
        place.add(1).write_volatile(b);
        place.add(2).write_volatile(c);
        place.add(3).write_volatile(d);
    }
}

/// Whether a socket is of the IPv6 family, whatever form its addresses have.
#[inline(always)]
pub(super) fn is_ipv6(sock: *mut bpf_sock) -> bool {
    // SAFETY: a field of a socket, which the caller has.
    unsafe { (&raw const (*sock).family).read_volatile() == AF_INET6 }
}
