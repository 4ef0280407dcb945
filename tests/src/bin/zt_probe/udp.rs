// SPDX-License-Identifier: Apache-2.0
//! UDP sockets and datagrams.

use std::io;
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::PollFlags;
use socket2::{Domain, Protocol, Socket, Type};
use zt_tests::probe::{ListenOptions, Reply};

use crate::held::described;
use crate::stream::ready;

const LARGEST: usize = 65_536;

/// A non-blocking socket for the family of an address.
pub(crate) fn socket(family_of: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(family_of), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A bound socket.
pub(crate) fn bind(at: SocketAddr, options: &ListenOptions) -> io::Result<Socket> {
    let socket = socket(at)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let Some(only) = options.v6_only {
        socket.set_only_v6(only)?;
    }
    socket.bind(&at.into())?;
    Ok(socket)
}

/// Joins a multicast group: IPv4 on the interface that routes to it, IPv6 on `eth0`.
pub(crate) fn join(socket: &Socket, group: IpAddr) -> io::Result<Reply> {
    match group {
        IpAddr::V4(group) => {
            let own = socket.local_addr()?.as_socket_ipv4();
            let own = own.map_or(Ipv4Addr::UNSPECIFIED, |address| *address.ip());
            socket.join_multicast_v4(&group, &own)?;
        }
        IpAddr::V6(group) => socket.join_multicast_v6(&group, nix::net::if_::if_nametoindex("eth0")?)?,
    }
    Ok(Reply::default())
}

/// Receives one datagram; `EAGAIN` if none comes in time.
pub(crate) fn receive_from(socket: &Socket, timeout: Duration) -> io::Result<Reply> {
    if !ready(socket, PollFlags::POLLIN, timeout)? {
        return Err(Errno::EAGAIN.into());
    }
    let mut buffer = vec![MaybeUninit::uninit(); LARGEST];
    let (bytes, sender) = socket.recv_from(&mut buffer)?;
    #[expect(unsafe_code, reason = "socket2 fills a buffer that is not initialized")]
    let data: Vec<u8> = buffer[..bytes]
        .iter()
        // SAFETY: `recv_from` has initialized that many bytes.
        .map(|byte| unsafe { byte.assume_init() })
        .collect();
    Ok(Reply {
        data: Some(String::from_utf8_lossy(&data).into_owned()),
        bytes: Some(bytes as u64),
        peer: sender.as_socket(),
        ..described(socket)
    })
}
