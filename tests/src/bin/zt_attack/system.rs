// SPDX-License-Identifier: Apache-2.0
//! System calls that no crate of this workspace has.
#![expect(
    unsafe_code,
    reason = "system calls by hand; every pointer handed over lives across the call"
)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

/// The result of a system call.
fn checked(result: i64) -> io::Result<i64> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(descriptor: i64) -> OwnedFd {
    // SAFETY: the kernel has just given this descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(descriptor as i32) }
}

/// `socket(2)` by numbers.
pub(crate) fn socket(family: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns plain numbers.
    checked(i64::from(unsafe {
        libc::socket(family, kind | libc::SOCK_CLOEXEC, protocol)
    }))
    .map(owned)
}

/// `setsockopt(2)`.
pub(crate) fn set_option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: the value has the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            value.len() as libc::socklen_t,
        )
    };
    checked(i64::from(set)).map(drop)
}

/// `getsockopt(2)` into something that is plain numbers.
pub(crate) fn option<T: Default + Copy>(socket: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<T> {
    let mut value = T::default();
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most the length given.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_mut(&mut value).cast(),
            &raw mut length,
        )
    };
    checked(i64::from(got)).map(|_| value)
}

/// Addresses of families that `socket2` does not know, as their C structures.
pub(crate) fn bind<T>(socket: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: the address has the length given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    checked(i64::from(bound)).map(drop)
}

/// See [`bind`].
pub(crate) fn connect<T>(socket: BorrowedFd<'_>, address: &T) -> io::Result<()> {
    // SAFETY: the address has the length given.
    let connected = unsafe {
        libc::connect(
            socket.as_raw_fd(),
            std::ptr::from_ref(address).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    checked(i64::from(connected)).map(drop)
}

/// `sendto(2)`, to an address of any family, or to none.
pub(crate) fn send_to<T>(socket: BorrowedFd<'_>, data: &[u8], address: Option<&T>) -> io::Result<()> {
    let (address, length) = match address {
        Some(address) => (std::ptr::from_ref(address).cast(), size_of::<T>()),
        None => (std::ptr::null(), 0),
    };
    // SAFETY: data and address have the lengths given.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            data.as_ptr().cast(),
            data.len(),
            libc::MSG_DONTWAIT,
            address,
            length as libc::socklen_t,
        )
    };
    checked(sent as i64).map(drop)
}

/// A descriptor of another process, as one of our own (`pidfd_getfd(2)`).
pub(crate) fn descriptor_of(pid: i32, descriptor: i32) -> io::Result<OwnedFd> {
    // SAFETY: takes and returns plain numbers.
    let process = checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) }).map(owned)?;
    // SAFETY: takes and returns plain numbers.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), descriptor, 0) }).map(owned)
}

/// `io_uring_setup(2)`; the kernel fills in what is in `parameters`.
pub(crate) fn ring_setup<T>(entries: u32, parameters: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads and writes its structure of this size.
    let made = unsafe { libc::syscall(libc::SYS_io_uring_setup, entries, std::ptr::from_mut(parameters)) };
    checked(made).map(owned)
}

/// `io_uring_enter(2)` without a signal mask.
pub(crate) fn ring_enter(ring: BorrowedFd<'_>, submit: u32, wait: u32, flags: u32) -> io::Result<i64> {
    let nothing = std::ptr::null::<libc::sigset_t>();
    // SAFETY: no mask is handed over.
    checked(unsafe {
        libc::syscall(
            libc::SYS_io_uring_enter,
            ring.as_raw_fd(),
            submit,
            wait,
            flags,
            nothing,
            0,
        )
    })
}

/// Memory that is shared with the kernel or with a child, for as long as the process lives.
#[derive(Clone, Copy)]
pub(crate) struct Shared {
    start: *mut u8,
    length: usize,
}

impl Shared {
    /// Maps what a descriptor has at `offset`, or memory of nobody's where there is no descriptor.
    pub(crate) fn map(of: Option<BorrowedFd<'_>>, length: usize, offset: i64) -> io::Result<Self> {
        let (descriptor, anonymous) = of.map_or((-1, libc::MAP_ANONYMOUS), |of| (of.as_raw_fd(), 0));
        // SAFETY: a new mapping; nothing that is there is replaced.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED | libc::MAP_POPULATE | anonymous,
                descriptor,
                offset,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            start: start.cast(),
            length,
        })
    }

    /// The address of a place in it, for the kernel.
    pub(crate) fn address(self, offset: usize) -> u64 {
        assert!(offset < self.length, "beyond the mapping");
        self.start as u64 + offset as u64
    }

    /// Reads plain numbers that the other side may be writing.
    pub(crate) fn read<T: Copy>(self, offset: usize) -> T {
        assert!(offset + size_of::<T>() <= self.length, "beyond the mapping");
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        // SAFETY: inside the mapping, of numbers, and aligned as the kernel's structures are.
        unsafe { self.start.add(offset).cast::<T>().read_volatile() }
    }

    /// Writes plain numbers.
    pub(crate) fn write<T: Copy>(self, offset: usize, value: T) {
        assert!(offset + size_of::<T>() <= self.length, "beyond the mapping");
        // SAFETY: inside the mapping, of numbers, and aligned as the kernel's structures are.
        unsafe { self.start.add(offset).cast::<T>().write_volatile(value) };
        std::sync::atomic::fence(std::sync::atomic::Ordering::Release);
    }

    /// Writes bytes.
    pub(crate) fn put(self, offset: usize, bytes: &[u8]) {
        for (place, byte) in bytes.iter().enumerate() {
            self.write(offset + place, *byte);
        }
    }

    /// Reads bytes.
    pub(crate) fn take(self, offset: usize, length: usize) -> Vec<u8> {
        (offset..offset + length).map(|place| self.read(place)).collect()
    }
}

/// Runs in a child that has a copy of everything, and waits for it. The child ends with what it returns.
pub(crate) fn in_child(work: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: this process has one thread, so that the child may do what its parent may.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            let code = work();
            // SAFETY: ends this process alone, without its parent's buffers.
            unsafe { libc::_exit(code) }
        }
        child => {
            let mut status = 0;
            // SAFETY: the status is written to a number.
            checked(i64::from(unsafe { libc::waitpid(child, &raw mut status, 0) }))?;
            Ok(libc::WEXITSTATUS(status))
        }
    }
}
