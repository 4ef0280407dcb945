// SPDX-License-Identifier: Apache-2.0
//! Which addresses are one to whoever asks, so that a node that the whole world calls has no more connections than there are
//! classes of addresses.

use std::fmt::Debug;
use std::net::IpAddr;
use std::sync::Arc;

use super::graph::Connections;

/// Most different connections that a command takes in.
pub const MAX_SEEN: usize = 1_000_000;
/// Most of an answer over the API: an agent has other things to do, and little memory.
pub const MAX_ANSWERED: usize = 20_000;
/// Most counts of single addresses that a command adds up.
const MAX_ADDRESSES: usize = 10_000_000;
/// Most that are added up for an answer over the API.
pub const MAX_ADDRESSES_ANSWERED: usize = 1_000_000;
/// Most bytes that an answer over the API may take for connections whose addresses are still to be read, as estimated from above: an
/// agent may have as little as 128 MiB for all that it does.
pub const MAX_BYTES_ANSWERED: usize = 64 << 20;

/// Tells addresses apart that no workload has.
pub trait Classes: Debug + Send + Sync {
    /// The number of an address: those of one number are one.
    fn class(&self, address: IpAddr) -> u64;
}

/// How connections of ends without a name are told apart, and how many are taken in.
#[derive(Clone, Debug)]
pub struct Fold {
    /// `None`: each address is one.
    classes: Option<Arc<dyn Classes>>,
    /// So many addresses of the world that a source reached are one each, and all where there are more.
    few: usize,
    /// Whether those count that were refused.
    of_refused: bool,
    most: usize,
    most_addresses: usize,
    most_bytes: usize,
}

/// Where an end was, as far as it is told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum At {
    /// It has a name of its own, or its address is not known.
    Nowhere,
    /// At this address.
    One(IpAddr),
    /// At one of those of this number.
    Class(u64),
}

impl Fold {
    /// Each address is one.
    pub const fn nothing() -> Self {
        Self {
            classes: None,
            few: 0,
            of_refused: false,
            most: MAX_SEEN,
            most_addresses: MAX_ADDRESSES,
            most_bytes: usize::MAX,
        }
    }

    /// Addresses of one class are one.
    pub fn by(classes: Arc<dyn Classes>) -> Self {
        Self {
            classes: Some(classes),
            ..Self::nothing()
        }
    }

    /// The same, but that up to `few` addresses of the world that a source reached are one each. Without `of_refused`, those
    /// where all was refused are not among them.
    #[must_use]
    pub fn but_for_few(self, few: usize, of_refused: bool) -> Self {
        Self {
            few,
            of_refused,
            ..self
        }
    }

    /// The same, with other bounds: of different connections, and of counts of single addresses.
    #[must_use]
    pub fn at_most(self, most: usize, most_addresses: usize) -> Self {
        Self {
            most,
            most_addresses,
            ..self
        }
    }

    /// The same, which keeps no more bytes of connections whose addresses are still to be read.
    #[must_use]
    pub fn within(self, most_bytes: usize) -> Self {
        Self { most_bytes, ..self }
    }

    pub(super) const fn most(&self) -> usize {
        self.most
    }

    pub(in crate::audit) const fn most_addresses(&self) -> usize {
        self.most_addresses
    }

    pub(in crate::audit) const fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    pub(super) const fn few(&self) -> usize {
        self.few
    }

    /// Where an end is that is known by its address.
    pub(super) fn at(&self, address: Option<IpAddr>) -> At {
        match (address, &self.classes) {
            (None, _) => At::Nowhere,
            (Some(address), None) => At::One(address),
            (Some(address), Some(classes)) => At::Class(classes.class(address)),
        }
    }

    /// Whether the destination of these is one of its own where its source reached few.
    pub(super) fn looks_for_few(&self, connections: &Connections) -> bool {
        let refused = connections.denied && connections.enforced;
        self.few > 0 && &*connections.destination == "world" && (self.of_refused || !refused)
    }
}
