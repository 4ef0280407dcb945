// SPDX-License-Identifier: Apache-2.0
//! Reads the ring buffer. Decisions come without a wake-up, so the reader looks by itself, often enough for people and
//! seldom enough for an idle node; what cannot wait wakes it.
//!
//! The reading end is our own and not aya's, because looking at an event and giving its room back are two things here:
//! an event stays in the ring until what it says is on disk, and an agent that was killed meanwhile leaves it to the
//! next. The layout is that of `linux/bpf.h` and `kernel/bpf/ringbuf.c`: a page with the position up to which room
//! was given back (ours to write), a page with the position up to which room was taken (the kernel's), and the data,
//! mapped twice in a row so that no event is ever cut. Positions are bytes since the map was made.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::MapData;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use sha2::{Digest as _, Sha256};
use zt_common::names;

use super::error::KernelError;
use super::host::Pins;
use super::load;

/// Set in a header while the event is being written.
const BUSY: u32 = 1 << 31;
/// Set in a header when the event was given up.
const DISCARDED: u32 = 1 << 30;
const HEADER: u64 = 8;

/// The consuming end of `zt_events`. There is one a node.
#[derive(Debug)]
pub struct Ring {
    memory: Arc<Memory>,
    id: [u8; 16],
}

/// Tells how far the ring buffer was written. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Produced(Arc<Memory>);

impl Produced {
    /// The position behind the last event that has its room.
    pub fn position(&self) -> u64 {
        self.0.produced()
    }
}

impl Ring {
    pub(super) fn open(pins: &Pins) -> Result<Self, KernelError> {
        let map = load::open(pins, names::EVENTS)?;
        let info = map.info().map_err(KernelError::map(names::EVENTS))?;
        let failed = |source| KernelError::Io {
            what: "map the ring buffer",
            path: pins.maps().join(names::EVENTS),
            source,
        };
        let boot = std::fs::read("/proc/sys/kernel/random/boot_id").map_err(failed)?;
        let hash = Sha256::new()
            .chain_update(&boot)
            .chain_update(info.id().to_be_bytes())
            .finalize();
        let mut id = [0; 16];
        id.iter_mut().zip(hash).for_each(|(byte, of)| *byte = of);
        let memory = Memory::map(map, u64::from(info.max_entries())).map_err(failed)?;
        Ok(Self {
            memory: Arc::new(memory),
            id,
        })
    }

    /// Which ring buffer this is: another one after a reboot, or when the map is made anew.
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Tells how far it was written.
    pub fn produced(&self) -> Produced {
        Produced(Arc::clone(&self.memory))
    }

    /// The position of the oldest event.
    pub fn start(&self) -> u64 {
        self.memory.consumed()
    }

    /// Bytes that it has room for.
    pub fn capacity(&self) -> u64 {
        self.memory.size
    }

    /// Bytes that it holds.
    pub fn held(&self) -> u64 {
        self.memory.produced().saturating_sub(self.memory.consumed())
    }

    /// Looks at the event at `position`, which lies between [`Ring::start`] and the end. Returns where the next one is;
    /// `None` where there is none yet. What was given up by the kernel side is passed over.
    pub fn look(&self, position: u64, each: impl FnOnce(&[u8])) -> Option<u64> {
        self.memory.look(position, each)
    }

    /// Gives the room before `position` back. What lies there is gone.
    pub fn release(&self, position: u64) {
        let memory = &self.memory;
        if position > memory.consumed() && position <= memory.produced() {
            memory.consumer().store(position, Ordering::Release);
        }
    }

