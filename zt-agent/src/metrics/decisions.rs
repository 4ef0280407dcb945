// SPDX-License-Identifier: Apache-2.0
//! Decisions by who and whom, with a bound on how many of them there can be.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::fast::RandomState;

use super::MAX_PAIRS;
use crate::audit::names;
use crate::audit::record::{AuditRecord, Outcome};

/// The label of all that has none of its own.
pub(super) const OTHER: &str = "other";

/// Source and destination.
pub(super) type Pair = (Arc<str>, Arc<str>);

/// Counters of one pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) allow: u64,
    pub(super) deny: u64,
}

impl Counts {
    fn add(&mut self, decision: Outcome, times: u64) {
        match decision {
            Outcome::Allow => self.allow += times,
            Outcome::Deny => self.deny += times,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Decisions {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    declared: HashSet<Arc<str>, RandomState>,
    pairs: HashMap<Pair, Counts, RandomState>,
    rest: Counts,
}

impl Decisions {
    pub(super) fn declare(&self, identities: HashSet<Arc<str>>) {
        self.lock().declared = identities.into_iter().collect();
    }

    /// Counts decisions as a record says so often.
    pub(super) fn count(&self, record: &AuditRecord, times: u64) {
        let mut inner = self.lock();
        let source = inner.label(record.source.spiffe_id.as_ref(), record.source.entity.as_ref());
        let destination = inner.label(
            record.destination.spiffe_id.as_ref(),
            record.destination.entity.as_ref(),
        );
        let room = inner.pairs.len() < MAX_PAIRS;
        let pair = (source, destination);
        if let Some(counts) = inner.pairs.get_mut(&pair) {
            counts.add(record.decision, times);
        } else if room {
            inner.pairs.entry(pair).or_default().add(record.decision, times);
        } else {
            inner.rest.add(record.decision, times);
        }
    }

    /// Every pair with its counters, then the rest.
    pub(super) fn all(&self) -> Vec<(Pair, Counts)> {
        let inner = self.lock();
        let mut all: Vec<_> = inner
            .pairs
            .iter()
            .map(|(pair, counts)| (pair.clone(), *counts))
            .collect();
        let other: Arc<str> = Arc::from(OTHER);
        let rest = (Arc::clone(&other), other);
        match all.iter_mut().find(|(pair, _)| *pair == rest) {
            Some((_, counts)) => {
                counts.allow += inner.rest.allow;
                counts.deny += inner.rest.deny;
            }
            None if inner.rest != Counts::default() => all.push((rest, inner.rest)),
            None => {}
        }
        all.sort_by(|(a, _), (b, _)| a.cmp(b));
        all
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn label(&self, spiffe_id: Option<&Arc<str>>, entity: Option<&Arc<str>>) -> Arc<str> {
        let declared = spiffe_id.filter(|id| self.declared.contains(*id));
        let entity = entity.filter(|name| names::is_entity(name) || name.starts_with("cidr:"));
        declared.or(entity).map_or_else(|| Arc::from(OTHER), Arc::clone)
    }
}
