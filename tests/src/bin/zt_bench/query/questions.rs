// SPDX-License-Identifier: Apache-2.0
//! What a trail is asked: each filter alone, each with each, and what finds nothing.

use anyhow::Result;
use zt_agent::audit::query::{Filter, PartyFilter};
use zt_agent::audit::record::{Kind, Outcome, Timestamp};
use zt_agent::spiffe_id::Pattern;
use zt_tests::entries::Maker;

use super::{DAY, DAYS};

/// A question.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) group: Group,
    pub(super) name: String,
    pub(super) filter: Filter,
}

/// What kind of question it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Group {
    Plain,
    Single,
    Pair,
    Many,
    Nothing,
}

impl Group {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "no filter",
            Self::Single => "one filter",
            Self::Pair => "two filters",
            Self::Many => "three filters and more",
            Self::Nothing => "what finds nothing",
        }
    }
}

/// A filter and what it is called.
type Part = (&'static str, Filter);

/// One of each filter, some in two forms.
#[expect(clippy::too_many_lines, reason = "a list, one filter after the other")]
fn parts(maker: &Maker) -> Result<Vec<Part>> {
    let exact = |text: String| Some(PartyFilter::Exact(text));
    let pattern = |text: &str| Pattern::parse(text).map(PartyFilter::Pattern);
    let hour = |hours: i64| Some(Timestamp(maker.start + hours * DAY / 24));
    let none = Filter::default;
    Ok(vec![
        (
            "since",
            Filter {
                since: hour(100),
                ..none()
            },
        ),
        (
            "until",
            Filter {
                until: hour(30),
                ..none()
            },
        ),
        (
            "an hour",
            Filter {
                since: hour(70),
                until: hour(71),
                ..none()
            },
        ),
        (
            "decision=ALLOW",
            Filter {
                decision: Some(Outcome::Allow),
                ..none()
            },
        ),
        (
            "decision=DENY",
            Filter {
                decision: Some(Outcome::Deny),
                ..none()
            },
        ),
        (
            "enforced=true",
            Filter {
                enforced: Some(true),
                ..none()
            },
        ),
        (
            "enforced=false",
            Filter {
                enforced: Some(false),
                ..none()
            },
        ),
        (
            "source",
            Filter {
                source: exact(maker.name(7)),
                ..none()
            },
        ),
        (
            "source=pattern",
            Filter {
                source: Some(pattern("spiffe://hanzo.ai/hanzo-k8s/monitoring/*")?),
                ..none()
            },
        ),
        (
            "destination",
            Filter {
                destination: exact(maker.name(8)),
                ..none()
            },
        ),
        (
            "destination=world",
            Filter {
                destination: exact("world".to_owned()),
                ..none()
            },
        ),
        (
            "destination=pattern",
            Filter {
                destination: Some(pattern("spiffe://hanzo.ai/hanzo-k8s/hanzo/*")?),
                ..none()
            },
        ),
        (
            "port",
            Filter {
                port: Some(5432),
                ..none()
            },
        ),
        (
            "policy",
            Filter {
                policy: Some("policy_3".to_owned()),
                ..none()
            },
        ),
        (
            "rule",
            Filter {
                policy: Some("policy_3/rule-3".to_owned()),
                ..none()
            },
        ),
        (
            "node",
            Filter {
                node: Some("worker-2".to_owned()),
                ..none()
            },
        ),
        (
            "type=decision",
            Filter {
                kind: Some(Kind::Decision),
                ..none()
            },
        ),
        (
            "type=policy_change",
            Filter {
                kind: Some(Kind::PolicyChange),
                ..none()
            },
        ),
    ])
}

/// Both at once; `None` where both say something of the same.
fn both(one: &Filter, other: &Filter) -> Option<Filter> {
    let clash = (one.kind.is_some() && other.kind.is_some())
        || (one.since.is_some() && other.since.is_some())
        || (one.until.is_some() && other.until.is_some())
        || (one.decision.is_some() && other.decision.is_some())
        || (one.enforced.is_some() && other.enforced.is_some())
        || (one.source.is_some() && other.source.is_some())
        || (one.destination.is_some() && other.destination.is_some())
        || (one.port.is_some() && other.port.is_some())
        || (one.policy.is_some() && other.policy.is_some())
        || (one.node.is_some() && other.node.is_some());
    let (one, other) = (one.clone(), other.clone());
    (!clash).then(|| Filter {
        kind: one.kind.or(other.kind),
        since: one.since.or(other.since),
        until: one.until.or(other.until),
        decision: one.decision.or(other.decision),
        enforced: one.enforced.or(other.enforced),
        source: one.source.or(other.source),
        destination: one.destination.or(other.destination),
        port: one.port.or(other.port),
        policy: one.policy.or(other.policy),
        node: one.node.or(other.node),
    })
}

/// Several of the parts at once, by name.
fn together(parts: &[Part], names: &[&str]) -> Option<Filter> {
    names.iter().try_fold(Filter::default(), |filter, name| {
        let (_, part) = parts.iter().find(|(known, _)| known == name)?;
        both(&filter, part)
    })
}

/// Every question.
pub(super) fn all(maker: &Maker) -> Result<Vec<Question>> {
    let parts = parts(maker)?;
    let question = |group, name: String, filter| Question { group, name, filter };
    let mut all = vec![question(Group::Plain, "none".to_owned(), Filter::default())];
    for (number, (name, filter)) in parts.iter().enumerate() {
        all.push(question(Group::Single, (*name).to_owned(), filter.clone()));
        for (other, with) in &parts[number + 1..] {
            if let Some(filter) = both(filter, with) {
                all.push(question(Group::Pair, format!("{name} + {other}"), filter));
            }
        }
    }
    for names in [
        &["source", "destination", "port"][..],
        &["source", "destination", "decision=DENY", "node"],
        &["source", "decision=DENY", "enforced=true", "node", "since"],
        &["source=pattern", "destination=pattern", "decision=DENY", "port"],
        &["destination=world", "decision=DENY", "node", "until"],
        &["decision=ALLOW", "enforced=true", "port", "policy", "an hour"],
    ] {
        let filter = together(&parts, names);
        all.extend(filter.map(|filter| question(Group::Many, names.join(" + "), filter)));
    }
    let nobody = PartyFilter::Exact("spiffe://hanzo.ai/hanzo-k8s/hanzo/nobody".to_owned());
    let away = PartyFilter::Exact(maker.name(70));
    let later = Timestamp(maker.start + DAYS * DAY);
    let none = Filter::default;
    for (name, filter) in [
        (
            "a source of nobody",
            Filter {
                source: Some(nobody),
                ..none()
            },
        ),
        (
            "a port of nobody",
            Filter {
                port: Some(1),
                ..none()
            },
        ),
        (
            "a node of nobody",
            Filter {
                node: Some("nowhere".to_owned()),
                ..none()
            },
        ),
        (
            "a policy of nobody",
            Filter {
                policy: Some("policy".to_owned()),
                ..none()
            },
        ),
        (
            "later than all",
            Filter {
                since: Some(later),
                ..none()
            },
        ),
        (
            "earlier than all",
            Filter {
                until: Some(Timestamp(maker.start)),
                ..none()
            },
        ),
        // Each of the two is there, and never with the other.
        (
            "a pair that never met",
            Filter {
                source: Some(PartyFilter::Exact(maker.name(7))),
                destination: Some(away.clone()),
                ..none()
            },
        ),
        (
            "a decision by a rule that only allows",
            Filter {
                policy: Some("policy_3".to_owned()),
                decision: Some(Outcome::Deny),
                ..none()
            },
        ),
        (
            "a change with a port",
            Filter {
                kind: Some(Kind::PolicyChange),
                port: Some(5432),
                ..none()
            },
        ),
    ] {
        all.push(question(Group::Nothing, name.to_owned(), filter));
    }
    Ok(all)
}
