// SPDX-License-Identifier: Apache-2.0
//! Namespaces in which something of a workload is not noted (`zt_unnoted`). Who calls or listens there without a note is not taken
//! for the host: it may be that workload.

use aya_ebpf::bindings::BPF_NOEXIST;
use zt_common::abi::{SOURCE_LIFE, Unnoted};
use zt_common::counter::Counter;

use crate::{context, emit, maps};

/// What is said of a namespace, or of all where there is no room for it; null where the agent has never been.
#[inline(always)]
fn place(netns: u64) -> *mut Unnoted {
    if let Some(place) = maps::zt_unnoted.get_ptr_mut(netns) {
        return place;
    }
    let none = Unnoted {
        called: 0,
        listeners: 0,
    };
    let _ = maps::zt_unnoted.insert(netns, none, u64::from(BPF_NOEXIST));
    if let Some(place) = maps::zt_unnoted.get_ptr_mut(netns) {
        return place;
    }
    match maps::zt_unnoted.get_ptr_mut(Unnoted::ANYWHERE) {
        Some(place) => place,
        None => core::ptr::null_mut(),
    }
}

/// A workload calls somebody in its own namespace, and nothing says so. A *global* function of the object, as `zt_judge` is.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_caller_left(netns: u64) -> u32 {
    emit::count(Counter::Unnoted);
    let place = place(netns);
    if !place.is_null() {
        // SAFETY: a live entry; one write.
        unsafe { (&raw mut (*place).called).write_volatile(u64::from(context::seconds())) };
    }
    0
}

/// So many more listen in a namespace at a place that is not noted: one, or all but none for one less. A *global* function of the
/// object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_listener_left(netns: u64, more: u64) -> u32 {
    let place = place(netns);
    if !place.is_null() {
        // SAFETY: a live entry, changed atomically.
        unsafe { context::add(&raw mut (*place).listeners, more) };
    }
    0
}

/// Whether a workload of a namespace has called somebody without a note, not long ago. A *global* function of the object.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_left(netns: u64) -> u32 {
    u32::from(has_called(netns) || has_called(Unnoted::ANYWHERE))
}

#[inline(always)]
fn has_called(key: u64) -> bool {
    let Some(place) = maps::zt_unnoted.get_ptr(key) else {
        return false;
    };
    // SAFETY: a live entry; one word of it.
    let called = unsafe { (&raw const (*place).called).read_volatile() };
    called != 0 && u64::from(context::seconds()).wrapping_sub(called) <= u64::from(SOURCE_LIFE)
}

/// [`zt_left`].
#[inline(always)]
pub fn has_callers(netns: u64) -> bool {
    zt_left(netns) != 0
}

/// Whether a workload of a namespace listens at a place that is not noted. Not by [`zt_left`]: who asks in the course of a datagram
/// is so deep in calls that one more is more stack than kernels before 6.8 have.
#[inline(always)]
pub fn has_listeners(netns: u64) -> bool {
    let listens = |key| match maps::zt_unnoted.get_ptr(key) {
        // SAFETY: a live entry; one word of it.
        Some(place) => unsafe { (&raw const (*place).listeners).read_volatile() as i64 > 0 },
        None => false,
    };
    listens(netns) || listens(Unnoted::ANYWHERE)
}
