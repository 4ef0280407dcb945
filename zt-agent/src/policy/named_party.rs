// SPDX-License-Identifier: Apache-2.0
//! A party as people name it: on the command line, in tests of policy, in records.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::entity::{ENTITIES, entity_number};
use super::table::{AllowTable, Party};
use crate::problem::nearest;
use crate::spiffe_id::SpiffeId;

/// A SPIFFE ID, an entity, an address, or a network that policy names (`cidr:10.0.0.0/8`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedParty {
    /// A workload.
    Spiffe(SpiffeId),
    /// An entity, by its name.
    Entity(&'static str),
    /// An address: the policy's networks say who it is.
    Address(IpAddr),
    /// A network that policy names.
    Network(IpNet),
}

impl FromStr for NamedParty {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("spiffe:") {
            return SpiffeId::parse(text)
                .map(Self::Spiffe)
                .map_err(|error| error.to_string());
        }
        if let Some(network) = text.strip_prefix("cidr:") {
            let network = network
                .parse::<IpNet>()
                .map_err(|_| format!("`{network}` is not a network such as 10.0.0.0/8"))?;
            return Ok(Self::Network(network.trunc()));
        }
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        let entities = || ENTITIES.iter().map(|(name, _)| *name);
        if let Some(name) = entities().find(|name| *name == text) {
            return Ok(Self::Entity(name));
        }
        let hint = match nearest(text, entities()) {
            Some(name) => format!("did you mean `{name}`?"),
            None => format!(
                "write a SPIFFE ID, an address, cidr:NETWORK, or one of {}",
                entities().collect::<Vec<_>>().join(", ")
            ),
        };
        Err(format!("not a party; {hint}"))
    }
}

impl fmt::Display for NamedParty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Spiffe(id) => f.write_str(id.as_str()),
            Self::Entity(name) => f.write_str(name),
            Self::Address(address) => address.fmt(f),
            Self::Network(network) => write!(f, "cidr:{network}"),
        }
    }
}

impl NamedParty {
    /// As the API takes it.
    pub fn json(&self) -> Value {
        match self {
            Self::Spiffe(id) => json!({ "spiffe_id": id }),
            Self::Entity(name) => json!({ "entity": name }),
            Self::Address(address) => json!({ "address": address }),
            Self::Network(network) => json!({ "entity": format!("cidr:{network}") }),
        }
    }

    /// As `table` takes it; `None` for a network that no rule names.
    pub fn of<'a>(&'a self, table: &AllowTable) -> Option<Party<'a>> {
        Some(match self {
            Self::Spiffe(id) => Party::Spiffe(id),
            Self::Entity(name) => Party::Number(entity_number(name)?),
            Self::Address(address) => Party::Address(*address),
            Self::Network(network) => Party::Number(table.networks().number_of(network)?),
        })
    }

    /// The identity, if it is one.
    pub fn spiffe(&self) -> Option<&SpiffeId> {
        match self {
            Self::Spiffe(id) => Some(id),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parties_are_recognised_by_their_form() {
        let party = |text: &str| text.parse::<NamedParty>().map(|party| party.json().to_string());
        assert_eq!(
            party("spiffe://hanzo.ai/a").expect("id"),
            r#"{"spiffe_id":"spiffe://hanzo.ai/a"}"#
        );
        assert_eq!(party("world").expect("entity"), r#"{"entity":"world"}"#);
        assert_eq!(
            party("::ffff:10.0.0.1").expect("address"),
            r#"{"address":"10.0.0.1"}"#
        );
        assert_eq!(
            party("cidr:10.1.0.0/8").expect("network"),
            r#"{"entity":"cidr:10.0.0.0/8"}"#
        );
        assert!(
            party("wrold")
                .expect_err("slip")
                .contains("did you mean `world`?")
        );
        assert!(party("iam").expect_err("name").contains("write a SPIFFE ID"));
        assert!(party("cidr:x").expect_err("network").contains("is not a network"));
        assert!(party("spiffe://").expect_err("id").contains("trust domain"));
    }
}
