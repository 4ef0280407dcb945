// SPDX-License-Identifier: Apache-2.0
//! Other nodes, and the keys of the tags that prove identities.

use crate::handshake::EPOCH_MASK;

/// Value of `zt_nodes`, keyed by the number that this agent has given the other node (`u32`, at least 1): the same one as
/// long as this node is up.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// Epoch of the key in use towards it; 0: there is none, so that no option is sent.
    pub epoch: u64,
    /// Always zero.
    pub reserved: u64,
}

/// Key of `zt_residents`: an identity that the agent of a node has proven to hold there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ResidentKey {
    /// Number of the node.
    pub node: u32,
    /// Always zero.
    pub reserved: u32,
    /// Number of the identity.
    pub identity: u64,
}

/// Value of `zt_homes`, keyed by the number of an identity (`u64`): nodes of `zt_residents` on which it lives.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Homes {
    /// Their numbers, then zeros. Of more than fit, any.
    pub nodes: [u32; MOST_HOMES],
}

/// Most nodes that are tried for who answers from behind a virtual address.
pub const MOST_HOMES: usize = 8;

/// Key of `zt_keys`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct KeyId {
    /// With whom the key is shared: [`WITHIN`], or what [`KeyId::to`] and [`KeyId::from`] make of a node's number.
    pub peer: u64,
    /// Within the node, its epoch: the one in use is [`crate::control::Control::epoch`]; the one before is still accepted.
    /// Between nodes, its epoch modulo four: what is there is accepted, and [`Node::epoch`] is in use.
    pub epoch: u64,
}

/// The key of connections that stay on this node.
pub const WITHIN: u64 = 0;

impl KeyId {
    /// The key of what is sent to a node.
    #[inline(always)]
    pub const fn to(node: u32, epoch: u64) -> Self {
        Self {
            peer: node as u64 * 2,
            epoch: epoch & EPOCH_MASK,
        }
    }

    /// The key of what a node sends: another one, so that what is sent back to where it came from does not verify.
    #[inline(always)]
    pub const fn from(node: u32, epoch: u64) -> Self {
        Self {
            peer: node as u64 * 2 + 1,
            epoch: epoch & EPOCH_MASK,
        }
    }

    /// The node with which the key is shared; `None`: it stays on this one.
    pub const fn node(&self) -> Option<u32> {
        let node = self.peer / 2;
        if node == 0 || node > u32::MAX as u64 {
            return None;
        }
        Some(node as u32)
    }
}

/// Value of `zt_keys`. Written once: no program ever sees half of one. It cannot be printed.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct NodeKey {
    /// See [`crate::siphash::Key`].
    pub k0: u64,
    /// See [`crate::siphash::Key`].
    pub k1: u64,
    /// When it was made, `CLOCK_BOOTTIME` nanoseconds.
    pub made: u64,
}

const _: () = assert!(size_of::<Node>() == 16);
const _: () = assert!(size_of::<ResidentKey>() == 16);
const _: () = assert!(size_of::<Homes>() == 4 * MOST_HOMES);
const _: () = assert!(size_of::<KeyId>() == 16);
const _: () = assert!(size_of::<NodeKey>() == 24);
