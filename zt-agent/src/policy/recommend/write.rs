// SPDX-License-Identifier: Apache-2.0
//! The document, as a person would write it.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ipnet::IpNet;

use super::{Counted, End, Moment, Protocol, RawCounted, Rules, joined};
use crate::policy::seen::SeenParty;
use crate::spiffe_id::SpiffeId;

/// Most edges of a target that are told of one by one.
const SHOWN: usize = 20;

/// Those who need the right to raw sockets, with what for: protocols.
pub(super) type Holders<'s> = BTreeMap<&'s SpiffeId, BTreeMap<&'s str, Times<'s>>>;

/// How often and when last.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times<'s> {
    count: u64,
    last_seen: Option<&'s Moment>,
}

impl<'s> Times<'s> {
    fn take(&mut self, count: u64, last_seen: Option<&'s Moment>) {
        self.count = self.count.saturating_add(count);
        self.last_seen = self.last_seen.max(last_seen);
    }

    /// For people, in counts of a thing.
    fn said(&self, thing: &str) -> String {
        let plural = if self.count == 1 { "" } else { "s" };
        let last = self.last_seen.map_or("", |moment| moment.text.as_str());
        format!("{} {thing}{plural}, last {last}", self.count)
    }
}

/// What of an edge its rule and target do not say: port, source, destination, and the Service that was called.
type Edge<'s> = (u16, Option<&'s str>, Option<&'s str>, Option<&'s str>);

/// Whose right to raw sockets is to be written.
pub(super) fn holders(raw: &[RawCounted]) -> Holders<'_> {
    let mut holders = Holders::new();
    for counted in raw {
        let kinds = holders.entry(&counted.holder).or_default();
        let times = kinds.entry(counted.protocol.as_str()).or_default();
        times.take(counted.count, Some(&counted.last_seen));
    }
    holders
}

/// The document of these rules, and of these rights to raw sockets, which follow them.
pub(super) fn document(name: &str, rules: &Rules<'_>, holders: &Holders<'_>) -> String {
    let nothing = rules.is_empty() && holders.is_empty();
    let mut text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: {name}\nspec:\n  rules:{}\n",
        if nothing { " []" } else { "" }
    );
    // Writing to a String cannot fail.
    for (source, targets) in rules {
        if let Some(careful) = careful(source) {
            let _ = writeln!(text, "    # {careful}");
        }
        let _ = writeln!(text, "    - from: {{{source}}}\n      to:");
        for ((destination, protocol), ports) in targets {
            if let Some(careful) = careful_to(destination) {
                let _ = writeln!(text, "        # {careful}");
            }
            for line in edges(source, destination, ports) {
                let _ = writeln!(text, "        # {line}");
            }
            let list: Vec<String> = joined(ports.keys().copied())
                .iter()
                .map(|range| {
                    if range.first == range.last {
                        range.to_string()
                    } else {
                        format!("\"{range}\"")
                    }
                })
                .collect();
            let _ = writeln!(
                text,
                "        - {destination}\n          ports: [{}]",
                list.join(", ")
            );
            if *protocol != Protocol::default() {
                let _ = writeln!(text, "          protocol: {}", protocol.name());
            }
        }
    }
    for (holder, kinds) in holders {
        let _ = writeln!(text, "    # {CAREFUL_RAW}");
        for (protocol, times) in kinds {
            let _ = writeln!(text, "    # {protocol}: {}", times.said("socket"));
        }
        let source = End::Spiffe(holder.to_string());
        let _ = writeln!(text, "    - from: {{{source}}}\n      rawSockets: true");
    }
    text.push_str("  defaultAction: DENY\n");
    text
}

/// How often and when last each edge was seen that a target allows; of many the first, and the others together.
fn edges(source: &End, destination: &End, ports: &BTreeMap<u16, Vec<&Counted>>) -> Vec<String> {
    let mut edges: BTreeMap<Edge<'_>, Times<'_>> = BTreeMap::new();
    for (port, seen) in ports {
        for counted in seen {
            let flow = &counted.flow;
            let ends = (
                otherwise(source, &flow.source),
                otherwise(destination, &flow.destination),
            );
            let edge = (*port, ends.0, ends.1, counted.service.as_deref());
            edges
                .entry(edge)
                .or_default()
                .take(counted.count, Some(&counted.last_seen));
        }
    }
    let mut lines: Vec<String> = edges
        .iter()
        .take(SHOWN)
        .map(|((port, from, to, service), times)| {
            let from = from.map_or_else(String::new, |name| format!(" from {name}"));
            let to = to.map_or_else(String::new, |name| format!(" to {name}"));
            // It ends a comment if it has a line break.
            let by = service.map_or_else(String::new, |name| format!(" by {}", name.escape_default()));
            format!("{port}{from}{to}{by}: {}", times.said("connection"))
        })
        .collect();
    if edges.len() > SHOWN {
        let mut rest = Times::default();
        for times in edges.values().skip(SHOWN) {
            rest.take(times.count, times.last_seen);
        }
        let more = edges.len() - SHOWN;
        lines.push(format!("and {more} more: {}", rest.said("connection")));
    }
    lines
}

/// The name of who was at an end, where what is written for it does not say it.
fn otherwise<'s>(end: &End, party: &'s SeenParty) -> Option<&'s str> {
    let says = match end {
        End::Spiffe(text) | End::Entity(text) => text == party.name(),
        End::Cidr(network) => {
            let one = match party {
                SeenParty::Nameless { address, .. } => *address,
                _ => None,
            };
            party.name().strip_prefix("cidr:") == Some(network.as_str())
                || one.is_some_and(|one| IpNet::from(one.to_canonical()).to_string() == *network)
        }
    };
    (!says).then(|| party.name())
}

/// What to think about before somebody is given the right to raw sockets.
const CAREFUL_RAW: &str =
    "Careful: by raw sockets it speaks, and hears, what no rule can name. `ping` needs them.";

/// What to think about before such a rule is put in force.
fn careful(source: &End) -> Option<&'static str> {
    match source {
        End::Entity(name) if name == "unknown" => {
            Some("Careful: these have no identity. Give them one, rather than let in whoever has none.")
        }
        End::Entity(name) if name == "world" => Some("Careful: anybody outside the cluster."),
        _ => None,
    }
}

/// The same of a target.
fn careful_to(destination: &End) -> Option<&'static str> {
    match destination {
        End::Entity(name) if name == "unknown" => {
            Some("Careful: whoever in the cluster has no identity, and Services without endpoints.")
        }
        End::Entity(name) if name == "world" => {
            Some("Careful: every address outside the cluster, a cloud's metadata service too.")
        }
        _ => None,
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Spiffe(text) => write!(f, "spiffe: \"{text}\""),
            Self::Entity(name) => write!(f, "entity: {name}"),
            Self::Cidr(network) => write!(f, "cidr: \"{network}\""),
        }
    }
}
