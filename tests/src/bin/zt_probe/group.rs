// SPDX-License-Identifier: Apache-2.0
//! Many connections under one handle.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollTimeout, poll};
use socket2::Socket;
use zt_tests::probe::{ConnectOptions, Reply};

use crate::held::errno_name;
use crate::stream;

pub(crate) struct Group {
    open: Vec<Socket>,
    ends: BTreeMap<String, u64>,
}

/// Opens `count` connections one after the other; goes on after one that failed.
pub(crate) fn open(to: SocketAddr, count: u32, options: &ConnectOptions) -> (Group, Reply) {
    let mut open = Vec::new();
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for _ in 0..count {
        let outcome = match stream::connect(to, options) {
            Ok(socket) => {
                open.push(socket);
                "ok".into()
            }
            Err(error) => errno_name(&error),
        };
        *counts.entry(outcome).or_default() += 1;
    }
    let reply = Reply {
        count: Some(count.into()),
        open: Some(open.len() as u64),
        counts,
        ..Reply::default()
    };
    (
        Group {
            open,
            ends: BTreeMap::new(),
        },
        reply,
    )
}

impl Group {
    /// Waits until `count` connections have ended since they were opened, or the time is over.
    pub(crate) fn wait_end(&mut self, count: u32, timeout: Duration) -> io::Result<Reply> {
        let start = Instant::now();
        loop {
            self.collect(timeout.saturating_sub(start.elapsed()))?;
            let ended: u64 = self.ends.values().sum();
            if ended >= count.into() || start.elapsed() >= timeout {
                return Ok(Reply {
                    elapsed_ns: start.elapsed().as_nanos() as u64,
                    count: Some(ended),
                    open: Some(self.open.len() as u64),
                    counts: self.ends.clone(),
                    ..Reply::default()
                });
            }
        }
    }

    /// Closes the connections that have ended, and notes how.
    fn collect(&mut self, patience: Duration) -> io::Result<()> {
        let mut polled: Vec<PollFd<'_>> = self
            .open
            .iter()
            .map(|socket| PollFd::new(socket.as_fd(), stream::END))
            .collect();
        let patience = PollTimeout::try_from(patience.as_millis()).unwrap_or(PollTimeout::MAX);
        match poll(&mut polled, patience) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        // `nix` does not know the bit of POLLRDHUP, and answers `None` about a socket that has it.
        let ended: Vec<bool> = polled.iter().map(|socket| socket.any().unwrap_or(true)).collect();
        let mut ended = ended.into_iter();
        for socket in self.open.extract_if(.., |_| ended.next().unwrap_or(false)) {
            *self.ends.entry(stream::end_of(&socket)).or_default() += 1;
        }
        Ok(())
    }
}
