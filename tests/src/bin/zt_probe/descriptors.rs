// SPDX-License-Identifier: Apache-2.0
//! Sockets by number, file descriptors passed between processes, and `splice()`.

use std::io::{self, IoSlice, IoSliceMut, Read as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{OFlag, SpliceFFlags, splice};
use nix::poll::PollFlags;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use nix::unistd::pipe2;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use zt_tests::probe::Reply;

use crate::held::described;
use crate::stream::ready;

/// `socket(family, kind, protocol)`.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<Socket> {
    Socket::new(
        Domain::from(family),
        Type::from(kind),
        Some(Protocol::from(protocol)),
    )
}

/// `connect()` to `AF_UNSPEC`.
pub(crate) fn disconnect(socket: &Socket) -> io::Result<Reply> {
    #[expect(unsafe_code, reason = "no safe wrapper has an address without a family")]
    // SAFETY: all zeros is an address of this type, whose length is given; the kernel copies it.
    let result = unsafe {
        let nowhere: libc::sockaddr = std::mem::zeroed();
        libc::connect(
            socket.as_raw_fd(),
            &raw const nowhere,
            size_of_val(&nowhere) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(described(socket))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// A Unix datagram socket bound at a path.
pub(crate) fn mailbox(path: &Path) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    Ok(socket)
}

/// Passes a copy of a socket's descriptor to the mailbox at a path.
pub(crate) fn send_fd(path: &Path, socket: &Socket) -> io::Result<Reply> {
    let sender = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let descriptors = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let to = UnixAddr::new(path)?;
    sendmsg(
        sender.as_raw_fd(),
        &[IoSlice::new(b"fd")],
        &rights,
        MsgFlags::empty(),
        Some(&to),
    )?;
    Ok(Reply::default())
}

/// Takes a socket from a mailbox; `EAGAIN` if none comes in time.
pub(crate) fn receive_fd(mailbox: &Socket, timeout: Duration) -> io::Result<Socket> {
    if !ready(mailbox, PollFlags::POLLIN, timeout)? {
        return Err(Errno::EAGAIN.into());
    }
    let mut text = [0; 16];
    let mut text = [IoSliceMut::new(&mut text)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = recvmsg::<()>(
        mailbox.as_raw_fd(),
        &mut text,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let Some(descriptor) = descriptors.first()
        {
            #[expect(unsafe_code, reason = "nix hands out a raw descriptor")]
            // SAFETY: the kernel has just made this descriptor for this process alone.
            let owned = unsafe { OwnedFd::from_raw_fd(*descriptor) };
            return Ok(Socket::from(owned));
        }
    }
    Err(Errno::ENOMSG.into())
}

/// Moves what a socket holds through a pipe; `EAGAIN` if nothing comes in time.
pub(crate) fn splice_read(socket: &Socket, max: usize, timeout: Duration) -> io::Result<Reply> {
    if !ready(socket, PollFlags::POLLIN, timeout)? {
        return Err(Errno::EAGAIN.into());
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    let bytes = splice(socket, None, &writer, None, max, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    drop(writer);
    let mut data = Vec::new();
    std::fs::File::from(reader).read_to_end(&mut data)?;
    Ok(Reply {
        data: Some(String::from_utf8_lossy(&data).into_owned()),
        bytes: Some(bytes as u64),
        ..described(socket)
    })
}
