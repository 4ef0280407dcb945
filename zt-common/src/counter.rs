// SPDX-License-Identifier: Apache-2.0
//! `zt_counters`: exact per-CPU counters beside the ring buffer.
//!
//! The first four count *decisions*, each exactly once, when its record is handed to the ring buffer or lost there:
//! their sum equals records received plus [`Counter::EventsLost`].

/// Slots of `zt_counters`. The numbers are part of the ABI.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Counter {
    /// Allowed by policy, at an end that observes.
    AllowedObserved = 0,
    /// Allowed by policy, at an end that enforces.
    AllowedEnforced = 1,
    /// Denied by policy, at an end that only observes.
    DeniedObserved = 2,
    /// Denied by policy, and refused.
    DeniedEnforced = 3,
    /// Records that found the ring buffer full.
    EventsLost = 4,
    /// Inbound connections on which this end agreed with a source that records itself: no record of their own.
    Agreed = 5,
    /// Refused sockets that the sockhash would not take.
    FenceHashFailed = 6,
    /// Refused sockets that could not be bound to the interface that does not exist.
    FenceBindFailed = 7,
    /// Refused sockets that neither fence held.
    Unfenced = 8,
    /// Datagrams refused or dropped under a decision that was already recorded.
    DatagramsRefused = 9,
    /// `zt_connections` was full: the connection was admitted and will not be found by a sweep of the table.
    ConnectionsFull = 10,
    /// `zt_listeners` was full: a listener is not known by its owner.
    ListenersFull = 11,
    /// A socket accepted a connection and nothing was known of its owner.
    OwnerMissing = 12,
    /// Notices that found the ring buffer full.
    NoticesLost = 13,
}

impl Counter {
    /// Slots of the map.
    pub const COUNT: u32 = 14;

    /// All counters, by slot.
    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::AllowedObserved,
        Self::AllowedEnforced,
        Self::DeniedObserved,
        Self::DeniedEnforced,
        Self::EventsLost,
        Self::Agreed,
        Self::FenceHashFailed,
        Self::FenceBindFailed,
        Self::Unfenced,
        Self::DatagramsRefused,
        Self::ConnectionsFull,
        Self::ListenersFull,
        Self::OwnerMissing,
        Self::NoticesLost,
    ];

    /// The name in `status` and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::AllowedObserved => "allowed_observed",
            Self::AllowedEnforced => "allowed_enforced",
            Self::DeniedObserved => "denied_observed",
            Self::DeniedEnforced => "denied_enforced",
            Self::EventsLost => "events_lost",
            Self::Agreed => "agreed",
            Self::FenceHashFailed => "fence_hash_failed",
            Self::FenceBindFailed => "fence_bind_failed",
            Self::Unfenced => "unfenced",
            Self::DatagramsRefused => "datagrams_refused",
            Self::ConnectionsFull => "connections_full",
            Self::ListenersFull => "listeners_full",
            Self::OwnerMissing => "owner_missing",
            Self::NoticesLost => "notices_lost",
        }
    }
}
