// SPDX-License-Identifier: Apache-2.0
//! Has the peer of a refused connection notice that it is over.
//!
//! The second fence leaves a refused socket without a route, so the reset that its destruction would send is lost: a
//! peer that waits to be spoken to would wait for ever. A segment that fits nowhere makes it speak. It is answered
//! with an acknowledgement (RFC 9293, 3.10.7.4), which meets no socket here any more, and what meets no socket is
//! reset by the kernel, with the right number.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto, socket,
};
use zt_common::address::Address;

const TCP: u8 = 6;
const HEADER: usize = 20;

/// Sends the segment, from this thread's namespace; both ports as the refused socket saw them.
pub(super) fn provoke(
    local: &Address,
    local_port: u16,
    remote: &Address,
    remote_port: u16,
) -> io::Result<()> {
    let (from, to) = (IpAddr::from(*local), IpAddr::from(*remote));
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let raw = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
    // A raw socket's address has no port.
    bind(raw.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    let segment = segment(from, local_port, to, remote_port);
    let to = SockaddrStorage::from(SocketAddr::new(to, 0));
    sendto(raw.as_raw_fd(), &segment, &to, MsgFlags::MSG_DONTWAIT)?;
    Ok(())
}

/// An empty segment with ACK set and numbers that are most likely outside of every window.
fn segment(from: IpAddr, from_port: u16, to: IpAddr, to_port: u16) -> [u8; HEADER] {
    const LENGTH_IN_WORDS: u8 = (HEADER / 4) as u8;
    const ACK: u8 = 0x10;
    let mut segment = [0; HEADER];
    segment[..2].copy_from_slice(&from_port.to_be_bytes());
    segment[2..4].copy_from_slice(&to_port.to_be_bytes());
    segment[12] = LENGTH_IN_WORDS << 4;
    segment[13] = ACK;
    let checksum = checksum(from, to, &segment);
    segment[16..18].copy_from_slice(&checksum.to_be_bytes());
    segment
}

/// The checksum over the pseudo-header and a segment whose own checksum is zero.
fn checksum(from: IpAddr, to: IpAddr, segment: &[u8]) -> u16 {
    let mut sum = u32::from(TCP) + segment.len() as u32;
    for address in [from, to] {
        sum += match address {
            IpAddr::V4(v4) => words(&v4.octets()),
            IpAddr::V6(v6) => words(&v6.octets()),
        };
    }
    sum += words(segment);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sum of 16-bit words in network order.
fn words(bytes: &[u8]) -> u32 {
    bytes
        .chunks_exact(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_sums_up_to_nothing() {
        for (from, to) in [("10.99.0.1", "192.0.2.7"), ("fd99::1", "2001:db8::7")] {
            let [from, to] = [from, to].map(|text| text.parse::<IpAddr>().expect("literal"));
            let segment = segment(from, 80, to, 54_321);
            assert_eq!(segment[..4], [0, 80, 0xd4, 0x31]);
            // With its checksum in place, the sum is all ones, whose complement is zero.
            assert_eq!(checksum(from, to, &segment), 0);
        }
    }
}
