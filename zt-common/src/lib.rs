// SPDX-License-Identifier: Apache-2.0
//! What the kernel programs and user space share, written once: the layout of every map key, map value and
//! event, the names of maps and programs, and the verdict function that both sides call.
//!
//! Layout rule: fixed-width integers and byte arrays, no implicit padding, sizes asserted at compile time. A
//! value read from the kernel is never turned into an enum or a `bool` without a check.
#![cfg_attr(not(feature = "user"), no_std)]

pub mod abi;
pub mod address;
pub mod control;
pub mod counter;
pub mod entry;
pub mod event;
pub mod flood;
pub mod handshake;
pub mod identity;
pub mod names;
pub mod outcome;
pub mod proof;
pub mod siphash;
pub mod verdict;

#[cfg(feature = "user")]
mod pod;

/// Version of the map and event layout. Pins live in a directory named after it, so that two versions of the agent
/// never read each other's bytes.
pub const ABI_VERSION: u16 = 8;
