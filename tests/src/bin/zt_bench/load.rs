// SPDX-License-Identifier: Apache-2.0
//! The loops that are measured: system calls and nothing else. Both ends of a connection are in one thread, so that
//! every packet is handled in the system call that sends it and no wake-up blurs the time.

use std::ffi::CString;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, accept, connect, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeValLike as _;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};

use crate::order::Done;

/// Size of one chunk of bulk traffic.
pub(crate) const CHUNK: usize = 64 * 1024;
/// A flip that does not come within this time never will.
const FLIP_LIMIT: u64 = 10_000_000_000;
/// How long a connection may take to arrive, in milliseconds.
const CAUGHT: u16 = 20;
/// A flip gives other processes of its core a chance this often.
const FLIP_YIELD: u32 = 64;

/// `CLOCK_MONOTONIC`, nanoseconds.
pub(crate) fn now() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| time.num_nanoseconds() as u64)
}

/// A TCP socket of the family of `to`.
pub(crate) fn tcp(to: &SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if to.is_ipv4() {
        AddressFamily::Inet
    } else {
        AddressFamily::Inet6
    };
    socket(family, SockType::Stream, SockFlag::empty(), SockProtocol::Tcp)
}

/// The next connection of a listener.
pub(crate) fn accepted(listener: &TcpListener) -> Result<OwnedFd, Errno> {
    let fd = accept(listener.as_raw_fd())?;
    Ok(owned(fd))
}

#[expect(unsafe_code, reason = "nix hands out a raw descriptor")]
fn owned(fd: i32) -> OwnedFd {
    // SAFETY: the descriptor was just made by the kernel and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A connection with both its ends.
fn pair(listener: &TcpListener, to: SocketAddr) -> Result<(OwnedFd, OwnedFd)> {
    let client = tcp(&to)?;
    connect(client.as_raw_fd(), &SockaddrStorage::from(to)).with_context(|| format!("connect to {to}"))?;
    let server = accepted(listener)?;
    for end in [&client, &server] {
        setsockopt(end, sockopt::TcpNoDelay, &true)?;
    }
    Ok((client, server))
}

/// Opens and closes connections.
pub(crate) fn connects(listener: &TcpListener, to: SocketAddr, count: u32) -> Result<Done> {
    let address = SockaddrStorage::from(to);
    let start = now();
    for _ in 0..count {
        let client = tcp(&to)?;
        connect(client.as_raw_fd(), &address).with_context(|| format!("connect to {to}"))?;
        let server = accepted(listener)?;
        drop(client);
        drop(server);
    }
    Ok(done(start, count.into()))
}

/// Connects that fail. All in the same way, or it is an error.
pub(crate) fn failures(to: SocketAddr, count: u32) -> Result<Done> {
    let address = SockaddrStorage::from(to);
    let mut errno = 0;
    let start = now();
    for _ in 0..count {
        let client = tcp(&to)?;
        let answer = connect(client.as_raw_fd(), &address)
            .err()
            .map_or(0, |error| error as i32);
        ensure!(answer != 0, "a connection to {to} that was to fail succeeded");
        ensure!(
            errno == 0 || errno == answer,
            "connections to {to} fail in different ways"
        );
        errno = answer;
    }
    Ok(Done {
        errno,
        ..done(start, count.into())
    })
}

/// One byte there and one back.
pub(crate) fn round_trips(listener: &TcpListener, to: SocketAddr, count: u32) -> Result<Done> {
    let (client, server) = pair(listener, to)?;
    let mut byte = [0_u8; 1];
    let start = now();
    for _ in 0..count {
        for (from, to) in [(&client, &server), (&server, &client)] {
            send(from.as_raw_fd(), &byte, MsgFlags::empty())?;
            ensure!(
                recv(to.as_raw_fd(), &mut byte, MsgFlags::empty())? == 1,
                "a byte did not arrive"
            );
        }
    }
    Ok(done(start, count.into()))
}

/// As many bytes as go through one connection.
pub(crate) fn bulk(listener: &TcpListener, to: SocketAddr, chunks: u32) -> Result<Done> {
    let (client, server) = pair(listener, to)?;
    // A chunk must fit whole into what the two ends buffer, or one thread could not serve both.
    setsockopt(&client, sockopt::SndBuf, &(4 * CHUNK))?;
    setsockopt(&server, sockopt::RcvBuf, &(4 * CHUNK))?;
    let mut buffer = vec![0_u8; CHUNK];
    let start = now();
    for _ in 0..chunks {
        let mut sent = 0;
        let mut received = 0;
        while received < CHUNK {
            if sent < CHUNK {
                sent += send(client.as_raw_fd(), &buffer[sent..], MsgFlags::MSG_DONTWAIT).or_else(again)?;
            }
            let flags = if sent < CHUNK {
                MsgFlags::MSG_DONTWAIT
            } else {
                MsgFlags::empty()
            };
            received += recv(server.as_raw_fd(), &mut buffer, flags).or_else(again)?;
        }
    }
    Ok(done(start, chunks.into()))
}

fn again(error: Errno) -> Result<usize, Errno> {
    if error == Errno::EAGAIN { Ok(0) } else { Err(error) }
}

/// How one `connect` to `to` ends.
fn outcome(listener: Option<&TcpListener>, to: SocketAddr) -> Result<i32> {
    let client = tcp(&to)?;
    let answer = connect(client.as_raw_fd(), &SockaddrStorage::from(to))
        .err()
        .map_or(0, |error| error as i32);
    if let Some(listener) = listener.filter(|_| answer == 0) {
        // One that a change of policy caught in its handshake never comes.
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, PollTimeout::from(CAUGHT))? > 0 {
            drop(accepted(listener)?);
        }
    }
    Ok(answer)
}

