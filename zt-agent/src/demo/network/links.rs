// SPDX-License-Identifier: Apache-2.0
//! Interfaces, addresses and neighbours of the calling thread's network namespace, over `NETLINK_ROUTE`.
//!
//! Layouts follow `include/uapi/linux/rtnetlink.h`, `if_link.h`, `if_addr.h`, `neighbour.h` and `veth.h`. Written here because it is
//! six requests; the crates for it want a runtime in each namespace.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd, OwnedFd};

use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

use crate::kernel::netlink::{Messages, NLMSG_ERROR, REQUEST};

/// `nlmsghdr`.
const HEADER: usize = 16;
/// The flags of a request that is answered, and of one that makes what is not there yet.
const ANSWERED: u16 = REQUEST | 4;
const NEW: u16 = ANSWERED | 0x200 | 0x400;
const UP: u32 = libc::IFF_UP.cast_unsigned();
// What the kinds of interfaces have attributes of their own for.
const IFLA_BR_FORWARD_DELAY: u16 = 1;
const IFLA_BR_STP_STATE: u16 = 5;
const IFLA_BR_MCAST_SNOOPING: u16 = 23;
const VETH_INFO_PEER: u16 = 1;

/// Bytes that attributes are added to.
struct Bytes(Vec<u8>);

