// SPDX-License-Identifier: Apache-2.0
//! The one segment that passes whatever policy says: a reset that carries nothing.

use aya_ebpf::bindings::__sk_buff;

use crate::call::TCP;
use crate::context;

/// It ends its connection, and carries nothing.
pub(super) const RESETS: u32 = 1;

/// Whether a segment is a reset without data, of which the other end of a destroyed socket learns: [`RESETS`], or 0.
///
/// A segment with IPv6 extension headers is none, as TCP sends a reset without.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn zt_packet_resets(skb: *mut __sk_buff) -> u32 {
    if is_bare_reset(skb).unwrap_or(false) {
        RESETS
    } else {
        0
    }
}

#[inline(always)]
fn is_bare_reset(skb: *mut __sk_buff) -> Option<bool> {
    const IPV6_HEADER: u32 = 40;
    const RST: u8 = 4;
    let [first]: [u8; 1] = context::load(skb, 0)?;
    let begin = match first >> 4 {
        4 => 4 * u32::from(first & 15),
        6 => {
            let [next]: [u8; 1] = context::load(skb, 6)?;
            if next != TCP {
                return None;
            }
            IPV6_HEADER
        }
        _ => return None,
    };
    // Its own header's length, in words, and its flags.
    let [length, flags]: [u8; 2] = context::load(skb, begin + 12)?;
    // SAFETY: a field of the context.
    let whole = unsafe { (*skb).len };
    Some(flags & RST != 0 && whole == begin + 4 * u32::from(length >> 4))
}