/// Connects until the answer is another one; `at` is when that answer came, `errno` what it was.
pub(crate) fn flip(listener: Option<&TcpListener>, to: SocketAddr) -> Result<Done> {
    let first = outcome(listener, to)?;
    let start = now();
    let mut count = 0_u32;
    loop {
        let answer = outcome(listener, to)?;
        let at = now();
        count += 1;
        if answer != first {
            return Ok(Done {
                errno: answer,
                at,
                ..done(start, count.into())
            });
        }
        ensure!(
            at - start < FLIP_LIMIT,
            "connections to {to} are answered as before"
        );
        if count.is_multiple_of(FLIP_YIELD) {
            std::thread::yield_now();
        }
    }
}

/// So few denials alike in a row that the agent joins none of them.
const ALIKE: u64 = 8;

/// Connects that fail, at a pace. Their records are to be as many: what is the same again and again would be one.
pub(crate) fn storm(to: SocketAddr, per_millisecond: u32, milliseconds: u32) -> Result<Done> {
    const MILLISECOND: u64 = 1_000_000;
    let address = SockaddrStorage::from(to);
    let (start, mut count) = (now(), 0);
    let end = start + u64::from(milliseconds) * MILLISECOND;
    let mut tick = start;
    let mut errno = 0;
    while now() < end {
        // What a late wake-up missed is made up for, a little at a time: the pace is an average.
        let burst = if per_millisecond == 0 {
            256
        } else {
            per_millisecond
        };
        for number in count..count + u64::from(burst) {
            if number.is_multiple_of(ALIKE) {
                rename(number / ALIKE)?;
            }
            let client = tcp(&to)?;
            errno = connect(client.as_raw_fd(), &address)
                .err()
                .map_or(0, |error| error as i32);
            ensure!(errno != 0, "a connection to {to} that was to fail succeeded");
        }
        count += u64::from(burst);
        if per_millisecond != 0 {
            tick += MILLISECOND;
            let wake = nix::sys::time::TimeSpec::nanoseconds(tick as i64);
            // Interrupted or late: the loop's own clock decides.
            let _ = clock_nanosleep(
                ClockId::CLOCK_MONOTONIC,
                ClockNanosleepFlags::TIMER_ABSTIME,
                &wake,
            );
        }
    }
    Ok(Done {
        errno,
        ..done(start, count)
    })
}

/// Gives this thread, whose name is in its records, another one.
#[expect(unsafe_code, reason = "nix has this behind a feature that nothing else needs")]
fn rename(number: u64) -> Result<()> {
    let name = CString::new(format!("{number:x}"))?;
    // SAFETY: a text that ends, of which the kernel copies 16 bytes at most.
    let answer = unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
    Errno::result(answer).context("prctl(PR_SET_NAME)")?;
    Ok(())
}

/// Opens connections that are kept.
pub(crate) fn dial(to: SocketAddr, count: u32) -> Result<Vec<OwnedFd>> {
    let address = SockaddrStorage::from(to);
    let open = |_| {
        let client = tcp(&to)?;
        connect(client.as_raw_fd(), &address).with_context(|| format!("connect to {to}"))?;
        Ok(client)
    };
    (0..count).map(open).collect()
}

/// Accepts connections that are kept.
pub(crate) fn accept_all(listener: &TcpListener, count: u32) -> Result<Vec<OwnedFd>> {
    (0..count).map(|_| Ok(accepted(listener)?)).collect()
}

/// Waits until all of these connections are dead, and says when the last was seen to be.
pub(crate) fn deaths(connections: &[OwnedFd]) -> Result<Done> {
    use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
    const PATIENCE: u16 = 10_000;
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    for (index, connection) in connections.iter().enumerate() {
        let fd: BorrowedFd<'_> = connection.as_fd();
        // Errors and hang-ups are always told.
        epoll.add(
            fd,
            EpollEvent::new(EpollFlags::EPOLLONESHOT | EpollFlags::EPOLLRDHUP, index as u64),
        )?;
    }
    let start = now();
    let mut dead = 0;
    let mut events = vec![EpollEvent::empty(); 256];
    while dead < connections.len() {
        let found = epoll.wait(&mut events, EpollTimeout::from(PATIENCE))?;
        ensure!(
            found > 0,
            "{} of {} connections live on",
            connections.len() - dead,
            connections.len()
        );
        dead += found;
    }
    Ok(done(start, dead as u64))
}

/// So many of something, since `start`.
pub(crate) fn done(start: u64, count: u64) -> Done {
    let at = now();
    Done {
        nanoseconds: at - start,
        count,
        at,
        ..Done::default()
    }
}
