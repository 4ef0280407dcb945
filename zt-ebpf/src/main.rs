// SPDX-License-Identifier: Apache-2.0
//! zt's kernel programs: one file a hook, thin. All maps are in `maps`, all shared logic in `own` (who acts),
//! `lookup`, `origin` and `sender` (who the other is), `judge` (what policy says), `admit` (what an admission leaves behind), `option`
//! and `proof` (identity in the handshake), `emit` (what is told) and `flood` (of whom not all is).
//!
//! Decisions are made at the handshake. Nothing here runs for a data segment of an established TCP connection; of the hooks
//! that see packets, `udp_guard` is attached only to workloads that receive datagrams, and `packet_guard` only where it is
//! asked for.
#![no_std]
#![no_main]
// The target has atomic additions; the library's atomic types do not offer them on it.
#![allow(internal_features, reason = "see above")]
#![feature(core_intrinsics)]

mod admit;
mod adopt;
mod again;
mod call;
mod connect;
mod context;
mod emit;
mod ends;
mod established;
mod fence;
mod flood;
mod flow;
mod judge;
mod keys;
mod lookup;
mod maps;
mod option;
mod origin;
mod own;
mod packet_guard;
mod proof;
mod sender;
mod sendmsg;
mod sock_ops;
mod socket;
mod socket_create;
mod sysctl;
mod udp_guard;
mod unnoted;

/// aya-log's format strings and helpers need a licence that the kernel accepts for them.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this is reachable.
    loop {}
}
