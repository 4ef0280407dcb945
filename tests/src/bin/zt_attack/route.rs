// SPDX-License-Identifier: Apache-2.0
//! Calls somebody whom policy allows, with packets that go to somebody else first: a loose source route of IPv4, a routing
//! header of IPv6.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd as _;
use std::time::Duration;

use socket2::{Domain, Socket, Type};
use zt_tests::attack::Attempt;

use crate::system::set_option;
use crate::{At as _, told};

/// How long a connection that nobody answers is waited for.
const PATIENCE: Duration = Duration::from_millis(700);
const IPV6_RTHDR: i32 = 57;
const NO_OPERATION: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const SEGMENT_ROUTING: u8 = 4;

/// Connects, or says `ETIMEDOUT`.
pub(crate) fn connect_in_time(socket: &Socket, to: SocketAddr) -> io::Result<()> {
    socket.connect_timeout(&to.into(), PATIENCE).map_err(|error| {
        // The crate's own error of a time-out has no number.
        if error.kind() == io::ErrorKind::TimedOut {
            io::Error::from_raw_os_error(libc::ETIMEDOUT)
        } else {
            error
        }
    })
}

/// Says a word to who echoes, and what came back.
pub(crate) fn converse(mut socket: &Socket) -> io::Result<String> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"word")?;
    let mut answer = [0; 64];
    let came = socket.read(&mut answer)?;
    if came == 0 {
        return Err(io::Error::from_raw_os_error(libc::ECONNRESET));
    }
    Ok(String::from_utf8_lossy(&answer[..came]).into_owned())
}

/// Has what a socket sends go by way of an address.
fn lead(socket: &Socket, via: IpAddr) -> io::Result<()> {
    match via {
        IpAddr::V4(via) => {
            let [a, b, c, d] = via.octets();
            let route = [NO_OPERATION, LOOSE_ROUTE, 7, 4, a, b, c, d];
            set_option(socket.as_fd(), libc::SOL_IP, libc::IP_OPTIONS, &route)
        }
        IpAddr::V6(via) => {
            // One segment and none left: the packet is addressed to it, and says that this is the end of its way.
            let mut header = vec![0, 2, SEGMENT_ROUTING, 0, 0, 0, 0, 0];
            header.extend(via.octets());
            set_option(socket.as_fd(), libc::SOL_IPV6, IPV6_RTHDR, &header)
        }
    }
}

pub(crate) fn attempt(to: SocketAddr, via: IpAddr, datagram: bool) -> Attempt {
    told(call(to, via, datagram))
}

fn call(to: SocketAddr, via: IpAddr, datagram: bool) -> Result<String, (&'static str, io::Error)> {
    let kind = if datagram { Type::DGRAM } else { Type::STREAM };
    let socket = Socket::new(Domain::for_address(to), kind, None).at("socket")?;
    lead(&socket, via).at("option")?;
    if datagram {
        return socket
            .send_to(b"word", &to.into())
            .map(|_| String::new())
            .at("send");
    }
    connect_in_time(&socket, to).at("connect")?;
    converse(&socket).at("receive")
}
