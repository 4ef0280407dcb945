// SPDX-License-Identifier: Apache-2.0
//! A server that accepts and echoes on a thread of its own, for any number of connections.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::Socket;
use zt_tests::probe::{ListenOptions, Reply};

use crate::stream;

/// How often it looks whether it was told to stop, in milliseconds.
const STOP_INTERVAL: u16 = 20;

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    accepted: AtomicU64,
    open: AtomicU64,
    received: AtomicU64,
}

/// Stops, and closes every connection, when dropped.
pub(crate) struct Server {
    local: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Server {
    pub(crate) fn start(at: SocketAddr, options: &ListenOptions) -> io::Result<Self> {
        let listener = stream::listen(at, options)?;
        listener.set_nonblocking(true)?;
        let local = listener
            .local_addr()?
            .as_socket()
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(
            &listener,
            EpollEvent::new(EpollFlags::EPOLLIN, listener.as_raw_fd() as u64),
        )?;
        let shared = Arc::new(Shared::default());
        let seen = Arc::clone(&shared);
        let thread = Some(thread::spawn(move || run(&epoll, &listener, &seen)));
        Ok(Self {
            local,
            shared,
            thread,
        })
    }

    pub(crate) fn local(&self) -> SocketAddr {
        self.local
    }

    pub(crate) fn state(&self) -> Reply {
        Reply {
            count: Some(self.shared.accepted.load(Ordering::Relaxed)),
            open: Some(self.shared.open.load(Ordering::Relaxed)),
            bytes: Some(self.shared.received.load(Ordering::Relaxed)),
            local: Some(self.local),
            ..Reply::default()
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(epoll: &Epoll, listener: &Socket, shared: &Shared) -> io::Result<()> {
    let mut connections: HashMap<u64, Socket> = HashMap::new();
    let mut events = [EpollEvent::empty(); 256];
    while !shared.stop.load(Ordering::Relaxed) {
        let count = match epoll.wait(&mut events, EpollTimeout::from(STOP_INTERVAL)) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            if event.data() == listener.as_raw_fd() as u64 {
                // An error here is one connection's, aborted before it was accepted, or no connection left.
                while let Ok((socket, _)) = listener.accept() {
                    shared.accepted.fetch_add(1, Ordering::Relaxed);
                    socket.set_nonblocking(true)?;
                    let key = socket.as_raw_fd() as u64;
                    epoll.add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, key))?;
                    connections.insert(key, socket);
                }
            } else if let Some(socket) = connections.get(&event.data())
                && !echo(socket, &shared.received)
            {
                // Closing it takes it out of the epoll set.
                connections.remove(&event.data());
            }
        }
        shared.open.store(connections.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

/// Sends back what has come; false at the connection's end.
fn echo(mut socket: &Socket, received: &AtomicU64) -> bool {
    let mut buffer = [0; 16_384];
    match socket.read(&mut buffer) {
        Ok(0) => false,
        // What a slow client does not take is dropped: no test of ours sends so much without reading.
        Ok(count) => {
            received.fetch_add(count as u64, Ordering::Relaxed);
            socket.write(&buffer[..count]).is_ok()
        }
        Err(error) => error.kind() == io::ErrorKind::WouldBlock,
    }
}
