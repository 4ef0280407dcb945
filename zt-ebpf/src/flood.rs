// SPDX-License-Identifier: Apache-2.0
//! Who fills the ring buffer has a share of it, and of what has no room in that, the first denial of each kind is told.
//!
//! A loop is refused so often that its share is gone at once. What else the same workload is refused meanwhile would be lost
//! in it, and so would be the one record that says what the loop was to cover.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated as helper;
use zt_common::address::Address;
use zt_common::flood::{Denial, FIRST_AFTER, FIRST_SHARE, FLOOD_WINDOW, Flood, flood_share};
use zt_common::names::RING_BYTES;

use crate::{context, maps};

/// Or'd to a workload in a key of `zt_floods`: its notices, and not its records.
pub const NOTICES: u64 = 1 << 63;
/// Or'd to a workload in a key of `zt_floods`: its first denials beyond its share.
const FIRSTS: u64 = 1 << 62;

/// Whether a workload has had its share of a ring buffer that is filling up.
#[inline(always)]
pub fn floods(workload: u64, now: u64) -> bool {
    const AVAILABLE_DATA: u64 = 0;
    // SAFETY: the map is a ring buffer.
    let filled = unsafe {
        helper::bpf_ringbuf_query(
            core::ptr::from_ref(&maps::zt_events).cast_mut().cast(),
            AVAILABLE_DATA,
        )
    };
    let share = flood_share(filled / (RING_BYTES as u64 / 8));
    share != u64::MAX && exceeds(workload, now >> FLOOD_WINDOW, share)
}

/// Counts one more in a window; whether that is more than the share.
#[inline(always)]
fn exceeds(account: u64, window: u64, share: u64) -> bool {
    if let Some(place) = maps::zt_floods.get_ptr_mut(account) {
        // SAFETY: a live entry; two programs that begin a window at once count one record less.
        let flood = unsafe { &mut *place };
        if flood.window == window {
            // SAFETY: as above.
            unsafe { context::add(&raw mut flood.records, 1) };
            return flood.records > share;
        }
        flood.window = window;
        flood.records = 1;
        return false;
    }
    let flood = Flood { window, records: 1 };
    let _ = maps::zt_floods.insert(account, flood, u64::from(BPF_ANY));
    false
}

/// Port, protocol, reason and end of a denial, as [`is_first`] takes them: a call has five arguments.
#[inline(always)]
pub fn way(port: u16, protocol: u8, reason: u8, inbound: bool) -> u64 {
    u64::from(port) | u64::from(protocol) << 16 | u64::from(reason) << 24 | u64::from(inbound) << 32
}

/// Whether nothing like this was told of late. For denials of a workload that has had its share, and for nothing else.
#[inline(never)]
pub fn is_first(workload: u64, source: u64, destination: u64, remote: &Address, way: u64) -> bool {
    let window = context::now() >> FLOOD_WINDOW;
    let denial = Denial {
        workload,
        source,
        destination,
        remote: *remote,
        port: way as u16,
        protocol: (way >> 16) as u8,
        reason: (way >> 24) as u8,
        inbound: (way >> 32) as u8,
        reserved: [0; 3],
    };
    // SAFETY: read once.
    if let Some(told) = unsafe { maps::zt_denials.get(denial) }
        && window.wrapping_sub(*told) < FIRST_AFTER
    {
        return false;
    }
    // One that is not told now is the next time.
    if exceeds(workload | FIRSTS, window, FIRST_SHARE) {
        return false;
    }
    let _ = maps::zt_denials.insert(denial, window, u64::from(BPF_ANY));
    true
}
