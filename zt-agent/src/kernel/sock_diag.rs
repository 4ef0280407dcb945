// SPDX-License-Identifier: Apache-2.0
//! `NETLINK_SOCK_DIAG`: listing a namespace's sockets with their cgroups, and destroying some of them.
//!
//! Layouts follow `include/uapi/linux/inet_diag.h`. Written here because the netlink crates speak of listing only, not
//! of `SOCK_DESTROY`. A socket belongs to the namespace of the thread that opened it.

mod owner;

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use zt_common::address::Address;

pub use self::owner::owner_of;
use super::netlink::{Messages, NLMSG_ERROR, REQUEST};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
const NLMSG_DONE: u16 = 3;
const DUMP: u16 = 0x300;
const INET_DIAG_CGROUP_ID: u16 = 21;

/// `nlmsghdr` and `inet_diag_req_v2`.
const REQUEST_SIZE: usize = 16 + 56;
/// Requests sent before their answers are read: the answers must fit the socket's buffer.
const WINDOW: usize = 128;
/// Room for many answers.
const BUFFER: usize = 32 * 1024;

/// IP protocol number.
pub(super) const TCP: u8 = 6;
/// IP protocol number.
pub(super) const UDP: u8 = 17;

/// States as `enum tcp_state` numbers them.
pub(super) const ESTABLISHED: u8 = 1;
/// See [`ESTABLISHED`]; also an unconnected UDP socket.
pub(super) const CLOSED: u8 = 7;
/// See [`ESTABLISHED`].
pub(super) const LISTEN: u8 = 10;

/// A socket to be found again: its tuple and cookie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    /// Socket cookie: no other socket is ever meant.
    pub cookie: u64,
    /// Its address.
    pub local: Address,
    /// The other end's address.
    pub remote: Address,
    /// Its port.
    pub local_port: u16,
    /// The other end's port.
    pub remote_port: u16,
    /// IP protocol number.
    pub protocol: u8,
    /// Of the IPv6 family, whatever form its addresses have.
    pub ipv6: bool,
    /// The interface it is bound to, or 0: a fenced socket is only found by naming its.
    pub interface: u32,
}

/// A socket as a listing shows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    /// How to find it again.
    pub target: Target,
    /// Its state.
    pub state: u8,
    /// Its inode, which names it in `/proc/<pid>/fd`.
    pub inode: u32,
    /// The cgroup it was born in.
    pub cgroup: u64,
}

/// A netlink socket for one namespace.
#[derive(Debug)]
pub(super) struct SockDiag {
    socket: OwnedFd,
}

impl SockDiag {
    /// Opens one in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkSockDiag,
        )?;
        Ok(Self { socket })
    }

    /// Destroys sockets, and gives `each` the answer about every one, by its index in `targets`; `ENOENT` where it was
    /// gone.
    ///
    /// The kernel has destroyed them when `send` returns, and speaks of those only that it did not.
    pub(super) fn destroy(
        &self,
        targets: &[Target],
        mut each: impl FnMut(usize, io::Result<()>),
    ) -> io::Result<()> {
        let mut requests = Vec::with_capacity(WINDOW * REQUEST_SIZE);
        let mut buffer = vec![0_u8; BUFFER];
        for (number, window) in targets.chunks(WINDOW).enumerate() {
            let first = number * WINDOW;
            requests.clear();
            for (index, target) in window.iter().enumerate() {
                let family = if target.ipv6 {
                    libc::AF_INET6
                } else {
                    libc::AF_INET
                } as u8;
                let sequence = (first + index) as u32;
                request(
                    &mut requests,
                    SOCK_DESTROY,
                    REQUEST,
                    sequence,
                    family,
                    target,
                    u32::MAX,
                );
            }
            send(self.socket.as_raw_fd(), &requests, MsgFlags::empty())?;
            let mut refused: [Option<i32>; WINDOW] = [None; WINDOW];
            loop {
                let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(length) => length,
                    Err(Errno::EAGAIN) => break,
                    // Answers were lost: nobody knows which, so that all of these are to be tried again.
                    Err(error) => return Err(error.into()),
                };
                for message in Messages(buffer.get(..length).unwrap_or_default()) {
                    let place = (message.sequence as usize).checked_sub(first);
                    if message.kind == NLMSG_ERROR
                        && let Some(slot) = place.and_then(|place| refused.get_mut(place))
                        && let Err(error) = message.error()
                    {
                        *slot = Some(error.raw_os_error().unwrap_or(libc::EIO));
                    }
                }
            }
            for (index, errno) in refused.iter().take(window.len()).enumerate() {
                let answer = errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
                each(first + index, answer);
            }
        }
        Ok(())
    }

    /// Asks about the sockets of a target that are in one of `states`.
    fn ask(&self, flags: u16, target: &Target, states: u32) -> io::Result<()> {
        let family = if target.ipv6 {
            libc::AF_INET6
        } else {
            libc::AF_INET
        } as u8;
        let mut bytes = Vec::with_capacity(REQUEST_SIZE);
        request(&mut bytes, SOCK_DIAG_BY_FAMILY, flags, 0, family, target, states);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty())?;
        Ok(())
    }

    /// Lists the sockets of a family and protocol that are in one of `states` (a mask of `1 << state`).
    pub(super) fn list(&self, ipv6: bool, protocol: u8, states: u32) -> io::Result<Vec<Found>> {
        let any = Target {
            cookie: u64::MAX,
            local: Address::UNSPECIFIED_V6,
            remote: Address::UNSPECIFIED_V6,
            local_port: 0,
            remote_port: 0,
            protocol,
            ipv6,
            interface: 0,
        };
        self.ask(REQUEST | DUMP, &any, states)?;
        let mut found = Vec::new();
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            if length == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            for message in Messages(buffer.get(..length).unwrap_or_default()) {
                match message.kind {
                    NLMSG_DONE => return Ok(found),
                    NLMSG_ERROR => return message.error().map(|()| found),
                    SOCK_DIAG_BY_FAMILY => found.extend(parse(message.body, protocol)),
                    _ => {}
                }
            }
        }
    }
}

