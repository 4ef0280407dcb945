// SPDX-License-Identifier: Apache-2.0
//! The policy that would allow what was recorded.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{About, Range, Recorded};
use crate::audit::record::Timestamp;
use crate::policy::{self, Counted, Moment, RawCounted, RecommendError, Recommended, Settings, Wishes};
use crate::spiffe_id::SpiffeId;

/// Why multipath TCP is not recommended.
const FALLS_BACK: &str =
    "it would be refused, and programs take TCP then; only `rawSockets: true` would allow it";

/// A policy that was made of recorded connections.
#[derive(Clone, Debug)]
pub struct Advice {
    /// The policy.
    pub made: Recommended,
    /// Connections that it does not allow, each once, with why.
    pub unsaid: BTreeSet<(String, String)>,
    /// Whether some of those could be allowed, or may need to be.
    pub lacks: bool,
    /// How many different connections it was made for.
    pub flows: usize,
    /// How many all together.
    pub connections: u64,
}

impl Advice {
    /// Why it is none, where nothing that is recorded went through: a policy for that would deny all.
    pub fn nothing(&self, range: &Range) -> Option<String> {
        let recorded = range.recorded.iter();
        let recorded = recorded.fold(0_u64, |sum, recorded| sum.saturating_add(recorded.count()));
        (self.flows == 0).then(|| {
            format!(
                "none of the {recorded} connections that are recorded went through: there is nothing to allow"
            )
        })
    }
}

/// Makes the smallest policy that allows what went through, and with `include_denied` what was refused.
pub fn advise(
    range: &Range,
    wishes: &Wishes,
    include_denied: bool,
    settings: &Settings,
) -> Result<Advice, RecommendError> {
    let wanted: Vec<(&Recorded, u64)> = range
        .recorded
        .iter()
        .map(|recorded| (recorded, recorded.passed(include_denied)))
        .filter(|(_, count)| *count > 0)
        .collect();
    let moment = |recorded: &Recorded| {
        let last = recorded.last_passed(include_denied);
        Moment {
            at: last.0,
            text: last.to_string(),
        }
    };
    let counted: Vec<Counted> = wanted
        .iter()
        .flat_map(|(recorded, count)| {
            let service = matches!(recorded.about, Ok(About::Service(_)));
            let service: Option<Arc<str>> = service.then(|| Arc::clone(&recorded.destination));
            let last_seen = moment(recorded);
            recorded.flows().iter().map(move |flow| Counted {
                flow: flow.clone(),
                service: service.clone(),
                count: *count,
                last_seen: last_seen.clone(),
            })
        })
        .collect();
    let raw: Vec<RawCounted> = wanted
        .iter()
        .filter(|(recorded, _)| !recorded.falls_back())
        .filter_map(|(recorded, count)| {
            Some(RawCounted {
                holder: recorded.holder().filter(|id| is_ours(id, settings))?.clone(),
                protocol: recorded.protocol.to_string(),
                count: *count,
                last_seen: moment(recorded),
            })
        })
        .collect();
    let made = policy::recommend(&counted, &raw, wishes, settings)?;
    let mut unsaid: BTreeSet<(String, String)> = BTreeSet::new();
    let mut lacks = !made.unsaid.is_empty();
    for (flow, why) in &made.unsaid {
        let (source, destination) = (&flow.source, &flow.destination);
        let what = format!("{source} -> {destination} {} {}", flow.protocol.name(), flow.port);
        unsaid.insert((what, why.clone()));
    }
    let holders: BTreeSet<&SpiffeId> = raw.iter().map(|counted| &counted.holder).collect();
    for (recorded, count) in &wanted {
        let Recorded {
            source,
            destination,
            protocol,
            port,
            ..
        } = *recorded;
        let what = format!("{source} -> {destination} {protocol} {port} ({count} connections)");
        match &recorded.about {
            Ok(About::Connection(_) | About::Service(_)) => {}
            Ok(About::RawSocket { holder, .. }) if holders.contains(holder) => {}
            Ok(About::RawSocket { holder, multipath }) => {
                let why = if is_ours(holder, settings) {
                    FALLS_BACK.to_owned()
                } else {
                    format!("`{}` is another trust domain", holder.trust_domain())
                };
                lacks |= !multipath;
                unsaid.insert((what, why));
            }
            Err(why) => {
                lacks |= !why.is_beyond_policy();
                unsaid.insert((what, why.to_string()));
            }
        }
    }
    Ok(Advice {
        unsaid,
        lacks,
        flows: wanted.len(),
        connections: wanted
            .iter()
            .fold(0_u64, |sum, (_, count)| sum.saturating_add(*count)),
        made,
    })
}

fn is_ours(id: &SpiffeId, settings: &Settings) -> bool {
    id.trust_domain() == settings.trust_domain
}

impl Recorded {
    /// How many connections went through, or shall where those denied are `included`.
    pub const fn passed(&self, included: bool) -> u64 {
        let passed = self.allowed.saturating_add(self.would_deny);
        if included {
            passed.saturating_add(self.denied)
        } else {
            passed
        }
    }

    /// When the last of them was.
    pub fn last_passed(&self, included: bool) -> Timestamp {
        let mut span = self.passed_span();
        if included {
            span = span.with(self.refused_span());
        }
        span.last
    }
}
