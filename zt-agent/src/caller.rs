// SPDX-License-Identifier: Apache-2.0
//! Who may use the API from other machines, and for what.

use crate::spiffe_id::{Pattern, SpiffeId};

/// What a caller may do. Each role has what the ones before it have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Ask for decisions.
    Evaluate,
    /// Read everything.
    Read,
    /// Change policy and mode.
    Admin,
}

impl Role {
    /// From the word in the configuration.
    pub fn from_name(name: &str) -> Option<Self> {
        match name {
            "evaluate" => Some(Self::Evaluate),
            "read" => Some(Self::Read),
            "admin" => Some(Self::Admin),
            _ => None,
        }
    }

    /// The word in the configuration and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Evaluate => "evaluate",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }
}

/// One entry of `api.callers`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerRule {
    /// Whose certificates it is about.
    pub spiffe: Pattern,
    /// What they may do.
    pub role: Role,
}

/// What `id` may do: the most that any rule gives it.
pub fn role_of(rules: &[CallerRule], id: &SpiffeId) -> Option<Role> {
    rules
        .iter()
        .filter(|rule| rule.spiffe.matches(id))
        .map(|rule| rule.role)
        .max()
}
