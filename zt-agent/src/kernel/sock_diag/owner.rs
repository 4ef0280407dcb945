// SPDX-License-Identifier: Apache-2.0
//! Whose a connected socket is.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;

use nix::sys::socket::{MsgFlags, recv};

use super::super::netlink::{Messages, NLMSG_ERROR, REQUEST};
use super::{LISTEN, SockDiag, TCP, Target};

/// The user whose TCP socket is connected from `local` to `remote`, in the network namespace of the calling thread. `None`
/// where there is none, or none any more that somebody has open: the kernel would call it root's.
pub fn owner_of(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<u32>> {
    let diag = SockDiag::open()?;
    let ipv6 = local.ip().to_canonical().is_ipv6();
    let target = Target {
        cookie: u64::MAX,
        local: local.ip().into(),
        remote: remote.ip().into(),
        local_port: local.port(),
        remote_port: remote.port(),
        protocol: TCP,
        ipv6,
        interface: 0,
    };
    diag.ask(REQUEST, &target, u32::MAX)?;
    let mut buffer = [0; 1024];
    // The kernel has answered when `send` returns.
    let length = recv(diag.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT)?;
    let message = Messages(buffer.get(..length).unwrap_or_default()).next();
    let message = message.ok_or(ErrorKind::InvalidData)?;
    if message.kind != NLMSG_ERROR {
        let word = |at: usize| Some(u32::from_ne_bytes(message.body.get(at..at + 4)?.try_into().ok()?));
        let (uid, inode) = word(64).zip(word(68)).ok_or(ErrorKind::InvalidData)?;
        return Ok((inode != 0).then_some(uid));
    }
    match message.error() {
        // The same answer comes from a kernel that tells of no sockets at all.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
            diag.list(ipv6, TCP, 1 << LISTEN).map(|_| None)
        }
        Err(error) => Err(error),
        Ok(()) => Err(ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_has_an_owner_as_long_as_somebody_has_it_open() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = std::net::TcpListener::bind(address).expect("binds");
            let server = listener.local_addr().expect("address");
            let client = std::net::TcpStream::connect(server).expect("connects");
            let local = client.local_addr().expect("address");
            let (accepted, _) = listener.accept().expect("accepts");
            let us = nix::unistd::geteuid().as_raw();
            assert_eq!(owner_of(local, server).expect("told"), Some(us), "{address}");
            client.shutdown(std::net::Shutdown::Write).expect("half of it");
            assert_eq!(owner_of(local, server).expect("told"), Some(us), "{address}");
            // What is left of it in the kernel is nobody's.
            drop(client);
            assert_eq!(owner_of(local, server).expect("told"), None, "{address}");
            drop(accepted);
            let nobody = (local, SocketAddr::new(server.ip(), 1));
            assert_eq!(owner_of(nobody.0, nobody.1).expect("told"), None, "{address}");
        }
    }
}
