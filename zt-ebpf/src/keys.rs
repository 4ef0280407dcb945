// SPDX-License-Identifier: Apache-2.0
//! Whether handshakes bear identities, and the keys that their tags are made with.

use zt_common::abi::{KeyId, NodeKey, WITHIN};
use zt_common::control::{Control, HANDSHAKE};
use zt_common::handshake::{Bits, EPOCH_MASK};
use zt_common::siphash::Key;

use crate::maps;

/// Whether these programs can have handshakes bear identities: a constant of the loaded programs, so that the verifier does not
/// walk what an agent without that never runs.
#[unsafe(no_mangle)]
static ZT_HANDSHAKES: u8 = 1;

/// See [`ZT_HANDSHAKES`].
#[inline(always)]
pub fn is_had() -> bool {
    // SAFETY: a static of this object, whose value only the loader knows.
    unsafe { core::ptr::read_volatile(&raw const ZT_HANDSHAKES) != 0 }
}

/// Whether handshakes bear identities.
#[inline(always)]
pub fn is_on(control: &Control) -> bool {
    is_had() && control.flags & HANDSHAKE != 0
}

/// The same of the control that is in force.
#[inline(always)]
pub fn in_force() -> bool {
    matches!(maps::zt_control.get(0), Some(control) if is_on(control))
}

#[inline(always)]
fn key(id: KeyId) -> Option<Key> {
    // SAFETY: entries are written once; read once, copied at once.
    let key: NodeKey = unsafe { maps::zt_keys.get(id) }.copied()?;
    Some(Key {
        k0: key.k0,
        k1: key.k1,
    })
}

/// The epoch in use towards a node, 0 being this one. 0 where there is no key.
#[inline(always)]
pub fn epoch(control: &Control, node: u32) -> u64 {
    if node == 0 {
        return control.epoch;
    }
    // SAFETY: read once, copied at once.
    match unsafe { maps::zt_nodes.get(node) } {
        Some(node) => node.epoch,
        None => 0,
    }
}

/// Whether there is a key that is shared with another node.
#[inline(always)]
pub fn has_key(node: u32) -> bool {
    // SAFETY: read once, copied at once.
    node != 0 && matches!(unsafe { maps::zt_nodes.get(node) }, Some(node) if node.epoch != 0)
}

/// The key to make a tag with.
#[inline(always)]
pub fn sent(node: u32, epoch: u64) -> Option<Key> {
    key(if node == 0 {
        KeyId { peer: WITHIN, epoch }
    } else {
        KeyId::to(node, epoch)
    })
}

/// The key that an option of a node names: within this one that in use or the one before, else whatever there is.
#[inline(always)]
pub fn accepted(control: &Control, node: u32, bits: Bits) -> Option<Key> {
    if node != 0 {
        return key(KeyId::from(node, bits.epoch()));
    }
    let behind = control.epoch.wrapping_sub(bits.epoch()) & EPOCH_MASK;
    if behind > 1 {
        return None;
    }
    key(KeyId {
        peer: WITHIN,
        epoch: control.epoch.wrapping_sub(behind),
    })
}
