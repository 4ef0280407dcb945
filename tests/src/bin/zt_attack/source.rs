// SPDX-License-Identifier: Apache-2.0
//! Calls from an address that belongs to somebody else.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd as _};

use clap::ValueEnum;
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrStorage, sendmsg};
use socket2::{Domain, Socket, Type};
use zt_tests::attack::Attempt;

use crate::route::{connect_in_time, converse};
use crate::system::set_option;
use crate::{At as _, told};

/// How the kernel is talked into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum How {
    /// `IP_FREEBIND`: binds an address that is not there
    Freebind,
    /// `IP_TRANSPARENT`: binds an address of somebody else, and sends from it
    Transparent,
    /// `IP_PKTINFO`: names the source in each datagram
    PacketInfo,
}

const IPV6_FREEBIND: i32 = 78;
const ON: [u8; 4] = 1_i32.to_ne_bytes();

/// Lets a socket have an address that is not its namespace's.
fn loosen(socket: &Socket, how: How, is_v4: bool) -> io::Result<()> {
    let (level, name) = match (how, is_v4) {
        (How::Freebind, true) => (libc::SOL_IP, libc::IP_FREEBIND),
        (How::Freebind, false) => (libc::SOL_IPV6, IPV6_FREEBIND),
        (_, true) => (libc::SOL_IP, libc::IP_TRANSPARENT),
        (_, false) => (libc::SOL_IPV6, libc::IPV6_TRANSPARENT),
    };
    set_option(socket.as_fd(), level, name, &ON)
}

pub(crate) fn attempt(how: How, from: IpAddr, to: SocketAddr) -> Attempt {
    told(match how {
        How::PacketInfo => datagram(from, to),
        _ => stream(how, from, to),
    })
}

fn stream(how: How, from: IpAddr, to: SocketAddr) -> Result<String, (&'static str, io::Error)> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None).at("socket")?;
    loosen(&socket, how, to.is_ipv4()).at("option")?;
    socket.bind(&SocketAddr::new(from, 0).into()).at("bind")?;
    connect_in_time(&socket, to).at("connect")?;
    converse(&socket).at("receive")
}

fn datagram(from: IpAddr, to: SocketAddr) -> Result<String, (&'static str, io::Error)> {
    let socket = Socket::new(Domain::for_address(to), Type::DGRAM, None).at("socket")?;
    loosen(&socket, How::PacketInfo, to.is_ipv4()).at("option")?;
    let v4;
    let v6;
    let control = match from {
        IpAddr::V4(from) => {
            let address = u32::from_ne_bytes(from.octets());
            v4 = libc::in_pktinfo {
                ipi_ifindex: 0,
                ipi_spec_dst: libc::in_addr { s_addr: address },
                ipi_addr: libc::in_addr { s_addr: 0 },
            };
            ControlMessage::Ipv4PacketInfo(&v4)
        }
        IpAddr::V6(from) => {
            v6 = libc::in6_pktinfo {
                ipi6_addr: libc::in6_addr {
                    s6_addr: from.octets(),
                },
                ipi6_ifindex: 0,
            };
            ControlMessage::Ipv6PacketInfo(&v6)
        }
    };
    let to = SockaddrStorage::from(to);
    let data = [IoSlice::new(b"word")];
    let sent = sendmsg(
        socket.as_raw_fd(),
        &data,
        &[control],
        MsgFlags::empty(),
        Some(&to),
    );
    sent.map(|_| String::new()).at("send")
}
