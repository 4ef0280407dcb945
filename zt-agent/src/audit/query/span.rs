// SPDX-License-Identifier: Apache-2.0
//! When connections were, by what was decided.

use super::graph::Connections;
use crate::audit::record::Timestamp;

/// From the first to the last of some connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The first.
    pub first: Timestamp,
    /// The last.
    pub last: Timestamp,
}

impl Span {
    /// What holds both.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            first: self.first.min(other.first),
            last: self.last.max(other.last),
        }
    }
}

/// When connections were, by what was decided; `None` where there were none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// Those that policy allowed.
    pub allowed: Option<Span>,
    /// Those that were refused.
    pub denied: Option<Span>,
    /// Those that policy denied and nothing refused.
    pub would_deny: Option<Span>,
}

impl Spans {
    /// Takes in when these were, as what they were decided.
    pub(super) fn take(&mut self, connections: &Connections) {
        let span = Span {
            first: connections.first_seen,
            last: connections.last_seen,
        };
        let of = match (connections.denied, connections.enforced) {
            (true, true) => &mut self.denied,
            _ if connections.corrects => return,
            (false, _) => &mut self.allowed,
            (true, false) => &mut self.would_deny,
        };
        *of = Some(of.map_or(span, |known| known.with(span)));
    }

    /// Takes in others.
    pub(super) fn join(&mut self, other: Self) {
        let both = |one: Option<Span>, other: Option<Span>| one.into_iter().chain(other).reduce(Span::with);
        self.allowed = both(self.allowed, other.allowed);
        self.denied = both(self.denied, other.denied);
        self.would_deny = both(self.would_deny, other.would_deny);
    }
}
