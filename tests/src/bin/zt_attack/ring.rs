// SPDX-License-Identifier: Apache-2.0
//! A ring of `io_uring`, which does what it is asked for in one of three places: in the task that submits it, in a worker of the
//! kernel's, or in a thread that polls the ring.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::PathBuf;

use clap::Args;
use socket2::SockAddr;
use zt_tests::attack::Attempt;

use crate::system::{self, Shared};
use crate::{At as _, family_of, told};

/// What to ask for, and how.
#[derive(Args)]
pub(crate) struct Ask {
    /// A thread of the kernel polls the ring (`IORING_SETUP_SQPOLL`)
    #[arg(long)]
    polled: bool,
    /// A worker does it (`IOSQE_ASYNC`)
    #[arg(long)]
    aside: bool,
    /// Sends a datagram, and connects nothing
    #[arg(long)]
    datagram: bool,
    /// A child asks, which has inherited the ring and gone to this cgroup
    #[arg(long)]
    heir: Option<PathBuf>,
}

const SENDMSG: u8 = 9;
const CONNECT: u8 = 16;
const SEND: u8 = 26;
const RECV: u8 = 27;
const SOCKET: u8 = 45;

const SETUP_SQPOLL: u32 = 1 << 1;
const ENTER_GETEVENTS: u32 = 1;
const ENTER_WAKEUP: u32 = 1 << 1;
const SQ_NEED_WAKEUP: u32 = 1;
const ASYNC: u8 = 1 << 4;
const OFFSET_ENTRIES: i64 = 0x1000_0000;
const ENTRY: usize = 64;
const COMPLETION: usize = 16;
/// How long the polling thread stays awake, in milliseconds.
const IDLE: u32 = 2000;

/// `struct io_sqring_offsets`, `struct io_cqring_offsets`: places in the ring, by their order there.
type Offsets = [u32; 10];

/// `struct io_uring_params`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Parameters {
    entries: u32,
    completions: u32,
    flags: u32,
    cpu: u32,
    idle: u32,
    features: u32,
    workers: u32,
    reserved: [u32; 3],
    submission: Offsets,
    completion: Offsets,
}

const _: () = assert!(size_of::<Parameters>() == 120);

/// `struct io_uring_sqe`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Entry {
    operation: u8,
    flags: u8,
    priority: u16,
    descriptor: i32,
    offset: u64,
    address: u64,
    length: u32,
    options: u32,
    data: u64,
    rest: [u64; 3],
}

const _: () = assert!(size_of::<Entry>() == ENTRY);

/// Where things lie in the memory that the asked one reads: it may be another process's.
const ADDRESS: usize = 0;
const MESSAGE: usize = 256;
const VECTOR: usize = 512;
const WORD: usize = 1024;
const ANSWER: usize = 2048;
const RESULT: usize = 3072;
const SAID: &[u8] = b"word";
/// What is done, in the order in which it is.
const STEPS: [&str; 5] = ["enter", "socket", "connect", "send", "receive"];

struct Ring {
    descriptor: OwnedFd,
    parameters: Parameters,
    rings: Shared,
    entries: Shared,
    flags: u8,
}

impl Ring {
    fn make(ask: &Ask) -> io::Result<Self> {
        let mut parameters = Parameters::default();
        if ask.polled {
            parameters.flags = SETUP_SQPOLL;
            parameters.idle = IDLE;
        }
        let descriptor = system::ring_setup(8, &mut parameters)?;
        let submissions = parameters.submission[6] as usize + parameters.entries as usize * 4;
        let completions = parameters.completion[5] as usize + parameters.completions as usize * COMPLETION;
        let rings = Shared::map(Some(descriptor.as_fd()), submissions.max(completions), 0)?;
        let length = parameters.entries as usize * ENTRY;
        let entries = Shared::map(Some(descriptor.as_fd()), length, OFFSET_ENTRIES)?;
        Ok(Self {
            descriptor,
            parameters,
            rings,
            entries,
            flags: if ask.aside { ASYNC } else { 0 },
        })
    }

