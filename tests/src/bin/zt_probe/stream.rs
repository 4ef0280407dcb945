// SPDX-License-Identifier: Apache-2.0
//! TCP: connections, listeners, sending and receiving, each with a deadline.

use std::io::{self, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::net::{Shutdown, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use zt_tests::probe::{ConnectOptions, How, ListenOptions, Reply};

use crate::held::{described, errno_name};

/// The peer will send no more. Errors and hang-ups are reported without being asked for.
pub(crate) const END: PollFlags = PollFlags::from_bits_retain(libc::POLLRDHUP);

/// An unconnected TCP (or MPTCP) socket with its options set and its source bound.
pub(crate) fn socket_for(to: SocketAddr, options: &ConnectOptions) -> io::Result<Socket> {
    let protocol = if options.mptcp {
        Protocol::MPTCP
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(protocol))?;
    if let Some(device) = &options.device {
        socket.bind_device(Some(device.as_bytes()))?;
    }
    if let Some(source) = options.bind {
        socket.set_reuse_address(true)?;
        socket.bind(&source.into())?;
    }
    Ok(socket)
}

/// Opens a connection, and leaves the socket non-blocking.
pub(crate) fn connect(to: SocketAddr, options: &ConnectOptions) -> io::Result<Socket> {
    let socket = socket_for(to, options)?;
    socket.set_nonblocking(true)?;
    if options.fast_open_connect {
        set_tcp(&socket, libc::TCP_FASTOPEN_CONNECT, 1)?;
    }
    if let Some(bytes) = options.segment {
        set_tcp(&socket, libc::TCP_MAXSEG, bytes.into())?;
    }
    connect_socket(&socket, to, options.fast_open.as_deref(), options.timeout)?;
    Ok(socket)
}

/// Connects a non-blocking socket, and waits until that is decided: `ETIMEDOUT` after `timeout`.
pub(crate) fn connect_socket(
    socket: &Socket,
    to: SocketAddr,
    fast_open: Option<&str>,
    timeout: Duration,
) -> io::Result<()> {
    let started = match fast_open {
        None => socket.connect(&to.into()),
        Some(data) => socket
            .send_to_with_flags(data.as_bytes(), &to.into(), libc::MSG_FASTOPEN)
            .map(|_sent| ()),
    };
    let under_way = match started {
        Ok(()) => false,
        Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => true,
        Err(error) => return Err(error),
    };
    if !ready(socket, PollFlags::POLLOUT, timeout)? {
        return Err(Errno::ETIMEDOUT.into());
    }
    match socket.take_error()? {
        Some(error) => return Err(error),
        // A socket that was destroyed without an error has no peer any more.
        None => socket.peer_addr().map(|_| ())?,
    }
    if let Some(data) = fast_open
        && under_way
    {
        // The SYN went without data, to ask for a cookie: the next connection may send early.
        socket.send(data.as_bytes())?;
    }
    Ok(())
}

/// Opens a listener.
pub(crate) fn listen(at: SocketAddr, options: &ListenOptions) -> io::Result<Socket> {
    let protocol = if options.mptcp {
        Protocol::MPTCP
    } else {
        Protocol::TCP
    };
    let socket = Socket::new(Domain::for_address(at), Type::STREAM, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if options.reuse_port {
        socket.set_reuse_port(true)?;
    }
    if let Some(only) = options.v6_only {
        socket.set_only_v6(only)?;
    }
    if let Some(queue) = options.fast_open {
        set_tcp(&socket, libc::TCP_FASTOPEN, queue)?;
    }
    if let Some(seconds) = options.defer_accept {
        set_tcp(&socket, libc::TCP_DEFER_ACCEPT, seconds)?;
    }
    socket.bind(&at.into())?;
    socket.listen(options.backlog)?;
    Ok(socket)
}

/// Sets an option of TCP: of a listener `TCP_FASTOPEN`, how many connections that carried data in their SYN may wait.
fn set_tcp(socket: &Socket, option: libc::c_int, value: i32) -> io::Result<()> {
    #[expect(unsafe_code, reason = "no safe wrapper knows this option")]
    // SAFETY: the kernel copies one integer, whose size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            option,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The next connection of a listener; `EAGAIN` if none comes in time.
pub(crate) fn accept(listener: &Socket, timeout: Duration) -> io::Result<Socket> {
    let deadline = Instant::now() + timeout;
    loop {
        match listener.accept() {
            Ok((socket, _peer)) => return Ok(socket),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let left = deadline.saturating_duration_since(Instant::now());
                if !ready(listener, PollFlags::POLLIN, left)? {
                    return Err(error);
                }
            }
            Err(error) => return Err(error),
        }
    }
}

/// Sends all of `data`, `repeat` times. An error after some bytes went through is reported with their number.
pub(crate) fn send(mut socket: &Socket, data: &[u8], repeat: u32, timeout: Duration) -> io::Result<Reply> {
    let deadline = Instant::now() + timeout;
    let mut bytes = 0;
    for _ in 0..repeat {
        let mut rest = data;
        while !rest.is_empty() {
            match socket.write(rest) {
                Ok(sent) => {
                    bytes += sent as u64;
                    rest = &rest[sent..];
                }
                Err(error) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    let full = error.kind() == io::ErrorKind::WouldBlock;
                    if !(full && ready(socket, PollFlags::POLLOUT, left)?) {
                        let errno = Some(errno_name(&error));
                        return Ok(Reply {
                            errno,
                            bytes: Some(bytes),
                            ..described(socket)
                        });
                    }
                }
            }
        }
    }
    Ok(Reply {
        bytes: Some(bytes),
        ..described(socket)
    })
}

/// Receives once; `EAGAIN` if nothing comes in time.
pub(crate) fn receive(mut socket: &Socket, max: usize, timeout: Duration) -> io::Result<Reply> {
    let mut buffer = vec![0; max];
    if !ready(socket, PollFlags::POLLIN, timeout)? {
        return Err(Errno::EAGAIN.into());
    }
    let bytes = socket.read(&mut buffer)?;
    buffer.truncate(bytes);
    Ok(Reply {
        data: Some(String::from_utf8_lossy(&buffer).into_owned()),
        bytes: Some(bytes as u64),
        ..described(socket)
    })
}

/// Sends bytes and waits for as many, over and over. One turn is to fit into the buffers of both ends.
pub(crate) fn round_trips(
    mut socket: &Socket,
    count: u64,
    size: usize,
    timeout: Duration,
) -> io::Result<Reply> {
    let deadline = Instant::now() + timeout;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut buffer = vec![b'w'; size];
    for _ in 0..count {
        let sent = send(socket, &buffer, 1, left())?;
        if sent.errno.is_some() {
            return Ok(sent);
        }
        let mut rest = &mut buffer[..];
        while !rest.is_empty() {
            match socket.read(rest) {
                Ok(0) => return Err(Errno::EPIPE.into()),
                Ok(came) => rest = &mut rest[came..],
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !ready(socket, PollFlags::POLLIN, left())? {
                        return Err(Errno::EAGAIN.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
    Ok(described(socket))
}

/// Looks at what is queued; `EAGAIN` if nothing comes in time.
pub(crate) fn peek(socket: &Socket, max: usize, timeout: Duration) -> io::Result<Reply> {
    if !ready(socket, PollFlags::POLLIN, timeout)? {
        return Err(Errno::EAGAIN.into());
    }
    let mut buffer = vec![MaybeUninit::uninit(); max];
    let bytes = socket.peek(&mut buffer)?;
    #[expect(unsafe_code, reason = "socket2 fills a buffer that is not initialized")]
    let data: Vec<u8> = buffer[..bytes]
        .iter()
        // SAFETY: `peek` has initialized that many bytes.
        .map(|byte| unsafe { byte.assume_init() })
        .collect();
    Ok(Reply {
        data: Some(String::from_utf8_lossy(&data).into_owned()),
        bytes: Some(bytes as u64),
        ..described(socket)
    })
}

/// Starts to connect, then blocks in `send()` until the handshake is over, or `timeout`.
pub(crate) fn send_while_connecting(to: SocketAddr, data: &[u8], timeout: Duration) -> io::Result<Reply> {
    let socket = socket_for(to, &ConnectOptions::default())?;
    socket.set_nonblocking(true)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        _ => {}
    }
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(timeout))?;
    let bytes = socket.send(data)? as u64;
    Ok(Reply {
        bytes: Some(bytes),
        ..described(&socket)
    })
}

/// Waits for the end of a connection; `EAGAIN` if it lives on.
pub(crate) fn wait_end(socket: &Socket, timeout: Duration) -> io::Result<Reply> {
    if !ready(socket, END, timeout)? {
        return Err(Errno::EAGAIN.into());
    }
    Ok(Reply {
        data: Some(end_of(socket)),
        ..Reply::default()
    })
}

/// How an ended connection ended: `eof`, or the name of its error.
pub(crate) fn end_of(socket: &Socket) -> String {
    match socket.take_error() {
        Ok(None) => "eof".into(),
        Ok(Some(error)) | Err(error) => errno_name(&error),
    }
}

pub(crate) fn shutdown(socket: &Socket, how: How) -> io::Result<Reply> {
    let how = match how {
        How::Read => Shutdown::Read,
        How::Write => Shutdown::Write,
        How::Both => Shutdown::Both,
    };
    socket.shutdown(how).map(|()| Reply::default())
}

/// Waits until one of `events`, an error or a hang-up; false if none comes in time.
pub(crate) fn ready(socket: &impl AsFd, events: PollFlags, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up: a wait of a few microseconds must not become a busy loop.
        let left = left.as_micros().div_ceil(1000);
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut polled = [PollFd::new(socket.as_fd(), events)];
        match poll(&mut polled, left) {
            Ok(count) => return Ok(count > 0),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
