// SPDX-License-Identifier: Apache-2.0
//! Thin, typed access to what the kernel's contexts and helpers offer, and nothing more.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, bpf_sock};
use aya_ebpf::helpers::generated as helper;
use zt_common::abi::Socket;

use crate::maps;

/// `CLOCK_MONOTONIC`, nanoseconds.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: no arguments.
    unsafe { helper::bpf_ktime_get_ns() }
}

/// `CLOCK_MONOTONIC`, seconds.
#[inline(always)]
pub fn seconds() -> u32 {
    (now() / 1_000_000_000) as u32
}

/// Adds to a value of a map, atomically and wrapping.
///
/// # Safety
///
/// `place` must point into a live map value.
#[inline(always)]
pub unsafe fn add(place: *mut u64, addend: u64) {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller's; the kernel's map values are aligned to eight bytes.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::Relaxed }>(place, addend) };
}

/// Adds to a value of a map, atomically and wrapping, and gives what was there.
///
/// The ordering is not a matter of taste: of a relaxed addition the compiler makes the instruction that does not
/// fetch, and takes the addend for the old value.
///
/// # Safety
///
/// `place` must point into a live map value.
#[inline(always)]
pub unsafe fn fetch_add(place: *mut u64, addend: u64) -> u64 {
    use core::intrinsics::{AtomicOrdering, atomic_xadd};
    // SAFETY: the caller's; the kernel's map values are aligned to eight bytes.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(place, addend) }
}

/// Takes what a value of a map holds and leaves 0: of two who do so at a time, one has it.
///
/// # Safety
///
/// `place` must point into a live map value.
#[inline(always)]
pub unsafe fn take(place: *mut u64) -> u64 {
    use core::intrinsics::{AtomicOrdering, atomic_xchg};
    // SAFETY: the caller's; the kernel's map values are aligned to eight bytes.
    unsafe { atomic_xchg::<u64, { AtomicOrdering::SeqCst }>(place, 0) }
}

/// Cgroup id of the running task.
#[inline(always)]
pub fn current_cgroup() -> u64 {
    // SAFETY: no arguments.
    unsafe { helper::bpf_get_current_cgroup_id() }
}

/// Cgroup id of the running task's ancestor at an absolute level, or 0 where it has none.
#[inline(always)]
pub fn current_ancestor(level: u32) -> u64 {
    // SAFETY: the helper checks the level.
    unsafe { helper::bpf_get_current_ancestor_cgroup_id(level as i32) }
}

/// Thread group of the running task.
#[inline(always)]
pub fn current_process() -> u32 {
    (aya_ebpf::helpers::bpf_get_current_pid_tgid() >> 32) as u32
}

/// Name of the running task.
#[inline(always)]
pub fn current_name(name: &mut [u8; 16]) {
    // SAFETY: the buffer has the length given.
    unsafe { helper::bpf_get_current_comm(name.as_mut_ptr().cast(), 16) };
}

/// Cookie of the network namespace of a context's socket.
#[inline(always)]
pub fn netns_cookie(context: *mut c_void) -> u64 {
    // SAFETY: `context` is the context that the program was called with.
    unsafe { helper::bpf_get_netns_cookie(context) }
}

/// Cookie of a context's socket.
#[inline(always)]
pub fn socket_cookie(context: *mut c_void) -> u64 {
    // SAFETY: `context` is the context that the program was called with.
    unsafe { helper::bpf_get_socket_cookie(context) }
}

/// Id of the cgroup that a full socket was born in.
#[inline(always)]
pub fn cgroup_of(socket: *mut bpf_sock) -> u64 {
    // SAFETY: the caller has a socket that the verifier knows to be one.
    unsafe { helper::bpf_sk_cgroup_id(socket.cast()) }
}

/// Id of that cgroup's ancestor at an absolute level, or 0 where it has none.
#[inline(always)]
pub fn ancestor_of(socket: *mut bpf_sock, level: u32) -> u64 {
    // SAFETY: as above.
    unsafe { helper::bpf_sk_ancestor_cgroup_id(socket.cast(), level as i32) }
}

/// What is stored with a socket.
#[inline(always)]
pub fn stored(socket: *mut bpf_sock) -> Option<Socket> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: a socket pointer from the context, checked above; the value has the map's type.
    unsafe {
        helper::bpf_sk_storage_get(maps::zt_sockets.as_ptr(), socket.cast(), core::ptr::null_mut(), 0)
            .cast::<Socket>()
            .as_ref()
            .copied()
    }
}

/// Stores `value` with a socket, or overwrites what is there.
#[inline(always)]
pub fn store(socket: *mut bpf_sock, value: &Socket) -> bool {
    const CREATE: u64 = 1;
    if socket.is_null() {
        return false;
    }
    let mut initial = *value;
    // SAFETY: as above; the helper copies `initial` only when it creates the storage.
    unsafe {
        let place = helper::bpf_sk_storage_get(
            maps::zt_sockets.as_ptr(),
            socket.cast(),
            core::ptr::from_mut(&mut initial).cast(),
            CREATE,
        )
        .cast::<Socket>();
        if place.is_null() {
            return false;
        }
        *place = *value;
    }
    true
}

/// Bytes of a packet, counted from its IP header; `None` where it ends before.
#[inline(always)]
pub fn load<const N: usize>(skb: *mut __sk_buff, offset: u32) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    // SAFETY: the buffer has the length given.
    let failed = unsafe {
        helper::bpf_skb_load_bytes(
            skb.cast(),
            offset,
            core::ptr::from_mut(&mut bytes).cast(),
            N as u32,
        )
    };
    (failed == 0).then_some(bytes)
}
