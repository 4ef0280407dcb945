// SPDX-License-Identifier: Apache-2.0
//! `zt_control`: the one-entry array of switches that are not policy.

/// The managed roots that one node may have.
pub const MAX_ROOTS: usize = 4;

/// A managed cgroup: the hooks are attached to it, and everything below it is ours.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Root {
    /// Cgroup id; 0 in an unused slot.
    pub id: u64,
    /// Its depth below the cgroup2 mount (the mount itself is 0).
    pub level: u32,
    /// Always zero.
    pub reserved: u32,
}

/// Value of `zt_control`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Control {
    /// Or of the constants of this module. First in every version of the layout, as [`OBSERVE_ALL`] is bit 0 in every
    /// version: break-glass outlives a change of version.
    pub flags: u64,
    /// Counts changes of who is who (identities, addresses, services): cached UDP decisions of an older count are asked again.
    pub directory: u64,
    /// Cookie of the host's network namespace.
    pub host_netns: u64,
    /// Epoch of the key that tags are made with; 0 before there is one.
    pub epoch: u64,
    /// The managed roots.
    pub roots: [Root; MAX_ROOTS],
}

impl Control {
    /// One number of who is who and of the flags: as long as it stays the same, what a policy says of two ends is what it said.
    #[inline(always)]
    pub const fn standing(&self) -> u64 {
        self.directory.wrapping_add(self.flags << 48)
    }
}

/// Break-glass: nothing is refused on this node, whatever the modes say.
pub const OBSERVE_ALL: u64 = 1;
/// A process under a managed root that never had an identity is enforced upon, not just observed.
pub const UNKNOWN_DENY: u64 = 2;
/// `zt_services` has entries.
pub const HAS_SERVICES: u64 = 4;
/// Some workload of this node is enforced upon, so that what belongs to no workload may be refused too.
pub const HAS_ENFORCED: u64 = 16;
/// Break-glass was put on by hand, without the agent, and has no record yet. The programs do not look at this.
pub const UNRECORDED_OBSERVE: u64 = 32;
/// Break-glass was taken off by hand, without the agent, and has no record yet. The programs do not look at this.
pub const UNRECORDED_RESTORE: u64 = 64;
/// Handshakes within the node bear identities.
pub const HANDSHAKE: u64 = 128;
/// The programs of another version still bear identities in handshakes, and decide who has to prove something: these here do not.
pub const PROOF_WAITS: u64 = 256;
/// Rare kernel-side diagnostics are written to the log ring.
pub const DIAGNOSTICS: u64 = 8;

const _: () = assert!(core::mem::offset_of!(Control, flags) == 0 && OBSERVE_ALL == 1);
const _: () = assert!(size_of::<Root>() == 16);
const _: () = assert!(size_of::<Control>() == 32 + 16 * MAX_ROOTS);
