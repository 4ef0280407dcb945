// SPDX-License-Identifier: Apache-2.0
//! Rules that nothing that was seen is about.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;
use zt_common::entry::Flow;

use crate::policy::compile::Alone;
use crate::policy::document::{Rule, Target};
use crate::policy::endpoint::Endpoint;
use crate::policy::entity::entity_name;
use crate::policy::network;
use crate::policy::ports::PortRange;
use crate::policy::seen::SeenFlow;
use crate::policy::set::PolicySet;
use crate::policy::table::AllowTable;
use crate::spiffe_id::SpiffeId;

/// What [`Unused::target`] says of a right to raw sockets.
const RAW_SOCKETS: &str = "raw sockets";

/// A rule, or a part of one, that no connection was about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unused {
    /// The rule.
    pub rule: Arc<str>,
    /// The target, or some of its ports, or the right to raw sockets, where other parts of the rule are used; null for all
    /// of it.
    pub target: Option<String>,
}

/// What of `set` no connection that was seen is about, in order. `table` is what it was compiled to, for all their ends.
///
/// `opened` are those who opened raw sockets, or were refused them; `None` where that is not known.
pub fn unused<'f>(
    set: &PolicySet,
    table: &AllowTable,
    seen: impl IntoIterator<Item = &'f SeenFlow>,
    opened: Option<&BTreeSet<SpiffeId>>,
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
        let of = |target| Unused {
            rule: set.rule_name(rule.number),
            target,
        };
        // Those ports of each that are used, where it has several; nothing where it is not used at all.
        let used: Vec<Option<BTreeSet<u16>>> = targets
            .iter()
            .map(|narrow| {
                if narrow.to.iter().any(has_several_ports) {
                    Some(alone.ports(narrow, &flows)).filter(|ports| !ports.is_empty())
                } else {
                    alone.is_used(narrow, &flows).then(BTreeSet::new)
                }
            })
            .collect();
        let right = rule.raw_sockets.then(|| is_exercised(rule, opened));
        let idle = used.iter().all(Option::is_none) && right != Some(true);
        if idle && (!used.is_empty() || right.is_some()) {
            unused.push(of(None));
            continue;
        }
        for (narrow, used) in targets.iter().zip(used) {
            let Some(target) = narrow.to.first() else {
                continue;
            };
            match used {
                None => unused.push(of(Some(text(target, &target.ports)))),
                Some(ports) if has_several_ports(target) => {
                    let idle = idle_ports(&target.ports, &ports);
                    unused.extend((!idle.is_empty()).then(|| of(Some(text(target, &idle)))));
                }
                Some(_) => {}
            }
        }
        if right == Some(false) {
            unused.push(of(Some(RAW_SOCKETS.to_owned())));
        }
    }
    unused
}

/// Whether any of those who opened raw sockets is one whom the rule is about; where that is not known, it may be.
fn is_exercised(rule: &Rule, opened: Option<&BTreeSet<SpiffeId>>) -> bool {
    let Endpoint::Spiffe(pattern) = &rule.from else {
        return false;
    };
    opened.is_none_or(|opened| opened.iter().any(|id| pattern.matches(id)))
}

/// Whether some of a target's ports may be used and others not, as far as they are written out.
fn has_several_ports(target: &Target) -> bool {
    match target.ports.as_slice() {
        [] => false,
        [only] => only.first != only.last,
        _ => true,
    }
}

/// What of these ports is not used: single ports, and of a range what comes before and after those that are.
fn idle_ports(ports: &[PortRange], used: &BTreeSet<u16>) -> Vec<PortRange> {
    let mut idle = Vec::new();
    for range in ports {
        let mut within = used.range(range.first..=range.last);
        let Some(first) = within.next() else {
            idle.push(*range);
            continue;
        };
        let last = within.next_back().unwrap_or(first);
        idle.extend((range.first < *first).then(|| PortRange {
            first: range.first,
            last: first - 1,
        }));
        idle.extend((*last < range.last).then(|| PortRange {
            first: last + 1,
            last: range.last,
        }));
    }
    idle
}

/// The rule with one of its targets, and about nothing else.
pub(super) fn only(rule: &Rule, target: &Target) -> Rule {
    Rule {
        to: Box::from([target.clone()]),
        raw_sockets: false,
        ..rule.clone()
    }
}

/// A target with these of its ports; none are all.
fn text(target: &Target, ports: &[PortRange]) -> String {
    let name = match &target.endpoint {
        Endpoint::Spiffe(pattern) => pattern.to_string(),
        Endpoint::Entity(number) => entity_name(*number).unwrap_or("unknown").to_owned(),
        Endpoint::Cidr(network) => network::name(network),
    };
    let ports: Vec<String> = ports.iter().map(ToString::to_string).collect();
    let ports = if ports.is_empty() {
        "every port".to_owned()
    } else {
        ports.join(", ")
    };
    format!("{name} {} {ports}", target.protocol.name())
}
