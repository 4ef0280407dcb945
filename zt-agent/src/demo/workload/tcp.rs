// SPDX-License-Identifier: Apache-2.0
//! One TCP connection, with the time that `connect()` took and nothing else.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike as _};

/// How long `connect()` may take.
const PATIENCE: Duration = Duration::from_secs(3);
/// `TCP_ESTABLISHED` in the kernel's list.
const ESTABLISHED: &str = "01";

/// Connects, from an address if there is one; the nanoseconds that the system call took come along, whatever it said.
pub(super) fn timed_connect(from: Option<IpAddr>, to: SocketAddr) -> (u64, io::Result<TcpStream>) {
    let prepared = prepare(from, to);
    let (descriptor, address) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => return (0, Err(error)),
    };
    let begin = Instant::now();
    let connected = connect(descriptor.as_raw_fd(), &address);
    let took = begin.elapsed().as_nanos() as u64;
    (
        took,
        connected
            .map(|()| TcpStream::from(descriptor))
            .map_err(Into::into),
    )
}

fn prepare(from: Option<IpAddr>, to: SocketAddr) -> io::Result<(std::os::fd::OwnedFd, SockaddrStorage)> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    let descriptor = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // For Linux, the time that sending may take is the time that connecting may take.
    setsockopt(
        &descriptor,
        sockopt::SendTimeout,
        &TimeVal::milliseconds(PATIENCE.as_millis() as i64),
    )?;
    if let Some(from) = from {
        bind(
            descriptor.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(from, 0)),
        )?;
    }
    Ok((descriptor, SockaddrStorage::from(to)))
}

/// Whether the kernel lists an established connection with these ends in this network namespace.
pub(super) fn established(local: SocketAddr, peer: SocketAddr) -> io::Result<bool> {
    let listed = |path: &str| -> io::Result<bool> {
        let text = fs::read_to_string(path)?;
        Ok(text
            .lines()
            .skip(1)
            .any(|line| line_ends(line) == Some((local, peer))))
    };
    // An IPv6 socket may carry an IPv4 connection.
    Ok(listed("/proc/self/net/tcp")? || listed("/proc/self/net/tcp6")?)
}

/// The ends of a line's connection, if it is established.
fn line_ends(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    let (local, peer, state) = (fields.next()?, fields.next()?, fields.next()?);
    (state == ESTABLISHED).then_some((address(local)?, address(peer)?))
}

/// `0500630A:1538`: the address as 32-bit words of the machine's byte order, the port as a number.
fn address(text: &str) -> Option<SocketAddr> {
    let (address, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |index: usize| {
        let digits = address.get(index * 8..index * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let address: IpAddr = if address.len() == 8 {
        Ipv4Addr::from(word(0)?).into()
    } else {
        let words = [word(0)?, word(1)?, word(2)?, word(3)?];
        let bytes: [u8; 16] = words.concat().try_into().ok()?;
        Ipv6Addr::from(bytes).to_canonical()
    };
    Some(SocketAddr::new(address, port))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn connections_come_with_their_time_and_are_found_in_the_list() {
        for place in ["127.0.0.1:0", "[::1]:0"] {
            let Ok(listener) = TcpListener::bind(place) else {
                continue;
            };
            let address = listener.local_addr().expect("address");
            let (took, stream) = timed_connect(None, address);
            let stream = stream.expect("connected");
            assert!(took > 0);
            let local = stream.local_addr().expect("local");
            assert!(established(local, address).expect("list"), "{place}");
            assert!(!established(address, SocketAddr::new(local.ip(), 1)).expect("list"));
        }
    }

    #[test]
    fn a_refusal_has_its_number() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let error = timed_connect(None, address).1.expect_err("nobody listens");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
