// SPDX-License-Identifier: Apache-2.0
//! Who fills the ring buffer has a share of it, and of what has no room in that, the first denial of each kind is told.
//!
//! A loop is refused so often that its share is gone at once. What else the same workload is refused meanwhile would be lost
//! in it, and so would be the one record that says what the loop was to cover.

use aya_ebpf::bindings::BPF_ANY;
use aya_ebpf::helpers::generated as helper;
use zt_common::address::Address;
use zt_common::flood::{
    Account, DENIAL_WORDS, FIRST_AFTER, FIRST_SHARE, FLOOD_WINDOW, Flood, denial_part, flood_share,
};
use zt_common::names::RING_BYTES;

use crate::{context, maps};

/// Or'd to a workload in a key of `zt_floods`: its notices, and not its records.
pub const NOTICES: u64 = 1 << 63;
/// Or'd to a workload in a key of `zt_floods`: its first denials beyond its share.
const FIRSTS: u64 = 1 << 62;

/// Counts one more of an account in the window; whether that is more than the share.
#[inline(always)]
fn exceeds(account: &Account, share: u64) -> bool {
    if let Some(place) = maps::zt_floods.get_ptr_mut(&account.key) {
        // SAFETY: a live entry; two programs that begin a window at once count one record less.
        let flood = unsafe { &mut *place };
        if flood.window == account.flood.window {
            // SAFETY: as above.
            unsafe { context::add(&raw mut flood.records, 1) };
            return flood.records > share;
        }
        flood.window = account.flood.window;
        flood.records = 1;
        return false;
    }
    let _ = maps::zt_floods.insert(&account.key, &account.flood, u64::from(BPF_ANY));
    false
}

/// Whether there is no room for one more of a workload (or of its [`NOTICES`]), which has had its share of a ring buffer that is
/// filling up. `denial`: the number of what it was denied ([`numbered`]), if it was; the first of each kind has room beyond the share.
#[inline(always)]
pub fn has_no_room(key: u64, now: u64, denial: impl Fn() -> Option<u64>) -> bool {
    const AVAILABLE_DATA: u64 = 0;
    // SAFETY: the map is a ring buffer.
    let filled = unsafe {
        helper::bpf_ringbuf_query(
            core::ptr::from_ref(&maps::zt_events).cast_mut().cast(),
            AVAILABLE_DATA,
        )
    };
    let share = flood_share(filled / (RING_BYTES as u64 / 8));
    if share == u64::MAX {
        return false;
    }
    let Some(place) = maps::zt_account.get_ptr_mut(0) else {
        return false;
    };
    // SAFETY: this processor's alone. Who comes between here writes its own account, and one record more or less passes.
    let account = unsafe { &mut *place };
    account.key = key;
    account.flood = Flood {
        window: now >> FLOOD_WINDOW,
        records: 1,
    };
    if !exceeds(account, share) {
        return false;
    }
    let Some(number) = denial() else {
        return true;
    };
    account.key = number;
    // SAFETY: read once.
    if let Some(told) = unsafe { maps::zt_denials.get(&account.key) }
        && account.flood.window.wrapping_sub(*told) < FIRST_AFTER
    {
        return true;
    }
    // One that is not told now is the next time.
    account.key = key | FIRSTS;
    if exceeds(account, FIRST_SHARE) {
        return true;
    }
    account.key = number;
    let _ = maps::zt_denials.insert(&account.key, &account.flood.window, u64::from(BPF_ANY));
    false
}

/// What just had room as the first of its kind was not told: there was none left in the ring buffer. The next is the first.
#[inline(always)]
pub fn was_not_told() {
    if let Some(place) = maps::zt_account.get_ptr_mut(0) {
        // SAFETY: as above. Where it is the key of something else, nothing has that number.
        let account = unsafe { &*place };
        let _ = maps::zt_denials.remove(&account.key);
    }
}

/// The number of a denial: of its words, each read when its turn comes. What the compiler keeps, it keeps on the stack.
#[inline(always)]
pub fn numbered(
    workload: &u64,
    source: &u64,
    destination: &u64,
    remote: &Address,
    way: impl Fn() -> u64,
) -> u64 {
    let words: *const u32 = core::ptr::from_ref(remote).cast();
    let half = |first: usize| {
        // SAFETY: an address is four words.
        let (high, low) = unsafe {
            (
                words.add(first).read_volatile(),
                words.add(first + 1).read_volatile(),
            )
        };
        u64::from(high) << 32 | u64::from(low)
    };
    let mut sum = denial_part(anew(workload), seed(0));
    sum = sum.wrapping_add(denial_part(anew(source), seed(1)));
    sum = sum.wrapping_add(denial_part(anew(destination), seed(2)));
    sum = sum.wrapping_add(denial_part(half(0), seed(3)));
    sum = sum.wrapping_add(denial_part(half(2), seed(4)));
    sum.wrapping_add(denial_part(way(), seed(5)))
}

/// Reads something that is read again later.
#[inline(always)]
pub fn anew<T: Copy>(value: &T) -> T {
    // SAFETY: a reference is valid.
    unsafe { core::ptr::read_volatile(value) }
}

/// What the numbers of denials are made with, which nobody knows: constants of the loaded programs.
#[unsafe(no_mangle)]
static ZT_SEEDS: [u64; DENIAL_WORDS] = [0; DENIAL_WORDS];

#[inline(always)]
fn seed(place: usize) -> u64 {
    // SAFETY: a static of this object, whose values only the loader knows.
    unsafe { core::ptr::read_volatile(&raw const ZT_SEEDS[place]) }
}
