// SPDX-License-Identifier: Apache-2.0
//! The canonical JSON form of rules, see [`Canonical`]. The fields of each structure are in alphabetical order.

use serde::{Serialize, Serializer};

use super::{KIND, Rule, ServiceAccessPolicy, Target};
use crate::policy::action::{Action, Protocol};
use crate::policy::endpoint::Endpoint;
use crate::policy::entity::entity_name;
use crate::policy::envelope::{Canonical, CanonicalSpec};
use crate::policy::ports::PortRange;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CanonicalRule<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    from: CanonicalTarget<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    raw_sockets: Option<bool>,
    #[serde(skip_serializing_if = "<[Target]>::is_empty")]
    to: &'a [Target],
}

/// An endpoint, with ports and protocol where it is a target.
#[derive(Serialize, Default)]
#[serde(rename_all = "camelCase")]
struct CanonicalTarget<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    cidr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    entity: Option<&'static str>,
    #[serde(skip_serializing_if = "<[PortRange]>::is_empty")]
    ports: &'a [PortRange],
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    require_proof: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe: Option<&'a str>,
}

impl ServiceAccessPolicy {
    pub(super) fn canonical(&self) -> Canonical<'_, CanonicalSpec<'_, &[Rule]>> {
        let spec = CanonicalSpec {
            default_action: Some(self.default_action.name()),
            description: self.spec_description.as_deref(),
            rules: &*self.rules,
        };
        Canonical::new(KIND, &self.head, spec)
    }
}

impl<'a> From<&'a Endpoint> for CanonicalTarget<'a> {
    fn from(endpoint: &'a Endpoint) -> Self {
        match endpoint {
            Endpoint::Spiffe(pattern) => Self {
                spiffe: Some(pattern.as_str()),
                ..Self::default()
            },
            Endpoint::Entity(number) => Self {
                entity: entity_name(*number),
                ..Self::default()
            },
            Endpoint::Cidr(network) => Self {
                cidr: Some(network.to_string()),
                ..Self::default()
            },
        }
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rule = CanonicalRule {
            action: (self.action != Action::default()).then(|| self.action.name()),
            description: self.description.as_deref(),
            from: CanonicalTarget::from(&self.from),
            raw_sockets: self.raw_sockets.then_some(true),
            to: &self.to,
        };
        rule.serialize(serializer)
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let target = CanonicalTarget {
            ports: &self.ports,
            protocol: (self.protocol != Protocol::default()).then(|| self.protocol.name()),
            require_proof: self.require_proof.then_some(true),
            ..CanonicalTarget::from(&self.endpoint)
        };
        target.serialize(serializer)
    }
}

impl Serialize for PortRange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.first == self.last {
            serializer.serialize_u16(self.first)
        } else {
            serializer.collect_str(self)
        }
    }
}
