// SPDX-License-Identifier: Apache-2.0
//! What the agent itself failed at, had to make up for, or found too late to know better.

use std::sync::atomic::{AtomicU64, Ordering};

/// Something that the node thread counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// A sweep, or the destruction of a socket that it revoked, failed; it is tried again.
    SweepFailed,
    /// A connection that policy revoked had ended by itself before it could be destroyed.
    RevokedGone,
    /// A refused and fenced socket could not be destroyed; it is tried again.
    DestroyFailed,
    /// The ring buffer had lost something: every socket was looked at to make up for it.
    Recovered,
    /// A fenced socket was found alive that nobody had told of.
    FencedFound,
    /// The guard of a workload's datagrams could not be attached; it is tried again.
    GuardFailed,
    /// A change of workloads or cgroups could not be written whole; it is tried again.
    MergeFailed,
    /// A raw, ICMP or SCTP socket older than enforcement was cut off.
    RawFenced,
    /// A raw, ICMP or SCTP socket older than enforcement could not be cut off.
    RawLeft,
    /// Two identity sources gave one cgroup different identities.
    IdentityDisputed,
    /// A virtual address and port had no room in the kernel's map.
    ServicesLeftOut,
    /// A group of those behind a virtual address had no room in the allow table.
    GroupsLeftOut,
    /// The API told of a Service or an `EndpointSlice` that there was no room for.
    ServicesTooMany,
    /// A name became nobody, as another one has its number.
    IdentityAlike,
    /// An older listener or connection, or a namespace's address, had no room in the kernel's map.
    KernelMapFull,
}

impl NodeEvent {
    /// Each of them, in order.
    pub const ALL: [Self; 15] = [
        Self::SweepFailed,
        Self::RevokedGone,
        Self::DestroyFailed,
        Self::Recovered,
        Self::FencedFound,
        Self::GuardFailed,
        Self::MergeFailed,
        Self::RawFenced,
        Self::RawLeft,
        Self::IdentityDisputed,
        Self::ServicesLeftOut,
        Self::GroupsLeftOut,
        Self::ServicesTooMany,
        Self::IdentityAlike,
        Self::KernelMapFull,
    ];

    /// Its label.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SweepFailed => "sweep_failed",
            Self::RevokedGone => "revoked_gone",
            Self::DestroyFailed => "destroy_failed",
            Self::Recovered => "recovered",
            Self::FencedFound => "fenced_found",
            Self::GuardFailed => "guard_failed",
            Self::MergeFailed => "merge_failed",
            Self::RawFenced => "raw_fenced",
            Self::RawLeft => "raw_left",
            Self::IdentityDisputed => "identity_disputed",
            Self::ServicesLeftOut => "services_left_out",
            Self::GroupsLeftOut => "service_groups_left_out",
            Self::ServicesTooMany => "services_too_many",
            Self::IdentityAlike => "identity_alike",
            Self::KernelMapFull => "kernel_map_full",
        }
    }
}

/// The counters.
#[derive(Debug, Default)]
pub(super) struct NodeEvents([AtomicU64; NodeEvent::ALL.len()]);

impl NodeEvents {
    pub(super) fn add(&self, event: NodeEvent, count: u64) {
        if let Some(counter) = self.0.get(event as usize) {
            counter.fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (NodeEvent, u64)> + '_ {
        NodeEvent::ALL
            .into_iter()
            .zip(&self.0)
            .map(|(event, counter)| (event, counter.load(Ordering::Relaxed)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_its_own_counter() {
        let events = NodeEvents::default();
        for (times, event) in NodeEvent::ALL.into_iter().enumerate() {
            events.add(event, times as u64);
        }
        let counts: Vec<u64> = events.all().map(|(_, count)| count).collect();
        assert_eq!(counts, (0..NodeEvent::ALL.len() as u64).collect::<Vec<_>>());
    }
}
