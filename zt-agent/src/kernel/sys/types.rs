// SPDX-License-Identifier: Apache-2.0
//! The types of a map's keys and values, as the kernel wants them described (`Documentation/bpf/btf.rst`).
//!
//! Kernels before 6.2 put a map into a slot of another one only if both have a description of their values, or neither has.

use std::io;
use std::os::fd::OwnedFd;

use super::{bpf, owned};

const BTF_LOAD: u32 = 18;
/// The type that [`describe`] makes for keys.
pub(super) const KEY: u32 = 3;
/// The type that [`describe`] makes for values.
pub(super) const VALUE: u32 = 5;

#[repr(C)]
#[derive(Default)]
struct BtfLoad {
    btf: u64,
    log: u64,
    size: u32,
    log_size: u32,
    log_level: u32,
    _pad: u32,
}

/// Describes keys and values as structs of so many bytes, of which nothing else is said.
pub(super) fn describe(key_size: usize, value_size: usize) -> io::Result<OwnedFd> {
    let text = encode(key_size as u32, value_size as u32);
    let mut load = BtfLoad {
        btf: text.as_ptr() as u64,
        size: text.len() as u32,
        ..BtfLoad::default()
    };
    bpf(BTF_LOAD, &mut load).map(owned)
}

fn encode(key_size: u32, value_size: u32) -> Vec<u8> {
    const INT: u32 = 1 << 24;
    const ARRAY: u32 = 3 << 24;
    const STRUCT_OF_ONE: u32 = 4 << 24 | 1;
    // A byte, called by the first string; then an array of bytes and a struct of that array, twice.
    let mut types: Vec<u32> = vec![1, INT, 1, 8];
    for (array, size) in [(2, key_size), (4, value_size)] {
        types.extend([0, ARRAY, 0, 1, 1, size]);
        types.extend([0, STRUCT_OF_ONE, size, 0, array, 0]);
    }
    let strings = b"\0u8\0";
    let types_size = 4 * types.len() as u32;
    let mut btf = Vec::new();
    btf.extend(0xeb9f_u16.to_ne_bytes());
    // Version and flags.
    btf.extend([1, 0]);
    for number in [24, 0, types_size, types_size, strings.len() as u32] {
        btf.extend(number.to_ne_bytes());
    }
    btf.extend(types.into_iter().flat_map(u32::to_ne_bytes));
    btf.extend(strings);
    btf
}
