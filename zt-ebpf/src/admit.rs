// SPDX-License-Identifier: Apache-2.0
//! What an admission leaves behind: the connection, for the end of its handshake and for a later sweep.

use aya_ebpf::bindings::{BPF_EXIST, BPF_NOEXIST, bpf_sock};
use zt_common::abi::{CONNECTION_UNCOUNTED, Connection, SOCKET_FRONT, SOCKET_HERE, Socket};
use zt_common::address::Address;
use zt_common::counter::Counter;
use zt_common::event::Hook;
use zt_common::names::CONNECTION_SHARE;
use zt_common::proof::Proof;

use crate::call::TCP;
use crate::emit::Told;
use crate::{context, emit, maps};

/// Files a connection under its socket's cookie; whether there was room for it, and its workload had not had its share.
#[inline(always)]
pub fn connection(cookie: u64, connection: &Connection) -> bool {
    if file(cookie, connection) != 0 {
        return true;
    }
    // What an earlier call on this socket left, which failed before it sent anything, and has no record yet.
    tell(cookie, Proof::Unanswered);
    let filed = replace(cookie, connection) != 0;
    if !filed {
        emit::count(Counter::ConnectionsFull);
    }
    filed
}

/// Files what was not there before, if there is room.
///
/// Not a *global* function of the object: kernels before 6.2 take no value for a map from one's arguments.
#[inline(never)]
fn file(cookie: u64, connection: &Connection) -> u32 {
    let share = connection.share();
    let filed = filed(share);
    if has_room(filed, CONNECTION_SHARE)
        && maps::zt_connections
            .insert(cookie, connection, u64::from(BPF_NOEXIST))
            .is_ok()
    {
        take_room(filed, share);
        return 1;
    }
    0
}

/// Files what takes the place of an earlier one of the same socket. Who began that may have been somebody else, who has passed the socket
/// on.
#[inline(never)]
fn replace(cookie: u64, connection: &Connection) -> u32 {
    // SAFETY: read once, copied at once.
    let Some(before) = (unsafe { maps::zt_connections.get(cookie) }) else {
        return 0;
    };
    let (counted, before) = (is_counted(before), before.share());
    if maps::zt_connections
        .insert(cookie, connection, u64::from(BPF_EXIST))
        .is_err()
    {
        return 0;
    }
    let share = connection.share();
    if !counted {
        take_room(filed(share), share);
    } else if share != before {
        give_room(before);
        take_room(filed(share), share);
    }
    1
}

#[inline(always)]
fn is_counted(connection: &Connection) -> bool {
    connection.flags & CONNECTION_UNCOUNTED == 0
}

/// Where it is counted what is filed of a share; null where nothing ever was. Nothing is not removed: the next one that is filed
/// needs no new entry, and the agent removes those of cgroups that are gone.
#[inline(always)]
pub fn filed(share: u64) -> *mut u64 {
    match maps::zt_shares.get_ptr_mut(share) {
        Some(filed) => filed,
        None => core::ptr::null_mut(),
    }
}

/// Whether there may be one more of a share. Numbers below zero come of an entry that was removed meanwhile.
#[inline(always)]
pub fn has_room(filed: *mut u64, most: u32) -> bool {
    // SAFETY: a live entry, read once.
    filed.is_null() || (unsafe { filed.read_volatile() } as i64) < i64::from(most)
}

/// One more.
#[inline(always)]
pub fn take_room(mut filed: *mut u64, share: u64) {
    if filed.is_null() {
        if maps::zt_shares.insert(share, 1, u64::from(BPF_NOEXIST)).is_ok() {
            return;
        }
        filed = self::filed(share);
    }
    if !filed.is_null() {
        // SAFETY: a live entry, changed atomically.
        unsafe { context::add(filed, 1) };
    }
}

/// One less.
#[inline(always)]
pub fn give_room(share: u64) {
    let filed = filed(share);
    if !filed.is_null() {
        // SAFETY: as above.
        unsafe { context::add(filed, u64::MAX) };
    }
}

/// Keeps with the socket itself whose connection it is, where `zt_connections` was full: the other end on this node
/// must find out even then, or would take it for the host's.
#[inline(never)]
pub fn unfiled(sock: *mut bpf_sock, workload: u64, netns: u64, flags: u8) {
    let mut socket = match context::stored(sock) {
        // It was bound, and keeps what that noted.
        Some(socket) => socket,
        None => Socket {
            workload,
            cgroup: workload,
            netns,
            address: Address::UNSPECIFIED_V6,
            port: 0,
            protocol: TCP,
            flags: 0,
            holder: 0,
        },
    };
    // Whoever calls now, and whom: not who bound it, and what it called before.
    socket.workload = workload;
    socket.cgroup = workload;
    socket.flags = socket.flags & !(SOCKET_HERE | SOCKET_FRONT) | flags;
    // Where it has no room for that either, the call is known by nothing: `sender` says so when the SYN leaves.
    context::store(sock, &socket);
}

/// Makes the record of a connection that has none yet, if it is there.
#[inline(always)]
fn tell(cookie: u64, proof: Proof) {
    if let Some(place) = maps::zt_connections.get_ptr_mut(cookie) {
        tell_of(cookie, place, proof);
    }
}

/// Makes the record of a connection that has none yet.
#[inline(never)]
pub fn tell_of(cookie: u64, place: *mut Connection, proof: Proof) {
    // SAFETY: a live entry, which is removed by who closes its socket. That may be at the same time as the handshake
    // ends: one of the two makes the record.
    unsafe {
        let started = context::take(&raw mut (*place).started);
        if started != 0 {
            let told = Told {
                hook: Hook::Connect,
                flags: 0,
                proof,
            };
            emit::told(cookie, started, &*place, told);
        }
    }
}

/// A connection is over; if it has no record yet, nobody answered.
#[inline(always)]
pub fn closed(cookie: u64) {
    zt_closed(cookie);
}

/// [`closed`], as a *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_closed(cookie: u64) -> u32 {
    let Some(place) = maps::zt_connections.get_ptr_mut(cookie) else {
        // It was never admitted: nothing to forget.
        return 0;
    };
    tell_of(cookie, place, Proof::Unanswered);
    // SAFETY: a live entry; what is read is written once.
    let connection = unsafe { &*place };
    let (counted, share) = (is_counted(connection), connection.share());
    // Of two who do so at a time, one has removed it.
    if maps::zt_connections.remove(cookie).is_ok() && counted {
        give_room(share);
    }
    0
}
