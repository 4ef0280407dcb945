// SPDX-License-Identifier: Apache-2.0
//! The document, as a person would write it.

use std::fmt::Write as _;

use super::{End, Protocol, Rules, joined};

/// The document of these rules.
pub(super) fn document(name: &str, rules: &Rules) -> String {
    let mut text = format!(
        "apiVersion: zt.hanzo.ai/v1\nkind: ServiceAccessPolicy\nmetadata:\n  name: {name}\nspec:\n  rules:{}\n",
        if rules.is_empty() { " []" } else { "" }
    );
    // Writing to a String cannot fail.
    for (source, targets) in rules {
        if let Some(careful) = careful(source) {
            let _ = writeln!(text, "    # {careful}");
        }
        let _ = writeln!(text, "    - from: {{{source}}}\n      to:");
        for ((destination, protocol), ports) in targets {
            let ports = joined(ports);
            if let Some(careful) = careful_to(destination) {
                let _ = writeln!(text, "        # {careful}");
            }
            for (range, times) in &ports {
                let connections = if times.count == 1 {
                    "connection"
                } else {
                    "connections"
                };
                let _ = writeln!(
                    text,
                    "        # {range}: {} {connections}, last {}",
                    times.count, times.last_seen.text
                );
            }
            let list: Vec<String> = ports
                .iter()
                .map(|(range, _)| {
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
    text.push_str("  defaultAction: DENY\n");
    text
}

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
