// SPDX-License-Identifier: Apache-2.0
//! The allow table: one flat hash from (source, destination, port block, protocol) to a rule.
//!
//! A port range is never expanded to one entry a port. It is cut into aligned blocks of 1, 16, 256, 4096 or 65536
//! ports; an entry names a block by its first port and its number of significant bits. A wildcard source or
//! destination is [`identity::ANY`]. Which of the 20 resulting *shapes* (5 block sizes × 4 wildcard combinations) occur in a
//! table stands in its header, so that a decision looks up only those: one, for a policy of plain rules.
//!
//! The header, with the revision, is an entry of the same table: swapping the table swaps both.

use crate::identity;

/// Key of the allow table and of its header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
pub struct AllowKey {
    /// Number of the source identity, or [`identity::ANY`].
    pub source: u64,
    /// Number of the destination identity, or [`identity::ANY`].
    pub destination: u64,
    /// First port of the block, host byte order.
    pub port: u16,
    /// IP protocol number: 6 (TCP) or 17 (UDP); 255 with [`identity::RAW_SOCKETS`]; 0 in the header's key.
    pub protocol: u8,
    /// Significant bits of the port: one of [`PORT_BITS`].
    pub port_bits: u8,
    /// Always zero.
    pub reserved: u32,
}

/// Value of the allow table: a rule, or the header.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AllowEntry {
    /// Number of the rule's name; in the header, the revision.
    pub number: u64,
    /// [`ACTION_ALLOW`], with or without [`REQUIRES_PROOF`], or [`ACTION_DENY`]; in the header, [`Shapes`].
    pub bits: u64,
}

/// The rule allows.
pub const ACTION_ALLOW: u64 = 1;
/// The rule denies, and beats every rule that allows.
pub const ACTION_DENY: u64 = 2;
/// The rule allows those alone who prove in their handshake who they are. Beside [`ACTION_ALLOW`].
pub const REQUIRES_PROOF: u64 = 4;

/// Protocol number under which the right to raw sockets is filed.
pub const PROTOCOL_RAW: u8 = 255;

/// Sizes of port blocks, as significant bits, the finest first.
pub const PORT_BITS: [u8; 5] = [16, 12, 8, 4, 0];
/// Shapes a table may have: [`PORT_BITS`] × {exact, any destination, any source, any both}.
pub const SHAPES: u32 = 20;

impl AllowKey {
    /// Where the header of a table stands.
    pub const HEADER: Self = Self {
        source: 0,
        destination: 0,
        port: 0,
        protocol: 0,
        port_bits: 0,
        reserved: 0,
    };

    /// The key under which `flow` would be found in a given shape.
    ///
    /// `shape` must be below [`SHAPES`]; a wildcard shape must only be used for a party that is a workload.
    #[inline(always)]
    pub const fn for_shape(flow: &Flow, shape: u32) -> Self {
        // 4 bits a step: shape % 5 picks the block size without a table in read-only memory.
        let port_bits = 16 - 4 * (shape % 5);
        let combination = shape / 5;
        // A shift of 16 is out of range for u16, not for u32.
        let mask = (0xffff_0000_u32 >> port_bits) as u16;
        Self {
            source: if combination & 2 == 0 {
                flow.source
            } else {
                identity::ANY
            },
            destination: if combination & 1 == 0 {
                flow.destination
            } else {
                identity::ANY
            },
            port: flow.port & mask,
            protocol: flow.protocol,
            port_bits: port_bits as u8,
            reserved: 0,
        }
    }

    /// The shape this key has, if it has one.
    pub const fn shape(&self) -> Option<u32> {
        let step = match self.port_bits {
            16 => 0,
            12 => 1,
            8 => 2,
            4 => 3,
            0 => 4,
            _ => return None,
        };
        let source = (self.source == identity::ANY) as u32;
        let destination = (self.destination == identity::ANY) as u32;
        Some((source * 2 + destination) * 5 + step)
    }
}

/// What a decision is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Number of the source identity.
    pub source: u64,
    /// Number of the destination identity.
    pub destination: u64,
    /// Target port (after service translation), host byte order.
    pub port: u16,
    /// IP protocol number.
    pub protocol: u8,
}

/// The bits of a table's header: which shapes allow, which deny, and the switches that are part of the policy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Shapes(pub u64);

impl Shapes {
    const DENY_SHIFT: u32 = 20;
    const PROOF_SHIFT: u32 = 40;
    const MASK: u64 = (1 << SHAPES) - 1;
    /// What no rule names is allowed.
    pub const DEFAULT_ALLOW: u64 = 1 << 60;
    /// The rule `builtin/self` is on.
    pub const SELF: u64 = 1 << 61;
    /// The rule `builtin/host` is on.
    pub const HOST: u64 = 1 << 62;
    /// Which slot of `zt_networks` holds the networks of this table. Set by whoever writes the table into the kernel.
    pub const NETWORK_SLOT: u64 = 1 << 63;

    /// Notes that the table has an entry of `shape` with these [`AllowEntry::bits`].
    #[must_use]
    pub const fn with(self, shape: u32, bits: u64) -> Self {
        let shift = if bits & ACTION_DENY != 0 {
            Self::DENY_SHIFT
        } else {
            0
        };
        let proof = if bits & REQUIRES_PROOF != 0 {
            1 << (shape + Self::PROOF_SHIFT)
        } else {
            0
        };
        Self(self.0 | 1 << (shape + shift) | proof)
    }

    /// Shapes that hold a rule which denies, as a bit mask.
    #[inline(always)]
    pub const fn denying(self) -> u32 {
        ((self.0 >> Self::DENY_SHIFT) & Self::MASK) as u32
    }

    /// Shapes that hold a rule which requires proof, as a bit mask.
    #[inline(always)]
    pub const fn requiring(self) -> u32 {
        ((self.0 >> Self::PROOF_SHIFT) & Self::MASK) as u32
    }

    /// Shapes that hold a rule which allows, as a bit mask.
    #[inline(always)]
    pub const fn allowing(self) -> u32 {
        (self.0 & Self::MASK) as u32
    }

    /// Whether a switch is on.
    #[inline(always)]
    pub const fn has(self, switch: u64) -> bool {
        self.0 & switch != 0
    }
}

const _: () = assert!(size_of::<AllowKey>() == 24);
const _: () = assert!(size_of::<AllowEntry>() == 16);
