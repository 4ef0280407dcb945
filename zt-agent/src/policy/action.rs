// SPDX-License-Identifier: Apache-2.0
//! What a rule does, and to which protocol.

use zt_common::entry::{ACTION_ALLOW, ACTION_DENY};

/// Whether a rule allows or denies.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Action {
    /// The flow may happen, unless another rule denies it.
    #[default]
    Allow,
    /// The flow may not happen, whatever other rules say.
    Deny,
}

impl Action {
    /// The words that documents use.
    pub const NAMES: [&str; 2] = ["ALLOW", "DENY"];

    /// From the word in a document.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "ALLOW" => Some(Self::Allow),
            "DENY" => Some(Self::Deny),
            _ => None,
        }
    }

    /// The word in documents and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
        }
    }

    /// The bits of its entries in the allow table.
    pub(super) const fn bits(self) -> u64 {
        match self {
            Self::Allow => ACTION_ALLOW,
            Self::Deny => ACTION_DENY,
        }
    }
}

/// A transport protocol that policy speaks about.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Protocol {
    /// TCP, and the default.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The words that documents use.
    pub const NAMES: [&str; 2] = ["TCP", "UDP"];

    /// From the word in a document.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Self::Tcp),
            "UDP" => Some(Self::Udp),
            _ => None,
        }
    }

    /// The word in documents and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}