impl Bytes {
    /// Adds an attribute: its length, its type, its value, up to the next multiple of four bytes.
    fn with(mut self, kind: u16, value: &[u8]) -> Self {
        self.0
            .extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// Adds a name.
    fn named(self, kind: u16, name: &str) -> Self {
        self.with(kind, &[name.as_bytes(), &[0]].concat())
    }
}

/// `ifinfomsg`: an interface by its index, which is 0 for one that is to be made, and whether it goes up.
fn interface(index: u32, up: bool) -> Bytes {
    let flags = if up { UP } else { 0 };
    let mut bytes = vec![libc::AF_UNSPEC as u8, 0, 0, 0];
    for word in [index, flags, flags] {
        bytes.extend_from_slice(&word.to_ne_bytes());
    }
    Bytes(bytes)
}

/// What an interface of a kind is made with.
fn info(kind: &str, data: &Bytes) -> Vec<u8> {
    let info = Bytes(Vec::new()).named(libc::IFLA_INFO_KIND, kind);
    info.with(libc::IFLA_INFO_DATA, &data.0).0
}

fn family_of(address: IpAddr) -> u8 {
    let family = if address.is_ipv4() {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    family as u8
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// `ifaddrmsg`, and the address, which is usable at once: nobody is asked whether he has it already.
fn address_of(index: u32, address: IpAddr, prefix: u8) -> Bytes {
    let flags = libc::IFA_F_NODAD as u8;
    let mut header = vec![family_of(address), prefix, flags, libc::RT_SCOPE_UNIVERSE];
    header.extend_from_slice(&index.to_ne_bytes());
    let value = bytes_of(address);
    Bytes(header)
        .with(libc::IFA_LOCAL, &value)
        .with(libc::IFA_ADDRESS, &value)
}

/// A socket for one namespace.
#[derive(Debug)]
pub(super) struct Links {
    socket: OwnedFd,
}

impl Links {
    /// Opens one in the namespace of the calling thread.
    pub(super) fn open() -> io::Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )?;
        Ok(Self { socket })
    }

    /// Makes a bridge that forwards at once, and sets it up.
    pub(super) fn add_bridge(&self, name: &str) -> io::Result<()> {
        let data = Bytes(Vec::new())
            .with(IFLA_BR_FORWARD_DELAY, &0_u32.to_ne_bytes())
            .with(IFLA_BR_STP_STATE, &0_u32.to_ne_bytes())
            .with(IFLA_BR_MCAST_SNOOPING, &[0]);
        let body = interface(0, true)
            .named(libc::IFLA_IFNAME, name)
            .with(libc::IFLA_LINKINFO, &info("bridge", &data));
        self.ask(libc::RTM_NEWLINK, NEW, &body)
    }

    /// Makes a pair of interfaces: one here, up and at a bridge, and one called `peer` in another namespace.
    pub(super) fn add_pair(
        &self,
        name: &str,
        bridge: &str,
        peer: &str,
        namespace: BorrowedFd<'_>,
    ) -> io::Result<()> {
        // An end of a pair cannot go up before the other one is there.
        let other = interface(0, false)
            .named(libc::IFLA_IFNAME, peer)
            .with(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
        let data = Bytes(Vec::new()).with(VETH_INFO_PEER, &other.0);
        let body = interface(0, true)
            .named(libc::IFLA_IFNAME, name)
            .with(libc::IFLA_MASTER, &index_of(bridge)?.to_ne_bytes())
            .with(libc::IFLA_LINKINFO, &info("veth", &data));
        self.ask(libc::RTM_NEWLINK, NEW, &body)
    }

    /// Sets an interface up.
    pub(super) fn set_up(&self, name: &str) -> io::Result<()> {
        self.ask(libc::RTM_SETLINK, ANSWERED, &interface(index_of(name)?, true))
    }

    /// Gives an interface an address.
    pub(super) fn add_address(&self, name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let body = address_of(index_of(name)?, address, prefix);
        self.ask(libc::RTM_NEWADDR, NEW, &body)
    }

    /// Takes it away.
    pub(super) fn remove_address(&self, name: &str, address: IpAddr, prefix: u8) -> io::Result<()> {
        let body = address_of(index_of(name)?, address, prefix);
        self.ask(libc::RTM_DELADDR, ANSWERED, &body)
    }

    /// Has it looked for anew who has an address, the next time.
    pub(super) fn forget_neighbour(&self, name: &str, address: IpAddr) -> io::Result<()> {
        // `ndmsg`.
        let mut header = vec![family_of(address), 0, 0, 0];
        header.extend_from_slice(&index_of(name)?.to_ne_bytes());
        header.extend_from_slice(&[0; 4]);
        let body = Bytes(header).with(libc::NDA_DST, &bytes_of(address));
        match self.ask(libc::RTM_DELNEIGH, ANSWERED, &body) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            result => result,
        }
    }

    /// Sends a request and reads the answer.
    fn ask(&self, kind: u16, flags: u16, body: &Bytes) -> io::Result<()> {
        let mut request = Vec::with_capacity(HEADER + body.0.len());
        request.extend_from_slice(&((HEADER + body.0.len()) as u32).to_ne_bytes());
        request.extend_from_slice(&kind.to_ne_bytes());
        request.extend_from_slice(&flags.to_ne_bytes());
        // Its number, and nobody's port: there is one request at a time.
        request.extend_from_slice(&[0; 8]);
        request.extend_from_slice(&body.0);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let answer = Messages(buffer.get(..length).unwrap_or_default()).next();
        match answer {
            Some(answer) if answer.kind == NLMSG_ERROR => answer.error(),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn index_of(name: &str) -> io::Result<u32> {
    Ok(if_nametoindex(name)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_begin_at_multiples_of_four() {
        let bytes = Bytes(Vec::new()).named(3, "br0").with(23, &[7]).with(10, &[1, 2]);
        let word = |length: u16, kind: u16| [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
        let expected = [
            word(8, 3),
            b"br0\0".to_vec(),
            word(5, 23),
            vec![7, 0, 0, 0],
            word(6, 10),
            vec![1, 2, 0, 0],
        ];
        assert_eq!(bytes.0, expected.concat());
    }

    #[test]
    fn headers_are_as_long_as_the_kernel_reads_them() {
        assert_eq!(interface(7, true).0.len(), 16);
        let v4 = address_of(7, IpAddr::from([10, 99, 0, 2]), 24).0;
        assert_eq!(v4.len(), 8 + 2 * (4 + 4));
        assert_eq!(&v4[..4], &[libc::AF_INET as u8, 24, 2, 0]);
        let v6 = address_of(7, "fd00:99::2".parse().expect("an address"), 64).0;
        assert_eq!(v6.len(), 8 + 2 * (4 + 16));
    }

    #[test]
    fn the_kernel_answers_with_a_number() {
        let links = Links::open().expect("a socket");
        let none = interface(u32::MAX >> 1, false);
        // Whoever may do it: there is no such interface. Whoever may not, is told that.
        let error = links
            .ask(libc::RTM_SETLINK, ANSWERED, &none)
            .expect_err("no such interface");
        assert!(
            matches!(error.raw_os_error(), Some(libc::ENODEV | libc::EPERM)),
            "{error}"
        );
        let error = links.set_up("zt-is-not-there").expect_err("no such interface");
        assert_eq!(error.raw_os_error(), Some(libc::ENODEV));
    }
}
