// SPDX-License-Identifier: Apache-2.0
//! Counts are by the hour. Where rules of one name decided in the hour in which their policy was changed, before that and after,
//! the records of that hour say which.

use std::collections::BTreeSet;

use super::{Archive, ArchiveError};
use crate::audit::query::{
    AddingHits, Begins, CountedByRule, Filter, MAX_LIMIT, RuleHits, next_hour, policy_of,
};
use crate::audit::record::{Kind, Timestamp};

/// Most pages of records that are looked at for one answer.
const MOST_PAGES: u32 = 20;

/// Tells apart what is counted together, as far as few records have to be looked at for that.
pub(super) async fn tell_apart(
    archive: &Archive,
    begins: &Begins,
    hits: &mut RuleHits,
) -> Result<(), ArchiveError> {
    let mixed = hits.iter().filter(|(_, decided)| decided.is_mixed());
    let mixed: BTreeSet<String> = mixed
        .filter_map(|(rule, _)| policy_of(rule.as_deref()?).map(str::to_owned))
        .collect();
    let mut pages = MOST_PAGES;
    for policy in mixed {
        let Some(begin) = begins.of_policy(&policy) else {
            continue;
        };
        let Some(since) = looked_at(archive, &policy, begin, &mut pages).await? else {
            continue;
        };
        for (rule, decided) in hits.iter_mut() {
            if rule.as_deref().and_then(policy_of) == Some(policy.as_str()) {
                decided.tell_apart(None);
            }
        }
        for (rule, decided) in since {
            let found = decided.all();
            hits.entry(rule).or_default().tell_apart(found);
        }
    }
    Ok(())
}

/// What the rules of a policy did from a time on until the end of its hour, record by record; `None` where that is more than there
/// are pages left, or one of them cannot be read.
async fn looked_at(
    archive: &Archive,
    policy: &str,
    begin: Timestamp,
    pages: &mut u32,
) -> Result<Option<RuleHits>, ArchiveError> {
    let filter = Filter {
        kind: Some(Kind::Decision),
        policy: Some(policy.to_owned()),
        since: Some(begin),
        until: Some(next_hour(begin)),
        ..Filter::default()
    };
    let mut adding = AddingHits::default();
    let mut cursor = None;
    while *pages > 0 {
        *pages -= 1;
        let page = archive.query(&filter, cursor, MAX_LIMIT).await?;
        if !page.unreadable.is_empty() {
            return Ok(None);
        }
        let records = page.records.iter().filter_map(|kept| kept.entry.decision());
        records
            .filter_map(CountedByRule::of)
            .for_each(|counted| adding.take(counted));
        cursor = page.next;
        if cursor.is_none() {
            return Ok(Some(adding.done()));
        }
    }
    Ok(None)
}
