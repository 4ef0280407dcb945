// SPDX-License-Identifier: Apache-2.0
//! The hasher of the allow table in user space.
//!
//! A decision is a few look-ups of 24-byte keys whose identities are hashes already, so one multiplication a word
//! spreads them well. Keys come from policy authors and from the node's own identities, not from the network, so
//! resistance against chosen keys is not worth its price here.

use std::hash::{BuildHasherDefault, Hasher};

/// A map with that hasher.
pub(super) type FastMap<K, V> = std::collections::HashMap<K, V, BuildHasherDefault<FoldHasher>>;

/// Multiplies each word into 128 bits and folds the halves, so that every bit reaches the low and the high end.
#[derive(Default, Clone, Copy)]
pub(super) struct FoldHasher(u64);

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

impl FoldHasher {
    #[inline]
    fn fold(&mut self, word: u64) {
        let product = u128::from(self.0.rotate_left(23) ^ word ^ MULTIPLIER) * u128::from(MULTIPLIER);
        self.0 = product as u64 ^ (product >> 64) as u64;
    }
}

impl Hasher for FoldHasher {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.fold(u64::from_le_bytes(word));
        }
    }

    #[inline]
    fn write_u8(&mut self, value: u8) {
        self.fold(u64::from(value));
    }

    #[inline]
    fn write_u16(&mut self, value: u16) {
        self.fold(u64::from(value));
    }

    #[inline]
    fn write_u32(&mut self, value: u32) {
        self.fold(u64::from(value));
    }

    #[inline]
    fn write_u64(&mut self, value: u64) {
        self.fold(value);
    }

    #[inline]
    fn finish(&self) -> u64 {
        self.0
    }
}
