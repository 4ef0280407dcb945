// SPDX-License-Identifier: Apache-2.0
//! Sockets that take the right to raw sockets: raw ones, and those of protocols other than TCP and UDP.

use std::collections::BTreeMap;
use std::sync::Arc;

use zt_common::verdict::Reason;

use super::graph::{Connections, Edge};
use super::span::Spans;
use super::{Fold, GraphFilter, TooMuch};

/// Sockets of one party and protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawSeen {
    /// Whose, and how often they were opened: to `raw-sockets`, at port 0.
    pub edge: Edge,
    /// Whether they were of multipath TCP and not allowed: programs take TCP where they are refused.
    pub multipath: bool,
    /// When, by what was decided.
    pub spans: Spans,
}

/// Adds sockets up, in any order.
#[derive(Debug)]
pub struct AddingRaw<'f> {
    filter: &'f GraphFilter,
    most: usize,
    seen: BTreeMap<(Arc<str>, u8, bool), RawSeen>,
}

impl<'f> AddingRaw<'f> {
    /// Nothing yet of what the filter asks for, which are as many as connections at most.
    pub fn new(filter: &'f GraphFilter, fold: &Fold) -> Self {
        Self {
            filter,
            most: fold.most(),
            seen: BTreeMap::new(),
        }
    }

    /// Counts these, which were decided for that reason, as far as the filter asks for them.
    pub fn take(&mut self, sockets: &Connections, reason: &str) -> Result<(), TooMuch> {
        if !self.filter.takes(&sockets.source, &sockets.destination) {
            return Ok(());
        }
        let multipath = reason == Reason::Mptcp.name();
        let key = (Arc::clone(&sockets.source), sockets.protocol, multipath);
        let seen = self.seen.entry(key).or_insert_with(|| RawSeen {
            edge: Edge::of(sockets),
            multipath,
            spans: Spans::default(),
        });
        seen.edge.take(sockets);
        seen.spans.take(sockets);
        if self.seen.len() > self.most {
            return Err(TooMuch::Seen(self.most));
        }
        Ok(())
    }

    /// All of them, in order.
    pub fn done(self) -> Vec<RawSeen> {
        self.seen.into_values().collect()
    }
}
