// SPDX-License-Identifier: Apache-2.0
//! The canonical JSON form of a policy: one text for one meaning, so that digests can be compared.
//!
//! The fields of each structure are in alphabetical order, and so are the keys of what they serialize to.

use serde::{Serialize, Serializer};

use super::{API_VERSION, KIND, Rule, ServiceAccessPolicy, Target};
use crate::policy::action::{Action, Protocol};
use crate::policy::endpoint::Endpoint;
use crate::policy::entity::entity_name;
use crate::policy::ports::PortRange;

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Canonical<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: Metadata<'a>,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Metadata<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    name: &'a str,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    default_action: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    rules: &'a [Rule],
}

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
    spiffe: Option<&'a str>,
}

impl<'a> From<&'a ServiceAccessPolicy> for Canonical<'a> {
    fn from(policy: &'a ServiceAccessPolicy) -> Self {
        Self {
            api_version: API_VERSION,
            kind: KIND,
            metadata: Metadata {
                description: policy.description.as_deref(),
                name: &policy.name,
            },
            spec: Spec {
                default_action: policy.default_action.name(),
                description: policy.spec_description.as_deref(),
                rules: &policy.rules,
            },
        }
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
