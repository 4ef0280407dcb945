// SPDX-License-Identifier: Apache-2.0
//! The canonical JSON form of an operator policy, see [`Canonical`]. The fields of each structure are in alphabetical
//! order.

use serde::Serialize;

use super::{OPERATOR_KIND, OperatorAccessPolicy, OperatorRule};
use crate::policy::envelope::{Canonical, CanonicalSpec};

#[derive(Serialize)]
pub(super) struct Rule<'a> {
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

impl OperatorAccessPolicy {
    pub(super) fn canonical(&self) -> Canonical<'_, CanonicalSpec<'_, Vec<Rule<'_>>>> {
        let spec = CanonicalSpec {
            default_action: None,
            description: self.spec_description.as_deref(),
            rules: self.rules.iter().map(|rule| Rule::from(&**rule)).collect(),
        };
        Canonical::new(OPERATOR_KIND, &self.head, spec)
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
