// SPDX-License-Identifier: Apache-2.0
//! What the probe keeps between operations, by handle.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::errno::Errno;
use socket2::Socket;
use zt_tests::probe::{Handle, Reply};

use crate::child::Child;
use crate::group::Group;
use crate::server::Server;
use crate::udp;

enum Held {
    Socket(Socket),
    Server(Server),
    Group(Group),
    Child(Child),
}

/// Everything that has a handle. Handles are never used again.
#[derive(Default)]
pub(crate) struct Table {
    held: BTreeMap<Handle, Held>,
    last: Handle,
}

impl Table {
    fn keep(&mut self, held: Held) -> Handle {
        self.last += 1;
        self.held.insert(self.last, held);
        self.last
    }

    pub(crate) fn keep_socket(&mut self, socket: Socket) -> io::Result<Reply> {
        // Every wait of the probe has a deadline of its own.
        socket.set_nonblocking(true)?;
        let reply = described(&socket);
        Ok(Reply {
            socket: Some(self.keep(Held::Socket(socket))),
            ..reply
        })
    }

    pub(crate) fn keep_server(&mut self, server: Server) -> Reply {
        let local = Some(server.local());
        Reply {
            socket: Some(self.keep(Held::Server(server))),
            local,
            ..Reply::default()
        }
    }

    pub(crate) fn keep_group(&mut self, group: Group, reply: Reply) -> Reply {
        Reply {
            socket: Some(self.keep(Held::Group(group))),
            ..reply
        }
    }

    pub(crate) fn keep_child(&mut self, child: Child) -> Reply {
        Reply {
            socket: Some(self.keep(Held::Child(child))),
            ..Reply::default()
        }
    }

    pub(crate) fn socket(&self, handle: Handle) -> io::Result<&Socket> {
        match self.held.get(&handle) {
            Some(Held::Socket(socket)) => Ok(socket),
            _ => Err(Errno::EBADF.into()),
        }
    }

    /// The UDP socket of a handle, or a new unbound one for the family of `to`.
    pub(crate) fn udp_socket(&mut self, handle: Option<Handle>, to: SocketAddr) -> io::Result<Handle> {
        match handle {
            Some(handle) => Ok(handle),
            None => Ok(self.keep(Held::Socket(udp::socket(to)?))),
        }
    }

    pub(crate) fn server(&self, handle: Handle) -> io::Result<&Server> {
        match self.held.get(&handle) {
            Some(Held::Server(server)) => Ok(server),
            _ => Err(Errno::EBADF.into()),
        }
    }

    pub(crate) fn group(&mut self, handle: Handle) -> io::Result<&mut Group> {
        match self.held.get_mut(&handle) {
            Some(Held::Group(group)) => Ok(group),
            _ => Err(Errno::EBADF.into()),
        }
    }

    pub(crate) fn child(&mut self, handle: Handle) -> io::Result<&mut Child> {
        match self.held.get_mut(&handle) {
            Some(Held::Child(child)) => Ok(child),
            _ => Err(Errno::EBADF.into()),
        }
    }

    /// Closes a connection with a reset.
    pub(crate) fn reset(&mut self, handle: Handle) -> io::Result<Reply> {
        self.socket(handle)?.set_linger(Some(Duration::ZERO))?;
        self.close(handle)
    }

    pub(crate) fn close(&mut self, handle: Handle) -> io::Result<Reply> {
        self.held
            .remove(&handle)
            .map(|_| Reply::default())
            .ok_or_else(|| Errno::EBADF.into())
    }
}

/// A reply with a socket's two addresses, where it has them.
pub(crate) fn described(socket: &Socket) -> Reply {
    Reply {
        local: socket.local_addr().ok().and_then(|address| address.as_socket()),
        peer: socket.peer_addr().ok().and_then(|address| address.as_socket()),
        ..Reply::default()
    }
}

/// The name of an error of the system, such as `EPERM`.
pub(crate) fn errno_name(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => format!("{:?}", Errno::from_raw(number)),
        None => format!("{:?}", error.kind()),
    }
}