fn request(
    out: &mut Vec<u8>,
    kind: u16,
    flags: u16,
    sequence: u32,
    family: u8,
    target: &Target,
    states: u32,
) {
    out.extend_from_slice(&(REQUEST_SIZE as u32).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(&flags.to_ne_bytes());
    out.extend_from_slice(&sequence.to_ne_bytes());
    out.extend_from_slice(&0_u32.to_ne_bytes());
    out.extend_from_slice(&[family, target.protocol, 0, 0]);
    out.extend_from_slice(&states.to_ne_bytes());
    out.extend_from_slice(&target.local_port.to_be_bytes());
    out.extend_from_slice(&target.remote_port.to_be_bytes());
    for address in [target.local, target.remote] {
        if family == libc::AF_INET as u8 {
            out.extend_from_slice(address.0.get(12..).unwrap_or_default());
            out.extend_from_slice(&[0; 12]);
        } else {
            out.extend_from_slice(&address.0);
        }
    }
    out.extend_from_slice(&target.interface.to_ne_bytes());
    out.extend_from_slice(&(target.cookie as u32).to_ne_bytes());
    out.extend_from_slice(&((target.cookie >> 32) as u32).to_ne_bytes());
}

/// One `inet_diag_msg` and its attributes.
fn parse(body: &[u8], protocol: u8) -> Option<Found> {
    let &[family, state, ..] = body else { return None };
    let ipv6 = i32::from(family) == libc::AF_INET6;
    let bytes16 = |at: usize| {
        body.get(at..at + 16)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
    };
    let u16_be = |at: usize| {
        body.get(at..at + 2)
            .and_then(|bytes| Some(u16::from_be_bytes(bytes.try_into().ok()?)))
    };
    let u32_ne = |at: usize| {
        body.get(at..at + 4)
            .and_then(|bytes| Some(u32::from_ne_bytes(bytes.try_into().ok()?)))
    };
    let address = |at| {
        let bytes = bytes16(at)?;
        let [a, b, c, d, ..] = bytes;
        Some(if ipv6 {
            Address(bytes)
        } else {
            Address::from_v4([a, b, c, d])
        })
    };
    let target = Target {
        local_port: u16_be(4)?,
        remote_port: u16_be(6)?,
        local: address(8)?,
        remote: address(24)?,
        interface: u32_ne(40)?,
        cookie: u64::from(u32_ne(44)?) | u64::from(u32_ne(48)?) << 32,
        protocol,
        ipv6,
    };
    let inode = u32_ne(68)?;
    let mut cgroup = 0;
    let mut attributes = body.get(72..)?;
    while let &[l0, l1, k0, k1, ..] = attributes {
        let length = usize::from(u16::from_ne_bytes([l0, l1]));
        if u16::from_ne_bytes([k0, k1]) == INET_DIAG_CGROUP_ID {
            cgroup = u64::from_ne_bytes(attributes.get(4..12)?.try_into().ok()?);
        }
        let Some(rest) = attributes.get(length.max(4).next_multiple_of(4)..) else {
            break;
        };
        attributes = rest;
    }
    Some(Found {
        target,
        state,
        inode,
        cgroup,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_truncated_or_lying_listing_ends_without_a_panic() {
        assert!(parse(&[2, 1, 0], 6).is_none());
        let mut body = vec![0_u8; 72];
        // An attribute that claims a length of zero must not loop forever.
        body.extend_from_slice(&[0, 0, 0, 0]);
        assert!(parse(&body, 6).is_some());
    }

    #[test]
    fn a_request_is_laid_out_as_the_kernel_reads_it() {
        let target = Target {
            cookie: 0x1122_3344_5566_7788,
            local: Address::from_v4([10, 0, 0, 1]),
            remote: Address::from_v4([10, 0, 0, 2]),
            local_port: 5432,
            remote_port: 40000,
            protocol: 6,
            ipv6: false,
            interface: 7,
        };
        let mut out = Vec::new();
        request(
            &mut out,
            SOCK_DESTROY,
            REQUEST,
            1,
            libc::AF_INET as u8,
            &target,
            u32::MAX,
        );
        assert_eq!(out.len(), REQUEST_SIZE);
        assert_eq!(&out[24..28], &[0x15, 0x38, 0x9c, 0x40]);
        assert_eq!(&out[28..32], &[10, 0, 0, 1]);
        assert_eq!(&out[60..64], &7_u32.to_ne_bytes());
        assert_eq!(&out[64..68], &0x5566_7788_u32.to_ne_bytes());
        assert_eq!(&out[68..72], &0x1122_3344_u32.to_ne_bytes());
    }
}
