// SPDX-License-Identifier: Apache-2.0
//! Namespaces in which something of a workload is not noted.

/// Value of `zt_unnoted`, keyed by the cookie of a network namespace (`u64`): whoever is noted nowhere there is not the host, as there
/// are workloads of which nothing is noted either.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Unnoted {
    /// When a workload there last called somebody without a note of its SYN, `CLOCK_MONOTONIC` seconds, or 0. Counts for
    /// [`super::SOURCE_LIFE`], as the SYN would.
    pub called: u64,
    /// Sockets of workloads that listen there at a place which `zt_listeners` does not have. Changed one at a time: below zero is zero.
    pub listeners: u64,
}

impl Unnoted {
    /// The key of what is true of every namespace: of one of which there was no room to say so.
    pub const ANYWHERE: u64 = 0;
}

const _: () = assert!(size_of::<Unnoted>() == 16);
