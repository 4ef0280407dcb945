// SPDX-License-Identifier: Apache-2.0
//! Reads the ring buffer. Decisions come without a wake-up, so the reader looks by itself, often enough for people and
//! seldom enough for an idle node; what cannot wait wakes it.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use aya::maps::{Map, MapData, RingBuf};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zt_common::names;

use super::error::KernelError;
use super::host::Pins;
use super::load;

/// How long an event may wait on an idle node.
const IDLE: Duration = Duration::from_millis(20);
/// Pause between two rounds under load, in which a batch gathers.
const PAUSE: Duration = Duration::from_millis(1);
/// Events handed on at once.
const BATCH: usize = 4096;

/// The consuming end of `zt_events`. There is one a node.
pub struct Ring {
    ring: RingBuf<MapData>,
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").finish_non_exhaustive()
    }
}

impl Ring {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let map = Map::RingBuf(load::open(pins, names::EVENTS)?);
        let ring = RingBuf::try_from(map).map_err(KernelError::map(names::EVENTS))?;
        Ok(Self { ring })
    }

    /// Waits for events and hands them on, oldest first, at most a batch of them. Returns how many there were.
    ///
    /// What `each` does not take is lost: an event leaves the ring when it has been looked at.
    pub fn round(&mut self, mut each: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut count = 0;
        while count < BATCH {
            let Some(event) = self.ring.next() else { break };
            each(&event);
            count += 1;
        }
        if count == 0 {
            let timeout = PollTimeout::try_from(IDLE).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(self.ring.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        } else if count < BATCH {
            std::thread::sleep(PAUSE);
        }
        Ok(count)
    }
}
