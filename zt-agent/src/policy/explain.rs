// SPDX-License-Identifier: Apache-2.0
//! Why a flow is allowed or denied, rule by rule.
//!
//! Each rule is judged by itself, and then all together, by the one verdict function. What a rule that says nothing is not
//! about (its source, destination, protocol, ports) is found out besides, so that one can see which rule was meant.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use zt_common::entry::{AllowEntry, AllowKey, Flow, Shapes};
use zt_common::verdict::{AllowLookup, RULE_HOST, RULE_REQUIRE_POLICY, RULE_SELF, Reason, verdict};

use super::Document;
use super::action::{Action, Protocol};
use super::compile::Alone;
use super::cut::Outcome;
use super::document::Rule;
use super::set::PolicySet;
use super::table::{AllowTable, Decision, Party};
use crate::yaml::{self, Value};

/// What a step of the order in which policy decides can rest on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// Rules with `action: DENY`.
    Deny,
    /// Rules that allow with `requireProof`.
    Proof,
    /// `builtin/self`.
    SelfRule,
    /// `builtin/host`.
    Host,
    /// Rules that allow.
    Allow,
    /// `defaultAction`.
    Default,
}

impl Step {
    /// All, in the order in which they are asked.
    pub const ALL: [Self; 6] = [
        Self::Deny,
        Self::Proof,
        Self::SelfRule,
        Self::Host,
        Self::Allow,
        Self::Default,
    ];
}

/// What a rule is not about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Miss {
    /// Its `from` names others.
    Source,
    /// None of its targets is the destination.
    Destination,
    /// The protocol is the other one.
    Protocol,
    /// The port is none of its ports.
    Port,
}

impl Miss {
    /// The word for people.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
            Self::Protocol => "protocol",
            Self::Port => "port",
        }
    }
}

/// A rule that is about the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Speaking {
    /// Where it stands in the order.
    pub step: Step,
    /// Its name.
    pub rule: Arc<str>,
    /// What it says of the flow.
    pub says: Outcome,
    /// Whether it is the one that decides.
    pub decides: bool,
}

/// A rule that is not about the flow.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Silent {
    /// Its name.
    pub rule: Arc<str>,
    /// What it would say.
    pub action: &'static str,
    /// What it is not about: of its targets the one that comes nearest.
    pub misses: Vec<Miss>,
}

/// Why a flow is allowed or denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// What policy says.
    pub decision: Decision,
    /// The rules that are about the flow, in the order in which they are asked.
    pub speaking: Vec<Speaking>,
    /// All other rules, nearest first.
    pub silent: Vec<Silent>,
    /// Whether `builtin/self` and `builtin/host` are on.
    pub builtin: [bool; 2],
    /// What is said of a flow that no rule is about.
    pub default: &'static str,
}

/// What `set` says about a flow and why. `table` is what it was compiled to, for both ends.
pub fn explain(
    set: &PolicySet,
    table: &AllowTable,
    (source, destination): (Party<'_>, Party<'_>),
    port: u16,
    protocol: Protocol,
) -> Explanation {
    let flow = Flow {
        source: table.number(source),
        destination: table.number(destination),
        port,
        protocol: protocol.number(),
    };
    let decided = table.decide(&flow);
    let mut alone = Alone::new(table.identities(), table.networks());
    let mut speaking: Vec<Speaking> = builtin(table, &flow).into_iter().collect();
    if decided.rule == RULE_REQUIRE_POLICY {
        speaking.extend(table.rule_name(decided.rule).map(|rule| Speaking {
            step: Step::Deny,
            rule,
            says: Outcome::Deny,
            decides: true,
        }));
    }
    let mut silent = Vec::new();
    for rule in set.policies().iter().flat_map(|policy| &policy.rules) {
        let said = alone.judge(rule, &flow);
        if said.rule == rule.number {
            // Over UDP there is no proof, and what asks for it refuses.
            let proof = said.proof || said.reason == Reason::ProofRequired;
            let step = match (rule.action, proof) {
                (Action::Deny, _) => Step::Deny,
                (Action::Allow, true) => Step::Proof,
                (Action::Allow, false) => Step::Allow,
            };
            speaking.push(Speaking {
                step,
                rule: set.rule_name(rule.number),
                says: Outcome::from(&said),
                decides: false,
            });
        } else {
            silent.push(Silent {
                rule: set.rule_name(rule.number),
                action: rule.action.name(),
                misses: misses(&mut alone, rule, &flow, protocol),
            });
        }
    }
    let decision = table.decision(decided);
    for rule in &mut speaking {
        rule.decides = decision.rule.as_ref() == Some(&rule.rule);
    }
    speaking.sort_by_key(|rule| (rule.step, !rule.decides));
    silent.sort_by_key(|rule| rule.misses.len());
    let shapes = Shapes(table.get(&AllowKey::HEADER).map_or(0, |header| header.bits));
    Explanation {
        decision,
        speaking,
        silent,
        builtin: [shapes.has(Shapes::SELF), shapes.has(Shapes::HOST)],
        default: set.default_action().name(),
    }
}

/// What zt's own rules say, if they are about the flow.
fn builtin(table: &AllowTable, flow: &Flow) -> Option<Speaking> {
    struct Header(AllowEntry);
    impl AllowLookup for Header {
        fn get(&self, key: &AllowKey) -> Option<AllowEntry> {
            (*key == AllowKey::HEADER).then_some(self.0)
        }
    }
    let header = table.get(&AllowKey::HEADER)?;
    let bits = header.bits & (Shapes::SELF | Shapes::HOST);
    let said = verdict(&Header(AllowEntry { bits, ..header }), flow);
    let step = match said.rule {
        RULE_SELF => Step::SelfRule,
        RULE_HOST => Step::Host,
        _ => return None,
    };
    Some(Speaking {
        step,
        rule: table.rule_name(said.rule)?,
        says: Outcome::from(&said),
        decides: false,
    })
}

fn misses<'a>(alone: &mut Alone<'a>, rule: &'a Rule, flow: &Flow, protocol: Protocol) -> Vec<Miss> {
    let source = (!alone.is_about(&rule.from, rule.action, flow.source)).then_some(Miss::Source);
    let of_targets = rule.to.iter().map(|target| {
        let destination = alone.is_about(&target.endpoint, rule.action, flow.destination);
        let port = target.ports.is_empty() || target.ports.iter().any(|range| range.contains(flow.port));
        [
            (destination, Miss::Destination),
            (target.protocol == protocol, Miss::Protocol),
            (port, Miss::Port),
        ]
        .into_iter()
        .filter_map(|(holds, miss)| (!holds).then_some(miss))
        .collect::<Vec<_>>()
    });
    // A rule about raw sockets alone has no target.
    let nearest = of_targets
        .min_by_key(Vec::len)
        .unwrap_or_else(|| vec![Miss::Destination]);
    source.into_iter().chain(nearest).collect()
}

/// Where rules stand, by their names: file and line. Documents that cannot be read have none.
pub fn places(documents: &[Document]) -> BTreeMap<String, (String, u64)> {
    let mut places = BTreeMap::new();
    for document in documents {
        for node in yaml::documents(&document.text).unwrap_or_default() {
            let name = node.at(&["metadata", "name"]).map(|name| &name.value);
            let rules = node.at(&["spec", "rules"]).map(|rules| &rules.value);
            if let (Some(Value::Text(name)), Some(Value::List(rules))) = (name, rules) {
                places.extend((1..).zip(rules).map(|(number, rule)| {
                    let place = (document.file.clone(), rule.line);
                    (format!("{name}/rule-{number}"), place)
                }));
            }
        }
    }
    places
}
