// SPDX-License-Identifier: Apache-2.0
//! Programs that give connections and datagrams another destination, and answers another sender, as load balancers in the kernel
//! do: loaded by the system call, since they are a few instructions each and somebody else's.
#![expect(
    unsafe_code,
    reason = "system calls; every pointer handed over lives across the call"
)]

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::cgroup::Cgroup;

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const LINK_CREATE: u32 = 28;
const LINK_DETACH: u32 = 34;
const CGROUP_SOCK_ADDR: u32 = 18;
/// Of `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_IP6: i16 = 8;
const USER_PORT: i16 = 24;

/// Where a program of a load balancer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Where a connection is made, or a datagram's socket is connected.
    Connect,
    /// Where a datagram is sent by a socket that is not connected.
    Send,
    /// Where the sender of a datagram is told.
    Receive,
}

impl Place {
    /// `enum bpf_attach_type`, for the family of an address.
    const fn attach_type(self, of: SocketAddr) -> u32 {
        match (self, of) {
            (Self::Connect, SocketAddr::V4(_)) => 10,
            (Self::Connect, SocketAddr::V6(_)) => 11,
            (Self::Send, SocketAddr::V4(_)) => 14,
            (Self::Send, SocketAddr::V6(_)) => 15,
            (Self::Receive, SocketAddr::V4(_)) => 19,
            (Self::Receive, SocketAddr::V6(_)) => 20,
        }
    }
}

/// The words of an address and a port: where each is, and what it is.
fn words(address: SocketAddr) -> Vec<(i16, i32)> {
    let word = |bytes: &[u8]| i32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut words = match address {
        SocketAddr::V4(v4) => vec![(USER_IP4, word(&v4.ip().octets()))],
        SocketAddr::V6(v6) => {
            let octets = v6.ip().octets();
            let each = (USER_IP6..).step_by(4).zip(octets.chunks(4));
            each.map(|(place, bytes)| (place, word(bytes))).collect()
        }
    };
    words.push((USER_PORT, i32::from(address.port().to_be())));
    words
}

/// It works until it is dropped.
#[derive(Debug)]
pub struct Rewriter {
    link: OwnedFd,
    _program: OwnedFd,
}

#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgAttach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
    replace: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

/// What a system call answers.
fn answer<T>(command: u32, attributes: &mut T) -> Result<i32> {
    // SAFETY: the kernel reads at most the size given, all of it inside `attributes`.
    let result = unsafe {
        let size = u32::try_from(size_of::<T>())?;
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size)
    };
    if result < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    Ok(i32::try_from(result)?)
}

fn bpf<T>(command: u32, attributes: &mut T) -> Result<OwnedFd> {
    let descriptor = answer(command, attributes)?;
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    (code as u64)
        | ((destination | source << 4) as u64) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

impl Drop for Rewriter {
    fn drop(&mut self) {
        // A process that another test is about to start holds the descriptor, too, until it runs its program.
        let mut link = self.link.as_raw_fd();
        let detached = answer(LINK_DETACH, &mut link);
        if let Err(error) = detached {
            eprintln!("a program is detached only when nobody holds its link any more: {error}");
        }
    }
}

impl Rewriter {
    /// Has connections from a cgroup, and from all below it, that ask for `from` go to `to`. The program is called `name`.
    pub fn attach(
        cgroup: &Cgroup,
        name: &str,
        from: impl Into<SocketAddr>,
        to: impl Into<SocketAddr>,
    ) -> Result<Self> {
        Self::attach_at(Place::Connect, cgroup, name, from.into(), to.into())
    }

    /// The same at a place. Both addresses are of one family.
    pub fn attach_at(
        place: Place,
        cgroup: &Cgroup,
        name: &str,
        from: SocketAddr,
        to: SocketAddr,
    ) -> Result<Self> {
        Self::linked(place, cgroup, name, from, Some(to))
    }

    /// Has connections from a cgroup, and from all below it, that ask for `what` refused, as a firewall in the kernel does.
    pub fn refuse(cgroup: &Cgroup, name: &str, what: impl Into<SocketAddr>) -> Result<Self> {
        Self::linked(Place::Connect, cgroup, name, what.into(), None)
    }

    fn linked(
        place: Place,
        cgroup: &Cgroup,
        name: &str,
        from: SocketAddr,
        to: Option<SocketAddr>,
    ) -> Result<Self> {
        let loaded = load(place, name, from, to)?;
        let directory = File::open(cgroup.path())?;
        let mut attributes = LinkCreate {
            program: u32::try_from(loaded.as_raw_fd())?,
            target: u32::try_from(directory.as_raw_fd())?,
            attach_type: place.attach_type(from),
            ..LinkCreate::default()
        };
        let link = bpf(LINK_CREATE, &mut attributes).context("the program cannot be attached")?;
        Ok(Self {
            link,
            _program: loaded,
        })
    }
}

/// Attaches one in the old way, for itself alone: no other program may be beside it. It goes with its cgroup.
pub fn attach_alone(
    cgroup: &Cgroup,
    name: &str,
    from: impl Into<SocketAddr>,
    to: impl Into<SocketAddr>,
) -> Result<()> {
    let from = from.into();
    let loaded = load(Place::Connect, name, from, Some(to.into()))?;
    let directory = File::open(cgroup.path())?;
    let mut attributes = ProgAttach {
        target: u32::try_from(directory.as_raw_fd())?,
        program: u32::try_from(loaded.as_raw_fd())?,
        attach_type: Place::Connect.attach_type(from),
        ..ProgAttach::default()
    };
    answer(PROG_ATTACH, &mut attributes).context("the program cannot be attached")?;
    Ok(())
}

/// Has the kernel verify one. Without `to` it refuses.
fn load(place: Place, name: &str, from: SocketAddr, to: Option<SocketAddr>) -> Result<OwnedFd> {
    let mut then = Vec::new();
    match to {
        Some(to) => {
            for (place, value) in words(to) {
                then.push(instruction(0xb4, 3, 0, 0, value));
                then.push(instruction(0x63, 1, 3, place, 0));
            }
        }
        None => then.extend([instruction(0xb7, 0, 0, 0, 0), instruction(0x95, 0, 0, 0, 0)]),
    }
    // r2 = each word; return 1 unless it is the one; then write all of them anew, or return 0.
    let asked = words(from);
    let length = i16::try_from(2 * asked.len() + then.len())?;
    let mut program = Vec::new();
    for (place, value) in asked {
        program.push(instruction(0x61, 2, 1, place, 0));
        // Of a word, so that the sign of the immediate is of no matter.
        let left = length - i16::try_from(program.len())? - 1;
        program.push(instruction(0x56, 2, 0, left, value));
    }
    program.extend(then);
    program.push(instruction(0xb7, 0, 0, 0, 1));
    program.push(instruction(0x95, 0, 0, 0, 0));
    let attach_type = place.attach_type(from);
    let mut attributes = ProgLoad {
        kind: CGROUP_SOCK_ADDR,
        count: u32::try_from(program.len())?,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        attach_type,
        ..ProgLoad::default()
    };
    // The last byte stays zero.
    for (place, byte) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    bpf(PROG_LOAD, &mut attributes).context("the program does not load")
}
