// SPDX-License-Identifier: Apache-2.0
//! What a change of policy means: which statements are new, and which are gone.
//!
//! All rules are one union, so a rule that only moves, is renamed, or is written differently is no change here.

mod rollout;
mod statement;

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::action::{Action, Protocol};
use super::any::AnyPolicy;
use super::endpoint::Endpoint;
use super::entity::entity_name;
use super::network;
use super::ports::PortRange;
use super::set::PolicySet;

pub use rollout::RolloutChange;
pub use statement::Statement;

/// The difference between two sets of policies.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyDiff {
    /// Digest before.
    pub from: String,
    /// Digest after.
    pub to: String,
    /// Documents that came, went, or are others now.
    pub policies: Vec<PolicyChange>,
    /// What is said now and was not said before.
    pub added: Vec<Statement>,
    /// What was said before and is not said now.
    pub removed: Vec<Statement>,
    /// The default action, if it is another now.
    #[schema(required = true)]
    pub default_action: Option<DefaultActionChange>,
    /// What the rollout says now and did not before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rollout: Vec<RolloutChange>,
}

/// A document that came, went, or is another now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct PolicyChange {
    /// Its name.
    pub name: String,
    /// Its kind; the later one where that changed too.
    pub kind: String,
    /// Its digest before; null where it is new.
    #[schema(required = true)]
    pub from: Option<String>,
    /// Its digest after; null where it is gone.
    #[schema(required = true)]
    pub to: Option<String>,
}

/// A change of the default action.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DefaultActionChange {
    /// Before.
    pub from: String,
    /// After.
    pub to: String,
}

/// What a statement is about, but for its ports. Borrows from the policies: those that did not change cost little.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject<'p> {
    Connect {
        source: Party<'p>,
        destination: Party<'p>,
        udp: bool,
        deny: bool,
        proof: bool,
    },
    RawSockets {
        source: Party<'p>,
        deny: bool,
    },
    Operate {
        role: &'p str,
        service: &'p str,
        operation: &'p str,
        mfa: bool,
        incident: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Party<'p> {
    Spiffe(&'p str),
    Entity(u64),
    Cidr(IpNet),
}

impl<'p> From<&'p Endpoint> for Party<'p> {
    fn from(endpoint: &'p Endpoint) -> Self {
        match endpoint {
            Endpoint::Spiffe(pattern) => Self::Spiffe(pattern.as_str()),
            Endpoint::Entity(number) => Self::Entity(*number),
            Endpoint::Cidr(network) => Self::Cidr(*network),
        }
    }
}

impl Party<'_> {
    fn name(self) -> String {
        match self {
            Self::Spiffe(text) => text.to_owned(),
            Self::Entity(number) => entity_name(number).unwrap_or("unknown").to_owned(),
            Self::Cidr(network) => network::name(&network),
        }
    }
}

/// Ports from the first to the last.
type Span = (u32, u32);
/// Every port: nothing listens on port 0.
const ALL: Span = (1, 65_535);
type Said<'p> = BTreeMap<Subject<'p>, Vec<Span>>;

impl PolicySet {
    /// What changes when `self` takes the place of `before`.
    pub fn diff_from(&self, before: &Self) -> PolicyDiff {
        let policies = changes(before, self);
        let changed: BTreeSet<&str> = policies.iter().map(|change| change.name.as_str()).collect();
        let is_changed = |policy: &&AnyPolicy| changed.contains(policy.name());
        let (mut was, mut is) = (Said::new(), Said::new());
        before
            .all()
            .iter()
            .filter(is_changed)
            .for_each(|policy| say(policy, &mut |subject, span| push(&mut was, subject, span)));
        self.all()
            .iter()
            .filter(is_changed)
            .for_each(|policy| say(policy, &mut |subject, span| push(&mut is, subject, span)));
        // What did not change says the same before and after; it matters only where it says what a changed one does.
        for policy in self.all().iter().filter(|policy| !is_changed(policy)) {
            say(policy, &mut |subject, span| {
                if was.contains_key(&subject) || is.contains_key(&subject) {
                    push(&mut was, subject, span);
                    push(&mut is, subject, span);
                }
            });
        }
        let (was, is) = (merged(was), merged(is));
        let (old, new) = (before.default_action(), self.default_action());
        PolicyDiff {
            from: before.digest().to_owned(),
            to: self.digest().to_owned(),
            policies,
            added: beyond(&is, &was),
            removed: beyond(&was, &is),
            default_action: (old != new).then(|| DefaultActionChange {
                from: old.name().to_owned(),
                to: new.name().to_owned(),
            }),
            rollout: rollout::changes(before, self),
        }
    }
}

impl PolicyDiff {
    /// Whether nothing changes, not even a description.
    pub fn is_empty(&self) -> bool {
        self.policies.is_empty()
    }
}

