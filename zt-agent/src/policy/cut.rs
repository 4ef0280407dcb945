// SPDX-License-Identifier: Apache-2.0
//! What a table says about two parties at every port: the ports cut where its entries begin and end, and one verdict for
//! each piece.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use zt_common::entry::{AllowKey, Flow, PROTOCOL_RAW};
use zt_common::identity;
use zt_common::verdict::Verdict;

use super::action::Protocol;
use super::hash::FastMap;
use super::ports::PortRange;
use super::table::{AllowTable, Decision};

/// What policy makes of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Outcome {
    /// Allowed.
    Allow,
    /// Allowed to who proves in the handshake who it is.
    AllowWithProof,
    /// Denied.
    Deny,
}

impl Outcome {
    /// The word for programs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Allow => "ALLOW",
            Self::AllowWithProof => "ALLOW_WITH_PROOF",
            Self::Deny => "DENY",
        }
    }

    /// Whether it is allowed, with proof or without.
    pub const fn is_allowed(self) -> bool {
        !matches!(self, Self::Deny)
    }
}

impl From<&Verdict> for Outcome {
    fn from(verdict: &Verdict) -> Self {
        match (verdict.allowed, verdict.proof) {
            (false, _) => Self::Deny,
            (true, true) => Self::AllowWithProof,
            (true, false) => Self::Allow,
        }
    }
}

impl From<&Decision> for Outcome {
    fn from(decision: &Decision) -> Self {
        match (decision.allowed, decision.proof_required) {
            (false, _) => Self::Deny,
            (true, true) => Self::AllowWithProof,
            (true, false) => Self::Allow,
        }
    }
}

/// Where an entry begins and ends, its protocol, and what it does.
type Piece = (u8, u16, u16, u64);

/// A table with its entries by the parties that they are about.
pub(super) struct Cut<'t> {
    table: &'t AllowTable,
    pieces: FastMap<(u64, u64), Vec<Piece>>,
}

impl<'t> Cut<'t> {
    pub(super) fn new(table: &'t AllowTable) -> Self {
        let mut pieces: FastMap<(u64, u64), Vec<Piece>> = FastMap::default();
        for (key, entry) in table.entries() {
            if key == AllowKey::HEADER || key.protocol == PROTOCOL_RAW {
                continue;
            }
            let size = 1_u32 << (16 - u32::from(key.port_bits.min(16)));
            let last = (u32::from(key.port) + size - 1).min(u32::from(u16::MAX)) as u16;
            pieces.entry((key.source, key.destination)).or_default().push((
                key.protocol,
                key.port,
                last,
                entry.bits,
            ));
        }
        for pieces in pieces.values_mut() {
            pieces.sort_unstable();
        }
        Self { table, pieces }
    }

    pub(super) const fn table(&self) -> &'t AllowTable {
        self.table
    }

    /// The parties that entries are about, wildcards as [`identity::ANY`].
    pub(super) fn pairs(&self) -> impl Iterator<Item = (u64, u64)> {
        self.pieces.keys().copied()
    }

    /// What the entries under exactly these numbers say.
    pub(super) fn under(&self, source: u64, destination: u64) -> &[Piece] {
        self.pieces.get(&(source, destination)).map_or(&[], Vec::as_slice)
    }

    /// The lists of entries that are about a flow between two parties.
    pub(super) fn about(&self, source: u64, destination: u64) -> [&[Piece]; 4] {
        let (any_source, any_destination) =
            (identity::is_workload(source), identity::is_workload(destination));
        let under = |applies: bool, source, destination| {
            if applies {
                self.under(source, destination)
            } else {
                &[][..]
            }
        };
        [
            self.under(source, destination),
            under(any_source, identity::ANY, destination),
            under(any_destination, source, identity::ANY),
            under(any_source && any_destination, identity::ANY, identity::ANY),
        ]
    }

    pub(super) fn verdict(&self, source: u64, destination: u64, port: u16, protocol: Protocol) -> Verdict {
        self.table.decide(&Flow {
            source,
            destination,
            port,
            protocol: protocol.number(),
        })
    }
}

/// All ports, cut where any of these entries of a protocol begins or ends.
pub(super) fn ranges<'p>(pieces: impl Iterator<Item = &'p [Piece]>, protocol: Protocol) -> Vec<PortRange> {
    let mut starts = BTreeSet::from([1_u32]);
    for (_, first, last, _) in pieces
        .flatten()
        .filter(|(number, ..)| *number == protocol.number())
    {
        starts.insert(u32::from(*first).max(1));
        starts.insert(u32::from(*last) + 1);
    }
    starts.remove(&(u32::from(u16::MAX) + 1));
    let starts: Vec<u16> = starts.into_iter().map(|start| start as u16).collect();
    let ends = starts.iter().skip(1).map(|next| next - 1).chain([u16::MAX]);
    let ranges = starts.iter().zip(ends);
    ranges
        .map(|(first, last)| PortRange { first: *first, last })
        .collect()
}

/// Adds a range to a list in order, joined with the last one where they touch.
pub(super) fn extend(ranges: &mut Vec<PortRange>, more: PortRange) {
    match ranges.last_mut() {
        Some(open) if u32::from(more.first) <= u32::from(open.last) + 1 => {
            open.last = open.last.max(more.last);
        }
        _ => ranges.push(more),
    }
}

/// Ranges as texts; none where they are all ports.
pub(super) fn texts(ranges: &[PortRange]) -> Vec<String> {
    match ranges {
        [
            PortRange {
                first: 1,
                last: u16::MAX,
            },
        ] => Vec::new(),
        _ => ranges.iter().map(ToString::to_string).collect(),
    }
}