    /// Asks for one thing, and waits for what came of it.
    fn ask(&self, entry: Entry) -> io::Result<i32> {
        let [_, tail, mask, _, flags, _, array, ..] = self.parameters.submission.map(|at| at as usize);
        let [heads, tails, masks, _, _, events, ..] = self.parameters.completion.map(|at| at as usize);
        let next: u32 = self.rings.read(tail);
        let index = next & self.rings.read::<u32>(mask);
        let flags_of_entry = entry.flags | self.flags;
        let entry = Entry {
            flags: flags_of_entry,
            ..entry
        };
        self.entries.write(index as usize * ENTRY, entry);
        self.rings.write(array + index as usize * 4, index);
        self.rings.write(tail, next.wrapping_add(1));
        if self.parameters.flags & SETUP_SQPOLL != 0 {
            if self.rings.read::<u32>(flags) & SQ_NEED_WAKEUP != 0 {
                system::ring_enter(self.descriptor.as_fd(), 0, 0, ENTER_WAKEUP)?;
            }
            system::ring_enter(self.descriptor.as_fd(), 0, 1, ENTER_GETEVENTS)?;
        } else {
            system::ring_enter(self.descriptor.as_fd(), 1, 1, ENTER_GETEVENTS)?;
        }
        let seen: u32 = self.rings.read(heads);
        if self.rings.read::<u32>(tails) == seen {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let place = (seen & self.rings.read::<u32>(masks)) as usize * COMPLETION;
        let result: i32 = self.rings.read(events + place + 8);
        self.rings.write(heads, seen.wrapping_add(1));
        if result < 0 {
            return Err(io::Error::from_raw_os_error(-result));
        }
        Ok(result)
    }
}

/// The socket too is made by the ring: it belongs to whoever does what the ring is asked for.
fn call(
    ring: &Ring,
    memory: Shared,
    to: SocketAddr,
    datagram: bool,
) -> Result<String, (&'static str, io::Error)> {
    let kind = if datagram {
        libc::SOCK_DGRAM
    } else {
        libc::SOCK_STREAM
    };
    let socket = Entry {
        operation: SOCKET,
        descriptor: family_of(to),
        offset: kind as u64,
        ..Entry::default()
    };
    let descriptor = ring.ask(socket).at("socket")?;
    let length = SockAddr::from(to).len();
    let with = |operation, place, length, offset| Entry {
        operation,
        descriptor,
        address: memory.address(place),
        length,
        offset,
        ..Entry::default()
    };
    if datagram {
        ring.ask(with(SENDMSG, MESSAGE, 1, 0)).at("send")?;
        return Ok(String::new());
    }
    ring.ask(with(CONNECT, ADDRESS, 0, u64::from(length)))
        .at("connect")?;
    ring.ask(with(SEND, WORD, SAID.len() as u32, 0)).at("send")?;
    let came = ring.ask(with(RECV, ANSWER, 64, 0)).at("receive")?;
    Ok(String::from_utf8_lossy(&memory.take(ANSWER, came as usize)).into_owned())
}

/// Lays out what the operations point at.
fn fill(memory: Shared, to: SocketAddr) {
    let address = SockAddr::from(to);
    match to {
        SocketAddr::V4(to) => {
            memory.put(ADDRESS, &(libc::AF_INET as u16).to_ne_bytes());
            memory.put(ADDRESS + 2, &to.port().to_be_bytes());
            memory.put(ADDRESS + 4, &to.ip().octets());
        }
        SocketAddr::V6(to) => {
            memory.put(ADDRESS, &(libc::AF_INET6 as u16).to_ne_bytes());
            memory.put(ADDRESS + 2, &to.port().to_be_bytes());
            memory.put(ADDRESS + 8, &to.ip().octets());
        }
    }
    memory.put(WORD, SAID);
    memory.write(VECTOR, [memory.address(WORD), SAID.len() as u64]);
    // `struct msghdr`: name, its length, vectors, how many; no control data, no flags.
    let message = [
        memory.address(ADDRESS),
        u64::from(address.len()),
        memory.address(VECTOR),
        1,
        0,
        0,
        0,
    ];
    memory.write(MESSAGE, message);
}

pub(crate) fn attempt(to: SocketAddr, ask: &Ask) -> Attempt {
    told(begin(to, ask))
}

fn begin(to: SocketAddr, ask: &Ask) -> Result<String, (&'static str, io::Error)> {
    let memory = Shared::map(None, 4096, 0).at("memory")?;
    fill(memory, to);
    let ring = Ring::make(ask).at("setup")?;
    let Some(heir) = &ask.heir else {
        return call(&ring, memory, to, ask.datagram);
    };
    // What the child finds out comes back through the memory: the error, and the step at which it was.
    let came = system::in_child(|| {
        let called = fs::write(heir.join("cgroup.procs"), "0")
            .at("enter")
            .and_then(|()| call(&ring, memory, to, ask.datagram));
        match called {
            Ok(_) => 0,
            Err((step, error)) => {
                memory.write(RESULT, error.raw_os_error().unwrap_or(0));
                1 + STEPS.iter().position(|known| *known == step).unwrap_or(0) as i32
            }
        }
    });
    match came.at("fork")? {
        0 => Ok(String::from_utf8_lossy(&memory.take(ANSWER, SAID.len())).into_owned()),
        step => Err((
            STEPS.get(step as usize - 1).copied().unwrap_or("enter"),
            io::Error::from_raw_os_error(memory.read(RESULT)),
        )),
    }
}
