// SPDX-License-Identifier: Apache-2.0
//! The numbers that stand for identities inside the kernel.
//!
//! A SPIFFE ID is the first eight bytes (big-endian) of the SHA-256 of its canonical text. Numbers below
//! [`FIRST_WORKLOAD`] are reserved: entities are small constants, named networks (CIDRs) carry [`NETWORK_BIT`], groups
//! [`GROUP_BIT`].

/// Nothing is known about this party.
pub const UNKNOWN: u64 = 0;
/// In the allow table: any SPIFFE identity. Never the identity of a party.
pub const ANY: u64 = 1;
/// A process of this node outside the managed tree.
pub const HOST: u64 = 2;
/// Another node of the cluster, or a host-network pod there.
pub const REMOTE_NODE: u64 = 3;
/// The Kubernetes API server.
pub const KUBE_APISERVER: u64 = 4;
/// An address outside the cluster.
pub const WORLD: u64 = 5;
/// In the allow table: the pseudo destination of the right to open raw sockets.
pub const RAW_SOCKETS: u64 = 16;

/// Set in the number of a named network; the low 31 bits are from the SHA-256 of its canonical CIDR text.
pub const NETWORK_BIT: u64 = 1 << 31;
/// Set, with [`NETWORK_BIT`] clear, in the number of a group: several parties that stand behind one virtual address. The
/// low 30 bits are from the SHA-256 of what the group is made of.
pub const GROUP_BIT: u64 = 1 << 30;
/// The lowest number that a SPIFFE ID may have. A SPIFFE ID hashing below it is refused.
pub const FIRST_WORKLOAD: u64 = 1 << 32;

/// Whether a number stands for a SPIFFE ID.
#[inline(always)]
pub const fn is_workload(number: u64) -> bool {
    number >= FIRST_WORKLOAD
}

/// Whether a number stands for a group.
#[inline(always)]
pub const fn is_group(number: u64) -> bool {
    number >> 30 == 1
}

const _: () = assert!(is_group(GROUP_BIT) && is_group(GROUP_BIT | (GROUP_BIT - 1)));
const _: () =
    assert!(!is_group(NETWORK_BIT) && !is_group(NETWORK_BIT | GROUP_BIT) && !is_group(FIRST_WORKLOAD));
