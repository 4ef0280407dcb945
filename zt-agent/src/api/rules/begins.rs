// SPDX-License-Identifier: Apache-2.0
//! Since when the rules in force are what they are: by the changes of policy that are in the trail, and by what this agent saw.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::api::ApiState;
use crate::api::changes::{MAX_STATEMENTS, Noted};
use crate::audit::archive::ArchiveError;
use crate::audit::clock;
use crate::audit::query::{Begins, Filter, HOUR, Shown};
use crate::audit::record::{Change, Kind, Timestamp};
use crate::policy::{AnyPolicy, PolicySet};

/// Changes that are looked at for one answer: a page has this many, and there are so many pages.
const PAGE: u32 = 100;
const MOST_PAGES: u32 = 20;

/// When each policy of a set that was changed since the hour of a time began. Where that cannot be told, it is the latest that it
/// can have been: what was counted before is then left out, and nothing of another rule is counted. Where what came into force here
/// last is not seen yet (`is_seen`), that is now.
pub(super) async fn begins(
    state: &ApiState,
    policies: &PolicySet,
    since: Option<Timestamp>,
    is_seen: bool,
) -> Result<Begins, ArchiveError> {
    let since = since.map(|since| Timestamp(since.0.div_euclid(HOUR).saturating_mul(HOUR)));
    let mut search = Search::new(policies, state.changes().noted());
    let now = Timestamp(clock::now());
    if !is_seen {
        search.all_at(now);
        return Ok(search.done(since));
    }
    let filter = Filter {
        kind: Some(Kind::PolicyChange),
        since,
        // What is dated later is not true, whichever node said it: believed, it would leave out all that is counted until then.
        until: Some(now),
        ..Filter::default()
    };
    let mut cursor = None;
    for _ in 0..MOST_PAGES {
        let page = state.store.query(&filter, cursor, PAGE).await?;
        cursor = page.next;
        for shown in page.into_shown() {
            match &shown {
                Shown::Record(kept) => {
                    if let Some(change) = kept.entry.change() {
                        search.take(change);
                    }
                }
                // It may say anything.
                Shown::Unreadable(unreadable) => search.all_at(unreadable.timestamp),
            }
        }
        if cursor.is_none() || search.unknown.is_empty() {
            break;
        }
    }
    // Those of which nothing was said until there were not changed since.
    if let Some(end) = cursor {
        search.all_at(Timestamp(end.time));
    }
    Ok(search.done(since))
}

/// What changes say about policies, the newest first.
struct Search<'p> {
    /// Of which nothing is known, each with its digest in force.
    unknown: BTreeMap<&'p str, &'p str>,
    found: BTreeMap<&'p str, Timestamp>,
    noted: Noted,
}

impl<'p> Search<'p> {
    fn new(policies: &'p PolicySet, noted: Noted) -> Self {
        let service = policies.all().iter();
        let service = service.filter(|policy| matches!(policy, AnyPolicy::Service(_)));
        Self {
            unknown: service.map(|policy| (policy.name(), policy.digest())).collect(),
            found: BTreeMap::new(),
            noted,
        }
    }

    fn take(&mut self, change: &Change) {
        let at = change.timestamp;
        let Some(touched) = touched(&change.change["diff"]) else {
            self.all_at(at);
            return;
        };
        // It is recorded as not in force, came into force later or never, and nobody recorded when.
        let is_late = change.change["in_force"] == false;
        for (name, digest) in touched {
            let Some((&name, &in_force)) = self.unknown.get_key_value(name) else {
                continue;
            };
            let begin = if is_late {
                if digest != Some(in_force) {
                    continue;
                }
                let begun = self.noted.begun();
                begun.unwrap_or_else(|| Timestamp(clock::now())).max(at)
            } else {
                at
            };
            self.unknown.remove(name);
            self.found.insert(name, begin);
        }
    }

    /// Any policy may have been changed then.
    fn all_at(&mut self, at: Timestamp) {
        let unknown = std::mem::take(&mut self.unknown);
        self.found.extend(unknown.into_keys().map(|name| (name, at)));
    }

    fn done(self, since: Option<Timestamp>) -> Begins {
        let named = self.found.keys().chain(self.unknown.keys());
        Begins::new(named.filter_map(|name| {
            let begin = self.found.get(name).copied().max(self.noted.of(name))?;
            // Before what is asked for it makes no difference.
            since
                .is_none_or(|since| begin > since)
                .then(|| ((*name).to_owned(), begin))
        }))
    }
}

/// The policies that a difference is about, each with its digest afterwards; `None` where it does not say all of them.
fn touched(diff: &Value) -> Option<Vec<(&str, Option<&str>)>> {
    let policies = diff["policies"].as_array()?;
    let all = policies
        .iter()
        .map(|policy| Some((policy["name"].as_str()?, policy["to"].as_str())));
    let all: Option<Vec<_>> = all.collect();
    all.filter(|all| all.len() < MAX_STATEMENTS)
}
