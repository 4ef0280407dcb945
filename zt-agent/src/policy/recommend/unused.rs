// SPDX-License-Identifier: Apache-2.0
//! Rules that nothing that was seen is about.

use std::sync::Arc;

use serde::Serialize;
use zt_common::entry::Flow;

use crate::policy::compile::Alone;
use crate::policy::document::{Rule, Target};
use crate::policy::endpoint::Endpoint;
use crate::policy::entity::entity_name;
use crate::policy::network;
use crate::policy::seen::SeenFlow;
use crate::policy::set::PolicySet;
use crate::policy::table::AllowTable;

/// A rule, or a target of one, that no connection was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unused {
    /// The rule.
    pub rule: Arc<str>,
    /// The target, where others of the rule are used; null for all of it.
    pub target: Option<String>,
}

/// What of `set` no connection that was seen is about, in order. `table` is what it was compiled to, for all their ends.
pub fn unused<'f>(
    set: &PolicySet,
    table: &AllowTable,
    seen: impl IntoIterator<Item = &'f SeenFlow>,
) -> Vec<Unused> {
    let flows: Vec<Flow> = seen
        .into_iter()
        .filter_map(|flow| flow.as_known_to(table).ok())
        .collect();
    // One rule a target, so that each can be asked by itself.
    let rules: Vec<(&Rule, Vec<Rule>)> = set
        .policies()
        .iter()
        .flat_map(|policy| &policy.rules)
        .map(|rule| (rule, rule.to.iter().map(|target| only(rule, target)).collect()))
        .collect();
    let mut alone = Alone::new(table.identities(), table.networks());
    let mut unused = Vec::new();
    for (rule, targets) in &rules {
        let idle: Vec<&Rule> = targets
            .iter()
            .filter(|rule| !alone.is_used(rule, &flows))
            .collect();
        let of = |target| Unused {
            rule: set.rule_name(rule.number),
            target,
        };
        if !targets.is_empty() && idle.len() == targets.len() {
            unused.push(of(None));
        } else {
            unused.extend(
                idle.iter()
                    .flat_map(|rule| &rule.to)
                    .map(|target| of(Some(text(target)))),
            );
        }
    }
    unused
}

/// The rule with one of its targets, and about nothing else.
pub(super) fn only(rule: &Rule, target: &Target) -> Rule {
    Rule {
        to: Box::from([target.clone()]),
        raw_sockets: false,
        ..rule.clone()
    }
}

fn text(target: &Target) -> String {
    let name = match &target.endpoint {
        Endpoint::Spiffe(pattern) => pattern.to_string(),
        Endpoint::Entity(number) => entity_name(*number).unwrap_or("unknown").to_owned(),
        Endpoint::Cidr(network) => network::name(network),
    };
    let ports: Vec<String> = target.ports.iter().map(ToString::to_string).collect();
    let ports = if ports.is_empty() {
        "every port".to_owned()
    } else {
        ports.join(", ")
    };
    format!("{name} {} {ports}", target.protocol.name())
}
