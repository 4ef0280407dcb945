// SPDX-License-Identifier: Apache-2.0
//! Who is at an address of a node by its agent's word, and what shows it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::spiffe_id::SpiffeId;
use crate::tls::NO_AUTHORITY;

/// What shows that an identity lives there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evidence {
    /// When it ends, Unix seconds.
    pub expires: i64,
    /// The number of the authority that it rests on, or [`NO_AUTHORITY`]: the configuration says so.
    #[serde(default)]
    pub authority: u64,
}

impl Evidence {
    /// That the configuration says so.
    pub const CONFIGURED: Self = Self {
        expires: i64::MAX,
        authority: NO_AUTHORITY,
    };
}

/// Who is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing<'t> {
    /// Shown to live there.
    Shown(&'t SpiffeId),
    /// Said to, and no more.
    Silent(&'t SpiffeId),
}

/// How many are believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Addresses of whom it has shown to live there.
    pub addresses: usize,
    /// Identities that it has shown to hold.
    pub identities: usize,
    /// Addresses of others.
    pub silent: usize,
    /// Some of these.
    pub some_silent: Vec<(IpAddr, SpiffeId)>,
}

impl Counts {
    /// How many silent ones are named.
    pub(super) const MOST_NAMED: usize = 16;
}
