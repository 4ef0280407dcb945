// SPDX-License-Identifier: Apache-2.0
//! Somebody else's programs beside ours on the same sockets: one of `sock_ops` that asks for the same callbacks, and may write TCP
//! options of its own, and those that only answer yes or no. Put together by hand, as they are a few instructions.
#![expect(
    unsafe_code,
    reason = "bpf(2) by hand; every pointer handed over lives across the call"
)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use anyhow::{Context as _, Result, ensure};

use crate::cgroup::Cgroup;

/// The kind of the option that it writes (RFC 4727).
pub const KIND: u8 = 254;

const PROG_LOAD: u32 = 5;
const LINK_CREATE: u32 = 28;
const SOCK_OPS: u32 = 13;
const ATTACH: u32 = 3;
const CGROUP_SOCK: u32 = 9;

/// Where a program is asked whether something may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// Whether a socket may be made.
    SockCreate,
    /// Whether a socket of IPv4 may stay bound.
    PostBind4,
    /// Whether a socket of IPv6 may stay bound.
    PostBind6,
}

impl Asked {
    /// `enum bpf_attach_type`.
    const fn attach_type(self) -> u32 {
        match self {
            Self::SockCreate => 2,
            Self::PostBind4 => 12,
            Self::PostBind6 => 13,
        }
    }
}

/// Attached for as long as this lives.
#[derive(Debug)]
pub struct OtherProgram {
    _link: OwnedFd,
}

impl OtherProgram {
    /// Attaches one to a cgroup. It asks for the callbacks of options on every socket that connects or listens; of the options
    /// of each segment it writes `bytes`, a multiple of four, or none.
    pub fn attach(cgroup: &Cgroup, bytes: u8) -> Result<Self> {
        ensure!(bytes.is_multiple_of(4) && bytes <= 40, "{bytes} bytes do not fit");
        Self::load(cgroup, SOCK_OPS, ATTACH, &code(i32::from(bytes)))
    }

    /// Attaches one that gives the same answer to everything.
    pub fn answering(cgroup: &Cgroup, asked: Asked, allows: bool) -> Result<Self> {
        let code = [set(0, i32::from(allows)), instruction(0x95, 0, 0, 0, 0)];
        Self::load(cgroup, CGROUP_SOCK, asked.attach_type(), &code)
    }

    fn load(cgroup: &Cgroup, kind: u32, attach_type: u32, code: &[Instruction]) -> Result<Self> {
        let mut log = vec![0_u8; 65_536];
        let load = Load {
            kind,
            count: code.len() as u32,
            code: code.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log_level: 1,
            log_size: log.len() as u32,
            log: log.as_mut_ptr() as u64,
            rest: [0; 7],
            attach_type,
            tail: [0; 14],
        };
        let program = bpf(PROG_LOAD, &load).with_context(|| {
            let text = String::from_utf8_lossy(&log);
            format!("the kernel refuses the program: {}", text.trim_end_matches('\0'))
        })?;
        let directory = File::open(cgroup.path())?;
        let link = Link {
            program: program.as_raw_fd() as u32,
            target: directory.as_raw_fd() as u32,
            attach_type,
            rest: [0; 9],
        };
        let link = bpf(LINK_CREATE, &link).context("cannot attach the program")?;
        Ok(Self { _link: link })
    }
}

#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    code: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    /// Kernel version, flags, name (16), interface.
    rest: [u32; 7],
    attach_type: u32,
    tail: [u32; 14],
}

const _: () = assert!(std::mem::offset_of!(Load, attach_type) == 68);

#[repr(C)]
struct Link {
    program: u32,
    target: u32,
    attach_type: u32,
    rest: [u32; 9],
}

fn bpf<T>(command: u32, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the size given and writes into the log alone.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>() as u32,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// An instruction: `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    operation: u8,
    registers: u8,
    offset: i16,
    value: i32,
}

const fn instruction(operation: u8, to: u8, from: u8, offset: i16, value: i32) -> Instruction {
    Instruction {
        operation,
        registers: to | from << 4,
        offset,
        value,
    }
}

/// `to = from`
const fn copy(to: u8, from: u8) -> Instruction {
    instruction(0xbf, to, from, 0, 0)
}

/// `to = value`
const fn set(to: u8, value: i32) -> Instruction {
    instruction(0xb7, to, 0, 0, value)
}

/// `to = *(u32 *)(from + offset)`
const fn load(to: u8, from: u8, offset: i16) -> Instruction {
    instruction(0x61, to, from, offset, 0)
}

const fn call(helper: i32) -> Instruction {
    instruction(0x85, 0, 0, 0, helper)
}

fn code(bytes: i32) -> Vec<Instruction> {
    /// Fields of `struct bpf_sock_ops`.
    const OPERATION: i16 = 0;
    const CALLBACKS: i16 = 84;
    const WRITE_OPTIONS: i32 = 1 << 6;
    const CONNECTS: i32 = 3;
    const LISTENS: i32 = 11;
    const LENGTH: i32 = 14;
    const WRITE: i32 = 15;
    let end = [set(0, 1), instruction(0x95, 0, 0, 0, 0)];
    let ask = vec![
        load(2, 6, CALLBACKS),
        instruction(0x47, 2, 0, 0, WRITE_OPTIONS),
        copy(1, 6),
        // bpf_sock_ops_cb_flags_set
        call(59),
    ];
    let reserve = vec![copy(1, 6), set(2, bytes), set(3, 0), call(144)];
    let mut write = Vec::new();
    for at in (0..bytes).step_by(4) {
        // What is after kind and length means nothing.
        let word = if at == 0 { i32::from(KIND) | bytes << 8 } else { 0 };
        write.push(instruction(0x62, 10, 0, (at - bytes) as i16, word));
    }
    write.extend([
        copy(1, 6),
        copy(2, 10),
        instruction(0x07, 2, 0, 0, -bytes),
        set(3, bytes),
        set(4, 0),
        call(143),
    ]);
    let mut cases = vec![(CONNECTS, ask.clone()), (LISTENS, ask)];
    if bytes > 0 {
        cases.extend([(LENGTH, reserve), (WRITE, write)]);
    }
    let mut code = vec![copy(6, 1), load(7, 6, OPERATION)];
    for (operation, body) in cases {
        // Past the body, and past its own end.
        let past = (body.len() + end.len()) as i16;
        code.push(instruction(0x55, 7, 0, past, operation));
        code.extend(body);
        code.extend(end);
    }
    code.extend(end);
    code
}
