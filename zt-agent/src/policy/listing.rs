// SPDX-License-Identifier: Apache-2.0
//! The allow table as text: one sorted line an entry, with names instead of numbers.

use std::collections::BTreeMap;
use std::fmt;

use zt_common::entry::{ACTION_DENY, AllowEntry, AllowKey, PROTOCOL_RAW, REQUIRES_PROOF, Shapes};
use zt_common::verdict::AllowLookup;

use super::action::{Action, Protocol};
use super::table::AllowTable;

impl fmt::Display for AllowTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: BTreeMap<u64, String> = self.party_names().collect();
        let party = |number: u64| {
            names
                .get(&number)
                .cloned()
                .unwrap_or_else(|| format!("{number:#018x}"))
        };
        let mut lines: Vec<String> = self
            .entries()
            .filter(|(key, _)| *key != AllowKey::HEADER)
            .map(|(key, entry)| self.line(&key, entry, &party))
            .collect();
        lines.sort_unstable();
        if let Some(entry) = self.get(&AllowKey::HEADER) {
            let shapes = Shapes(entry.bits);
            for (switch, name) in [(Shapes::SELF, "builtin/self"), (Shapes::HOST, "builtin/host")] {
                if shapes.has(switch) {
                    writeln!(f, "{name}")?;
                }
            }
            let default = if shapes.has(Shapes::DEFAULT_ALLOW) {
                Action::Allow
            } else {
                Action::Deny
            };
            writeln!(f, "default {}", default.name())?;
        }
        lines.iter().try_for_each(|line| writeln!(f, "{line}"))
    }
}

impl AllowTable {
    fn line(&self, key: &AllowKey, entry: AllowEntry, party: &dyn Fn(u64) -> String) -> String {
        let action = if entry.bits == ACTION_DENY {
            Action::Deny
        } else {
            Action::Allow
        };
        let rule = self.rule_name(entry.number);
        let rule = rule.as_deref().unwrap_or("?");
        let source = party(key.source);
        if key.protocol == PROTOCOL_RAW {
            return format!("{} {source} raw sockets by {rule}", action.name());
        }
        let protocol = if key.protocol == Protocol::Udp.number() {
            Protocol::Udp
        } else {
            Protocol::Tcp
        };
        let last = u32::from(key.port) + (1 << (16 - u32::from(key.port_bits.min(16)))) - 1;
        let ports = match key.port_bits {
            0 => "every port".to_owned(),
            16 => key.port.to_string(),
            _ => format!("{}-{last}", key.port),
        };
        let proof = if entry.bits & REQUIRES_PROOF != 0 {
            " with proof"
        } else {
            ""
        };
        format!(
            "{} {source} -> {} {} {ports}{proof} by {rule}",
            action.name(),
            party(key.destination),
            protocol.name()
        )
    }
}