fn changes(before: &PolicySet, after: &PolicySet) -> Vec<PolicyChange> {
    let mut names: BTreeMap<&str, (Option<&AnyPolicy>, Option<&AnyPolicy>)> = BTreeMap::new();
    for policy in before.all() {
        names.entry(policy.name()).or_default().0 = Some(policy);
    }
    for policy in after.all() {
        names.entry(policy.name()).or_default().1 = Some(policy);
    }
    names
        .into_iter()
        .filter_map(|(name, (old, new))| {
            let digest = |policy: Option<&AnyPolicy>| policy.map(|policy| policy.digest().to_owned());
            let (from, to) = (digest(old), digest(new));
            (from != to).then(|| PolicyChange {
                name: name.to_owned(),
                kind: new.or(old).map_or("", AnyPolicy::kind).to_owned(),
                from,
                to,
            })
        })
        .collect()
}

fn push<'p>(said: &mut Said<'p>, subject: Subject<'p>, span: Span) {
    said.entry(subject).or_default().push(span);
}

/// Everything that a policy says, rule by rule.
fn say<'p>(policy: &'p AnyPolicy, to: &mut dyn FnMut(Subject<'p>, Span)) {
    match policy {
        AnyPolicy::Service(policy) => {
            for rule in &policy.rules {
                let (source, deny) = (Party::from(&rule.from), rule.action == Action::Deny);
                if rule.raw_sockets {
                    to(Subject::RawSockets { source, deny }, ALL);
                }
                for target in &rule.to {
                    let subject = Subject::Connect {
                        source,
                        destination: Party::from(&target.endpoint),
                        udp: target.protocol == Protocol::Udp,
                        deny,
                        proof: target.require_proof,
                    };
                    if target.ports.is_empty() {
                        to(subject, ALL);
                    }
                    for range in &target.ports {
                        to(subject, (range.first.into(), range.last.into()));
                    }
                }
            }
        }
        // It has no rules: what of it changed is told by itself.
        AnyPolicy::Rollout(_) => {}
        AnyPolicy::Operator(policy) => {
            for rule in &policy.rules {
                for target in &rule.targets {
                    for operation in &target.actions {
                        let subject = Subject::Operate {
                            role: &rule.role,
                            service: &target.service,
                            operation,
                            mfa: rule.require_mfa,
                            incident: rule.require_incident,
                        };
                        to(subject, ALL);
                    }
                }
            }
        }
    }
}

/// The spans of each subject sorted, those that touch joined.
fn merged(mut said: Said<'_>) -> Said<'_> {
    for spans in said.values_mut() {
        spans.sort_unstable();
        let mut joined: Vec<Span> = Vec::with_capacity(spans.len());
        for &(first, last) in spans.iter() {
            match joined.last_mut() {
                Some(open) if first <= open.1 + 1 => open.1 = open.1.max(last),
                _ => joined.push((first, last)),
            }
        }
        *spans = joined;
    }
    said
}

/// What `said` says beyond `other`.
fn beyond(said: &Said<'_>, other: &Said<'_>) -> Vec<Statement> {
    said.iter()
        .filter_map(|(subject, spans)| {
            let known = other.get(subject).map_or(&[][..], Vec::as_slice);
            let left = without(spans, known);
            (!left.is_empty()).then(|| statement(*subject, &left))
        })
        .collect()
}

/// `spans` without what is in `taken`; both sorted and joined.
fn without(spans: &[Span], taken: &[Span]) -> Vec<Span> {
    let mut left = Vec::new();
    for &(first, last) in spans {
        let mut from = first;
        for &(start, end) in taken
            .iter()
            .filter(|(start, end)| *end >= first && *start <= last)
        {
            if start > from {
                left.push((from, start - 1));
            }
            from = from.max(end + 1);
        }
        if from <= last {
            left.push((from, last));
        }
    }
    left
}

fn statement(subject: Subject<'_>, spans: &[Span]) -> Statement {
    let action = |deny: bool| if deny { Action::Deny } else { Action::Allow }.name().to_owned();
    match subject {
        Subject::Connect {
            source,
            destination,
            udp,
            deny,
            proof,
        } => Statement::Connect {
            action: action(deny),
            source: source.name(),
            destination: destination.name(),
            protocol: if udp { Protocol::Udp } else { Protocol::Tcp }.name().to_owned(),
            ports: if spans == [ALL] {
                Vec::new()
            } else {
                spans.iter().map(|span| port_range(*span).to_string()).collect()
            },
            require_proof: proof,
        },
        Subject::RawSockets { source, deny } => Statement::RawSockets {
            action: action(deny),
            source: source.name(),
        },
        Subject::Operate {
            role,
            service,
            operation,
            mfa,
            incident,
        } => Statement::Operate {
            action: action(false),
            role: role.to_owned(),
            service: service.to_owned(),
            operation: operation.to_owned(),
            require_mfa: mfa,
            require_incident: incident,
        },
    }
}

fn port_range((first, last): Span) -> PortRange {
    let port = |number| u16::try_from(number).unwrap_or(u16::MAX);
    PortRange {
        first: port(first),
        last: port(last),
    }
}
