// SPDX-License-Identifier: Apache-2.0
//! What is expected of every store: the tests of PostgreSQL include this file, and each names what is used from above.

use super::{AuditRecord, GraphFilter, HOUR, Hits, Outcome, Timestamp};

/// What a rule decided from a time on, the long way.
pub(super) fn walked(
    records: &[AuditRecord],
    rule: Option<&str>,
    filter: &GraphFilter,
    since: Option<Timestamp>,
) -> Option<Hits> {
    let (first, last) = filter.hours();
    let is_meant = |record: &&AuditRecord| {
        let hour = record.timestamp.0.div_euclid(HOUR);
        record.policy_matched.as_deref() == rule
            && (first..=last).contains(&hour)
            && since.is_none_or(|since| record.timestamp >= since)
    };
    let mut hits: Option<Hits> = None;
    for record in records.iter().filter(is_meant) {
        let hits = hits.get_or_insert(Hits {
            allowed: 0,
            denied: 0,
            would_deny: 0,
            first_seen: record.timestamp,
            last_seen: record.timestamp,
        });
        hits.first_seen = hits.first_seen.min(record.timestamp);
        hits.last_seen = hits.last_seen.max(record.timestamp);
        match (record.decision, record.enforced) {
            (Outcome::Allow, _) => hits.allowed += record.count,
            (Outcome::Deny, true) => hits.denied += record.count,
            (Outcome::Deny, false) => hits.would_deny += record.count,
        }
    }
    hits
}