    /// Waits until there is something to look at, or somebody was woken, or for `most`.
    pub fn wait(&self, most: Duration) -> io::Result<()> {
        let timeout = PollTimeout::try_from(most).unwrap_or(PollTimeout::ZERO);
        match poll(
            &mut [PollFd::new(self.memory.map.fd().as_fd(), PollFlags::POLLIN)],
            timeout,
        ) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The ring buffer, mapped.
#[derive(Debug)]
struct Memory {
    map: MapData,
    page: usize,
    /// Bytes of data.
    size: u64,
    /// One page, ours to write.
    consumer: NonNull<u8>,
    /// One page, then the data twice; the kernel's.
    producer: NonNull<u8>,
}

// SAFETY: the memory is shared with the kernel as it is; every access that two threads may make is atomic, and the
// data between the two positions is not written by anybody.
#[expect(unsafe_code, reason = "shared memory of the kernel")]
unsafe impl Send for Memory {}
// SAFETY: as above.
#[expect(unsafe_code, reason = "shared memory of the kernel")]
unsafe impl Sync for Memory {}

impl Memory {
    fn map(map: MapData, size: u64) -> io::Result<Self> {
        let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)?
            .and_then(|page| usize::try_from(page).ok())
            .ok_or_else(|| io::Error::other("the page size is not known"))?;
        let descriptor = map.fd().as_fd().as_raw_fd();
        let data = usize::try_from(size).map_err(io::Error::other)?;
        let consumer = map_pages(descriptor, libc::PROT_READ | libc::PROT_WRITE, page, 0)?;
        let producer = match map_pages(descriptor, libc::PROT_READ, page + 2 * data, page) {
            Ok(producer) => producer,
            Err(error) => {
                unmap_pages(consumer, page);
                return Err(error);
            }
        };
        Ok(Self {
            map,
            page,
            size,
            consumer,
            producer,
        })
    }

    fn consumer(&self) -> &AtomicU64 {
        // SAFETY: the page is mapped, aligned, writable, and lives as long as `self`.
        #[expect(unsafe_code, reason = "shared memory of the kernel")]
        unsafe {
            self.consumer.cast::<AtomicU64>().as_ref()
        }
    }

    fn consumed(&self) -> u64 {
        self.consumer().load(Ordering::Acquire)
    }

    fn produced(&self) -> u64 {
        // SAFETY: the page is mapped, aligned and lives as long as `self`; it is only read.
        #[expect(unsafe_code, reason = "shared memory of the kernel")]
        let position = unsafe { self.producer.cast::<AtomicU64>().as_ref() };
        position.load(Ordering::Acquire)
    }

    fn look(&self, mut position: u64, each: impl FnOnce(&[u8])) -> Option<u64> {
        loop {
            // Checked each time: a position that is not between the two is not an event.
            if position < self.consumed() || position >= self.produced() {
                return None;
            }
            let offset = usize::try_from(position & (self.size - 1)).ok()?;
            // SAFETY: `offset` is below the size of the data and a multiple of eight, like every event's.
            #[expect(unsafe_code, reason = "shared memory of the kernel")]
            let header = unsafe { self.producer.add(self.page + offset).cast::<AtomicU32>().as_ref() };
            let header = header.load(Ordering::Acquire);
            if header & BUSY != 0 {
                return None;
            }
            let length = u64::from(header & !DISCARDED);
            // An event is never longer than the data: what says so is not an event.
            if length + HEADER > self.size {
                return None;
            }
            let next = position + (length + HEADER).next_multiple_of(8);
            if header & DISCARDED != 0 {
                position = next;
                continue;
            }
            // SAFETY: the data is mapped twice in a row, so `length` bytes behind the header are there; the kernel does
            // not write them before their room was given back, which only this process does, and not while it looks.
            #[expect(unsafe_code, reason = "shared memory of the kernel")]
            let bytes = unsafe {
                let start = self.producer.add(self.page + offset + HEADER as usize);
                std::slice::from_raw_parts(start.as_ptr(), length as usize)
            };
            each(bytes);
            return Some(next);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        unmap_pages(self.consumer, self.page);
        unmap_pages(self.producer, self.page + 2 * self.size as usize);
    }
}

fn map_pages(descriptor: i32, protection: i32, length: usize, offset: usize) -> io::Result<NonNull<u8>> {
    let offset = i64::try_from(offset).map_err(io::Error::other)?;
    // SAFETY: a new mapping at an address of the kernel's choice.
    #[expect(unsafe_code, reason = "shared memory of the kernel")]
    let address = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            length,
            protection,
            libc::MAP_SHARED,
            descriptor,
            offset,
        )
    };
    if address == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mapped at address 0"))
}

fn unmap_pages(address: NonNull<u8>, length: usize) {
    // SAFETY: a mapping of that length which nobody refers to any more.
    #[expect(unsafe_code, reason = "shared memory of the kernel")]
    unsafe {
        libc::munmap(address.as_ptr().cast(), length);
    }
}
