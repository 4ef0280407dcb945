// SPDX-License-Identifier: Apache-2.0
//! Connections through which a byte goes. That is what a client has of one: a proxy accepts before it decides, so that being
//! connected says nothing.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockaddrStorage, bind, connect, recv, send};

use crate::load::{accepted, done, now, tcp};
use crate::order::Done;

/// Within so many milliseconds a connection is through or refused.
const ANSWERED: u16 = 5000;
/// Nanoseconds after which a change that has not come never will.
const TURNED: u64 = 40_000_000_000;
/// Attempts after which other processes of this core have a chance.
const YIELD: u32 = 64;

/// Opens connections, has a byte arrive through each, and closes them.
pub(crate) fn calls(listener: &TcpListener, to: SocketAddr, count: u32) -> Result<Done> {
    let address = SockaddrStorage::from(to);
    let mut byte = [0_u8; 1];
    let start = now();
    for _ in 0..count {
        let client = tcp(&to)?;
        connect(client.as_raw_fd(), &address).with_context(|| format!("connect to {to}"))?;
        send(client.as_raw_fd(), &byte, MsgFlags::MSG_NOSIGNAL)?;
        let server = accepted(listener)?;
        ensure!(
            recv(server.as_raw_fd(), &mut byte, MsgFlags::empty())? == 1,
            "a byte did not arrive"
        );
        drop(client);
        drop(server);
    }
    Ok(done(start, count.into()))
}

/// One attempt, from an address of the client's own where one is given. `errno` is 0 if a byte got through, and how it
/// failed if not.
pub(crate) fn reach(listener: &TcpListener, to: SocketAddr, from: Option<IpAddr>) -> Result<Done> {
    let start = now();
    let errno = attempt(listener, to, from)?;
    Ok(Done {
        errno,
        ..done(start, 1)
    })
}

/// Attempts until one ends otherwise than the first; `at` is when it had ended, `errno` how.
pub(crate) fn turn(listener: &TcpListener, to: SocketAddr) -> Result<Done> {
    let first = attempt(listener, to, None)?;
    let start = now();
    let mut count = 0_u32;
    loop {
        let answer = attempt(listener, to, None)?;
        let at = now();
        count += 1;
        if (answer == 0) != (first == 0) {
            return Ok(Done {
                errno: answer,
                at,
                ..done(start, count.into())
            });
        }
        ensure!(at - start < TURNED, "connections to {to} end as before");
        if count.is_multiple_of(YIELD) {
            std::thread::yield_now();
        }
    }
}

fn attempt(listener: &TcpListener, to: SocketAddr, from: Option<IpAddr>) -> Result<i32> {
    let client = tcp(&to)?;
    if let Some(from) = from {
        bind(
            client.as_raw_fd(),
            &SockaddrStorage::from(SocketAddr::new(from, 0)),
        )?;
    }
    let mut byte = [0_u8; 1];
    let sent = connect(client.as_raw_fd(), &SockaddrStorage::from(to))
        .and_then(|()| send(client.as_raw_fd(), &byte, MsgFlags::MSG_NOSIGNAL));
    if let Err(error) = sent {
        return Ok(error as i32);
    }
    let mut server: Option<OwnedFd> = None;
    loop {
        let theirs = server
            .as_ref()
            .map_or_else(|| listener.as_fd(), |server| server.as_fd());
        let mut ends = [theirs, client.as_fd()].map(|end| PollFd::new(end, PollFlags::POLLIN));
        ensure!(
            poll(&mut ends, PollTimeout::from(ANSWERED))? > 0,
            "a connection to {to} is neither through nor refused"
        );
        let [theirs, ours] = ends.map(|end| end.any().unwrap_or(true));
        if theirs {
            server = match server {
                None => accepted(listener).ok(),
                Some(server) => match recv(server.as_raw_fd(), &mut byte, MsgFlags::empty()) {
                    Ok(1) => return Ok(0),
                    // A proxy's end of an earlier attempt, which it then refused.
                    _ => None,
                },
            };
        } else if ours {
            let ended = recv(client.as_raw_fd(), &mut byte, MsgFlags::empty());
            return Ok(ended.map_or_else(|error| error as i32, |_| libc::ECONNRESET));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_byte_gets_through_or_the_attempt_says_how_it_failed() -> Result<()> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let open = listener.local_addr()?;
        assert_eq!(reach(&listener, open, None)?.errno, 0);
        assert_eq!(calls(&listener, open, 3)?.count, 3);
        // Nobody listens there any more.
        let shut = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?;
        assert_eq!(reach(&listener, shut, None)?.errno, libc::ECONNREFUSED);
        Ok(())
    }

    #[test]
    fn who_is_connected_and_then_refused_has_not_got_through() -> Result<()> {
        // As a proxy does it: accepts, connects on, and closes both at the first byte.
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let (front, behind) = (proxy.local_addr()?, listener.local_addr()?);
        let refusing = std::thread::spawn(move || -> Result<()> {
            let (mut client, _) = proxy.accept()?;
            let server = std::net::TcpStream::connect(behind)?;
            std::io::Read::read_exact(&mut client, &mut [0])?;
            drop((client, server));
            Ok(())
        });
        assert_ne!(reach(&listener, front, None)?.errno, 0);
        refusing
            .join()
            .map_err(|_| anyhow::anyhow!("the proxy has died"))??;
        Ok(())
    }
}
