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
    /// Identity options whose tag did not verify, or that were malformed.
    TagsInvalid = 14,
    /// SYNs without an identity option that came from the address of a workload of this node.
    OptionsMissing = 15,
    /// SYNs that were repeated without their identity option, because nobody answered those with it.
    OptionsOmitted = 16,
    /// Segments in which there was no room for the identity option.
    OptionsNoRoom = 17,
    /// SYN cookies: the identity option was asked for once more.
    OptionCookies = 18,
    /// Connections that were answered by somebody else than the one who had been taken for the destination.
    IdentityMismatches = 19,
    /// A workload wrote `net.ipv4.tcp_fastopen`, and it is 0 all the same.
    FastOpenKeptOff = 20,
    /// A workload called somebody in its own namespace, and nothing is noted of that: who is noted nowhere there is nobody for a while.
    Unnoted = 21,
    /// Segments of TCP that the packet guard dropped.
    PacketsRefused = 22,
}

impl Counter {
    /// Slots of the map.
    pub const COUNT: u32 = 23;

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
        Self::TagsInvalid,
        Self::OptionsMissing,
        Self::OptionsOmitted,
        Self::OptionsNoRoom,
        Self::OptionCookies,
        Self::IdentityMismatches,
        Self::FastOpenKeptOff,
        Self::Unnoted,
        Self::PacketsRefused,
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
            Self::TagsInvalid => "tags_invalid",
            Self::OptionsMissing => "options_missing",
            Self::OptionsOmitted => "options_omitted",
            Self::OptionsNoRoom => "options_no_room",
            Self::OptionCookies => "option_cookies",
            Self::IdentityMismatches => "identity_mismatches",
            Self::FastOpenKeptOff => "fast_open_kept_off",
            Self::Unnoted => "unnoted",
            Self::PacketsRefused => "packets_refused",
        }
    }
}
