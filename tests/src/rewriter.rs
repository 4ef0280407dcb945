// SPDX-License-Identifier: Apache-2.0
//! A program at `connect` that gives connections another destination, as load balancers in the kernel do: loaded by the
//! system call, since it is four instructions and somebody else's.
#![expect(
    unsafe_code,
    reason = "system calls; every pointer handed over lives across the call"
)]

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};

use crate::cgroup::Cgroup;

const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const CGROUP_SOCK_ADDR: u32 = 18;
const CGROUP_INET4_CONNECT: u32 = 10;
/// Of `struct bpf_sock_addr`.
const USER_IP4: i16 = 4;
const USER_PORT: i16 = 24;

/// It works until it is dropped.
#[derive(Debug)]
pub struct Rewriter {
    _link: OwnedFd,
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
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: u32, attributes: &mut T) -> Result<OwnedFd> {
    // SAFETY: the kernel reads at most the size given, all of it inside `attributes`, and gives a descriptor to us alone.
    unsafe {
        let size = u32::try_from(size_of::<T>())?;
        let result = libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size);
        if result < 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        Ok(OwnedFd::from_raw_fd(i32::try_from(result)?))
    }
}

const fn instruction(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> u64 {
    (code as u64)
        | ((destination | source << 4) as u64) << 8
        | (offset as u16 as u64) << 16
        | (immediate as u32 as u64) << 32
}

impl Rewriter {
    /// Has connections from a cgroup, and from all below it, that ask for `from` go to `to`. The program is called `name`.
    pub fn attach(cgroup: &Cgroup, name: &str, from: SocketAddrV4, to: SocketAddrV4) -> Result<Self> {
        let word = |address: SocketAddrV4| i32::from_ne_bytes(address.ip().octets());
        let port = |address: SocketAddrV4| i32::from(address.port().to_be());
        // r2 = the word at an offset; return 1 unless it is the one; the same of the port; write both anew.
        let program = [
            instruction(0x61, 2, 1, USER_IP4, 0),
            // Of a word, so that the sign of the immediate is of no matter.
            instruction(0x56, 2, 0, 6, word(from)),
            instruction(0x61, 2, 1, USER_PORT, 0),
            instruction(0x56, 2, 0, 4, port(from)),
            instruction(0xb4, 3, 0, 0, word(to)),
            instruction(0x63, 1, 3, USER_IP4, 0),
            instruction(0xb4, 3, 0, 0, port(to)),
            instruction(0x63, 1, 3, USER_PORT, 0),
            instruction(0xb7, 0, 0, 0, 1),
            instruction(0x95, 0, 0, 0, 0),
        ];
        let mut attributes = ProgLoad {
            kind: CGROUP_SOCK_ADDR,
            count: u32::try_from(program.len())?,
            instructions: program.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            attach_type: CGROUP_INET4_CONNECT,
            ..ProgLoad::default()
        };
        // The last byte stays zero.
        for (place, byte) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
            *place = byte;
        }
        let loaded = bpf(PROG_LOAD, &mut attributes).context("the program does not load")?;
        let directory = File::open(cgroup.path())?;
        let mut attributes = LinkCreate {
            program: u32::try_from(loaded.as_raw_fd())?,
            target: u32::try_from(directory.as_raw_fd())?,
            attach_type: CGROUP_INET4_CONNECT,
            ..LinkCreate::default()
        };
        let link = bpf(LINK_CREATE, &mut attributes).context("the program cannot be attached")?;
        Ok(Self {
            _link: link,
            _program: loaded,
        })
    }
}
