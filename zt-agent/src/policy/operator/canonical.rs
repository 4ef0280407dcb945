// SPDX-License-Identifier: Apache-2.0
//! The canonical JSON form of an operator policy. The fields of each structure are in alphabetical order.

use serde::Serialize;

use super::{OPERATOR_KIND, OperatorAccessPolicy, OperatorRule};
use crate::policy::document::API_VERSION;

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
struct Spec<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    rules: Vec<Rule<'a>>,
}

#[derive(Serialize)]
struct Rule<'a> {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    conditions: Vec<Condition>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    role: &'a str,
    targets: Vec<Target<'a>>,
}

#[derive(Serialize)]
enum Condition {
    #[serde(rename = "requireIncident")]
    Incident(bool),
    #[serde(rename = "requireMFA")]
    Mfa(bool),
}

#[derive(Serialize)]
struct Target<'a> {
    actions: &'a [String],
    service: &'a str,
}

impl<'a> From<&'a OperatorAccessPolicy> for Canonical<'a> {
    fn from(policy: &'a OperatorAccessPolicy) -> Self {
        Self {
            api_version: API_VERSION,
            kind: OPERATOR_KIND,
            metadata: Metadata {
                description: policy.description.as_deref(),
                name: &policy.name,
            },
            spec: Spec {
                description: policy.spec_description.as_deref(),
                rules: policy.rules.iter().map(|rule| Rule::from(&**rule)).collect(),
            },
        }
    }
}

impl<'a> From<&'a OperatorRule> for Rule<'a> {
    fn from(rule: &'a OperatorRule) -> Self {
        let incident = rule.require_incident.then_some(Condition::Incident(true));
        let mfa = rule.require_mfa.then_some(Condition::Mfa(true));
        Self {
            conditions: incident.into_iter().chain(mfa).collect(),
            description: rule.description.as_deref(),
            role: &rule.role,
            targets: rule
                .targets
                .iter()
                .map(|target| Target {
                    actions: &target.actions,
                    service: &target.service,
                })
                .collect(),
        }
    }
}
