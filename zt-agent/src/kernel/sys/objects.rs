// SPDX-License-Identifier: Apache-2.0
//! What the kernel says of single objects.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use aya::Pod;

use super::{InfoByFd, OBJ_GET_INFO_BY_FD, PROG_QUERY, ProgQuery, bpf};

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
/// Of an update: only what is not there.
const NO_EXIST: u64 = 1;
/// `BPF_MAP_TYPE_ARRAY`: its values are one each, not one for each CPU.
const ARRAY: u32 = 2;
/// The largest value that is looked at.
const VALUE: usize = 4096;

/// The head that `struct bpf_map_info`, `bpf_prog_info` and `bpf_link_info` have in common, and what a map has behind it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(in crate::kernel) struct Head {
    /// Type of the map, program or link.
    pub kind: u32,
    /// Its id.
    pub id: u32,
    /// Of a map only, as is all that follows: bytes of a key.
    pub key_size: u32,
    /// Bytes of a value.
    pub value_size: u32,
    /// Most entries.
    pub max_entries: u32,
    /// `BPF_F_…`.
    pub flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    _pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Adds an entry to a map, if none is there under its key. Whether none was.
pub(in crate::kernel) fn add_new<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> io::Result<bool> {
    let added = bpf(
        MAP_UPDATE_ELEM,
        &mut Element {
            map: map.as_raw_fd() as u32,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: NO_EXIST,
            ..Element::default()
        },
    );
    match added {
        Ok(_) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}

/// An entry of a map that has one value for a key.
pub(in crate::kernel) fn look_up<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<Option<V>> {
    let mut value = MaybeUninit::<V>::uninit();
    let found = bpf(
        MAP_LOOKUP_ELEM,
        &mut Element {
            map: map.as_raw_fd() as u32,
            key: std::ptr::from_ref(key) as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        },
    );
    match found {
        // SAFETY: the kernel has written a value, whose size is that of the map's values; any bytes are a valid `Pod`.
        Ok(_) => Ok(Some(unsafe { value.assume_init() })),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Removes an entry of a map, if it is there.
pub(in crate::kernel) fn remove<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let removed = bpf(
        MAP_DELETE_ELEM,
        &mut Element {
            map: map.as_raw_fd() as u32,
            key: std::ptr::from_ref(key) as u64,
            ..Element::default()
        },
    );
    match removed {
        Err(error) if error.raw_os_error() != Some(libc::ENOENT) => Err(error),
        _ => Ok(()),
    }
}

/// Id of a map, program or link.
pub(in crate::kernel) fn id_of(object: BorrowedFd<'_>) -> io::Result<u32> {
    head(object).map(|head| head.id)
}

/// What the kernel says of a map, program or link.
pub(in crate::kernel) fn head(object: BorrowedFd<'_>) -> io::Result<Head> {
    let mut head = Head::default();
    bpf(
        OBJ_GET_INFO_BY_FD,
        &mut InfoByFd {
            fd: object.as_raw_fd() as u32,
            length: size_of::<Head>() as u32,
            info: std::ptr::from_mut(&mut head) as u64,
        },
    )?;
    Ok(head)
}

/// Id of the program that is attached to a sockhash; none if there is none.
pub(in crate::kernel) fn program_of_map(map: BorrowedFd<'_>, attach_type: u32) -> io::Result<Option<u32>> {
    let mut id = 0_u32;
    let mut query = ProgQuery {
        target: map.as_raw_fd() as u32,
        attach_type,
        programs: std::ptr::from_mut(&mut id) as u64,
        count: 1,
        ..ProgQuery::default()
    };
    bpf(PROG_QUERY, &mut query)?;
    Ok((query.count > 0 && id != 0).then_some(id))
}

/// What a map of socket storage has for a socket, whatever that is; at most as much as is looked at.
pub(in crate::kernel) fn of_socket(storage: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let size = head(storage)?.value_size as usize;
    if size > VALUE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let socket = socket.as_raw_fd();
    let mut value = vec![0; size];
    bpf(
        MAP_LOOKUP_ELEM,
        &mut Element {
            map: storage.as_raw_fd() as u32,
            key: std::ptr::from_ref(&socket) as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        },
    )?;
    Ok(value)
}

/// The first eight bytes of the first value of an array, whatever else is in it.
pub(in crate::kernel) fn first_word(array: BorrowedFd<'_>) -> io::Result<u64> {
    Ok(first_value(array)?[0])
}

/// Changes the first eight bytes of the first value of an array. Whether that made a difference.
pub(in crate::kernel) fn change_first_word(
    array: BorrowedFd<'_>,
    change: impl FnOnce(u64) -> u64,
) -> io::Result<bool> {
    let mut value = first_value(array)?;
    let before = value[0];
    value[0] = change(before);
    if value[0] == before {
        return Ok(false);
    }
    element(MAP_UPDATE_ELEM, array, &mut value)?;
    Ok(true)
}

fn first_value(array: BorrowedFd<'_>) -> io::Result<[u64; VALUE / 8]> {
    let head = head(array)?;
    if head.kind != ARRAY || head.key_size != 4 || !(8..=VALUE as u32).contains(&head.value_size) {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut value = [0; VALUE / 8];
    element(MAP_LOOKUP_ELEM, array, &mut value)?;
    Ok(value)
}

fn element(command: u32, array: BorrowedFd<'_>, value: &mut [u64; VALUE / 8]) -> io::Result<()> {
    let key = 0_u32;
    bpf(
        command,
        &mut Element {
            map: array.as_raw_fd() as u32,
            key: std::ptr::from_ref(&key) as u64,
            value: value.as_mut_ptr() as u64,
            ..Element::default()
        },
    )
    .map(drop)
}
