// SPDX-License-Identifier: Apache-2.0
//! The few `bpf(2)` commands that aya does not offer: updating and inspecting cgroup links, pinning them, attaching
//! to a sockhash, and maps in batches. Layouts follow `union bpf_attr` in `include/uapi/linux/bpf.h`.
#![expect(
    unsafe_code,
    reason = "system calls; every pointer handed over lives across the call"
)]

mod batch;
mod objects;
mod query;
mod types;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

pub(super) use self::batch::{read_each, update_batch};
pub(super) use self::objects::{
    add_new, change_first_word, first_word, head, id_of, look_up, of_socket, program_of_map, remove,
};
pub(super) use self::query::own_programs_at;
use super::error::KernelError;

const MAP_CREATE: u32 = 0;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_ATTACH: u32 = 8;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const PROG_QUERY: u32 = 16;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;

fn bpf<T>(command: u32, attributes: &mut T) -> io::Result<i64> {
    // SAFETY: the kernel reads and writes at most the size given, all of it inside `attributes`.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            u32::try_from(size_of::<T>()).unwrap_or(0),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Sets an option of a socket, whose value is a number.
pub(super) fn set_option(socket: BorrowedFd<'_>, level: i32, option: i32, value: i32) -> io::Result<()> {
    // SAFETY: the value has the length given.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(&value).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if set == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Makes a Unix socket with a protocol by its number, and closes it. None but 0 exists.
pub(super) fn unix_socket(protocol: i32) -> io::Result<()> {
    // SAFETY: takes numbers alone.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, protocol) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    drop(owned(i64::from(socket)));
    Ok(())
}

/// A number that nobody can guess, from the kernel's random source.
pub(super) fn random() -> Result<u64, KernelError> {
    let mut bytes = [0_u8; 8];
    // SAFETY: the kernel writes at most the size given.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    // Up to 256 bytes come whole or not at all.
    if read == bytes.len() as isize {
        Ok(u64::from_ne_bytes(bytes))
    } else {
        Err(KernelError::Missing {
            missing: "random numbers (getrandom)".into(),
            cause: io::Error::last_os_error().to_string(),
        })
    }
}

fn owned(result: i64) -> OwnedFd {
    // SAFETY: the kernel has just given this descriptor to us alone.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn path_argument(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_map: u32,
    numa_node: u32,
    name: [u8; 16],
    device: u32,
    types: u32,
    key_type: u32,
    value_type: u32,
}

/// Creates a map that carries a name of ours; `described`: with what the object's own maps of structs have, a description of them.
pub(super) fn create_map(
    kind: u32,
    name: &str,
    key_size: usize,
    value_size: usize,
    max_entries: u32,
    flags: u32,
    described: bool,
) -> io::Result<OwnedFd> {
    let types = described
        .then(|| types::describe(key_size, value_size))
        .transpose()?;
    let mut attributes = MapCreate {
        kind,
        key_size: key_size as u32,
        value_size: value_size as u32,
        max_entries,
        flags,
        ..MapCreate::default()
    };
    if let Some(described) = &types {
        attributes.types = described.as_raw_fd() as u32;
        attributes.key_type = types::KEY;
        attributes.value_type = types::VALUE;
    }
    // The last byte stays zero.
    for (place, byte) in attributes.name.iter_mut().take(15).zip(name.bytes()) {
        *place = byte;
    }
    bpf(MAP_CREATE, &mut attributes).map(owned)
}

#[repr(C)]
#[derive(Default)]
struct Object {
    pathname: u64,
    fd: u32,
    flags: u32,
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = path_argument(path)?;
    bpf(
        OBJ_GET,
        &mut Object {
            pathname: path.as_ptr() as u64,
            ..Object::default()
        },
    )
    .map(owned)
}

/// Pins an object.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_argument(path)?;
    bpf(
        OBJ_PIN,
        &mut Object {
            pathname: path.as_ptr() as u64,
            fd: fd.as_raw_fd() as u32,
            flags: 0,
        },
    )
    .map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    // Room for what newer kernels put behind; zeros mean "nothing".
    rest: [u64; 4],
}

/// Attaches a program to a cgroup as a link.
pub(super) fn link_create(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    bpf(
        LINK_CREATE,
        &mut LinkCreate {
            program: program.as_raw_fd() as u32,
            target: cgroup.as_raw_fd() as u32,
            attach_type,
            ..LinkCreate::default()
        },
    )
    .map(owned)
}

/// Takes a link's program off its hook, whoever else holds the link open.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut link.as_raw_fd()).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// Puts another program into a link: one atomic step, in which the hook is never without a program.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    bpf(
        LINK_UPDATE,
        &mut LinkUpdate {
            link: link.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            ..LinkUpdate::default()
        },
    )
    .map(drop)
}

/// What the kernel says of a cgroup link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LinkInfo {
    /// Id of the link.
    pub id: u32,
    /// Id of the program in it.
    pub program: u32,
    /// Id of the cgroup that it is attached to; 0 once that cgroup is gone.
    pub cgroup: u64,
    /// The hook.
    pub attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct RawLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _pad: u32,
    cgroup: u64,
    attach_type: u32,
    rest: [u32; 11],
}

#[repr(C)]
struct InfoByFd {
    fd: u32,
    length: u32,
    info: u64,
}

/// Asks the kernel what a link is.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = RawLinkInfo::default();
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut InfoByFd {
            fd: link.as_raw_fd() as u32,
            length: size_of::<RawLinkInfo>() as u32,
            info: std::ptr::from_mut(&mut info) as u64,
        },
    )?;
    Ok(LinkInfo {
        id: info.id,
        program: info.program,
        cgroup: info.cgroup,
        attach_type: info.attach_type,
    })
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

/// Attaches a program to a sockhash; one that was there is replaced.
pub(super) fn attach_to_map(
    program: BorrowedFd<'_>,
    map: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<()> {
    bpf(
        PROG_ATTACH,
        &mut ProgAttach {
            target: map.as_raw_fd() as u32,
            program: program.as_raw_fd() as u32,
            attach_type,
            ..ProgAttach::default()
        },
    )
    .map(drop)
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    _pad: u32,
    program_flags: u64,
}

/// Ids of the programs that are effective at a hook of a cgroup, in the order in which they run.
pub(super) fn programs_at(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<Vec<u32>> {
    const EFFECTIVE: u32 = 1;
    let mut ids = [0_u32; 64];
    let mut query = ProgQuery {
        target: cgroup.as_raw_fd() as u32,
        attach_type,
        query_flags: EFFECTIVE,
        programs: ids.as_mut_ptr() as u64,
        count: ids.len() as u32,
        ..ProgQuery::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    Ok(ids.iter().copied().take(query.count as usize).collect())
}
