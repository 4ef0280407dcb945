// SPDX-License-Identifier: Apache-2.0
//! The model of an `OperatorAccessPolicy`: which role of people may do what to which service, and under which
//! conditions. Nothing of it reaches the kernel; who lets people in asks for a decision.

mod canonical;
mod read;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value as Json;

use super::envelope::Head;
pub(super) use read::read;

/// The `kind` of these documents.
pub const OPERATOR_KIND: &str = "OperatorAccessPolicy";
/// The `service` that stands for all.
pub(super) const ANY_SERVICE: &str = "*";

/// The fields of a `spec`.
pub(super) const OPERATOR_SPEC_FIELDS: [&str; 2] = ["rules", "description"];
/// The fields of a rule.
pub(super) const OPERATOR_RULE_FIELDS: [&str; 4] = ["role", "targets", "conditions", "description"];
/// The fields of an item of a rule's `targets`.
pub(super) const OPERATOR_TARGET_FIELDS: [&str; 2] = ["service", "actions"];
/// The fields of an item of a rule's `conditions`.
pub(super) const CONDITION_FIELDS: [&str; 2] = ["requireMFA", "requireIncident"];
/// The longest name of a role, a service or an action.
pub(super) const MAX_WORD_CHARS: usize = 128;

/// Which operator may do what.
#[derive(Clone, Debug)]
pub struct OperatorAccessPolicy {
    /// Its name, and where it stands.
    pub head: Head,
    /// `spec.description`.
    pub spec_description: Option<String>,
    /// `spec.rules`, in document order.
    pub rules: Vec<Arc<OperatorRule>>,
    digest: String,
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorRule {
    /// `<policy>/rule-<n>`, n from 1 in document order.
    pub name: Arc<str>,
    /// `description`.
    pub description: Option<String>,
    /// `role`: whom it is about.
    pub role: String,
    /// `targets`: what they may do.
    pub targets: Vec<OperatorTarget>,
    /// `requireMFA`: only with a second factor.
    pub require_mfa: bool,
    /// `requireIncident`: only for an incident, which is named.
    pub require_incident: bool,
}

/// One item of a rule's `targets`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorTarget {
    /// The service, or [`ANY_SERVICE`].
    pub service: String,
    /// What may be done to it.
    pub actions: Vec<String>,
}

/// What an operator asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OperatorRequest<'a> {
    /// The role that the operator acts in.
    pub role: &'a str,
    /// Whether a second factor was given.
    pub mfa: bool,
    /// The incident that is the reason, if there is one.
    pub incident: Option<&'a str>,
    /// The service that something is done to.
    pub service: &'a str,
    /// What is done.
    pub action: &'a str,
}

/// Why an operator may or may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum OperatorReason {
    /// A rule allows it.
    Rule,
    /// No rule is about this.
    NoRule,
    /// A rule would allow it with a second factor.
    MfaRequired,
    /// A rule would allow it for an incident.
    IncidentRequired,
}

impl OperatorReason {
    /// The word in answers and records.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::NoRule => "no_rule",
            Self::MfaRequired => "mfa_required",
            Self::IncidentRequired => "incident_required",
        }
    }
}

/// What policy says to an [`OperatorRequest`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OperatorDecision {
    /// Whether it allows it.
    pub allowed: bool,
    /// Why.
    pub reason: OperatorReason,
    /// The rule that allows it, or that would if its conditions were met.
    pub rule: Option<Arc<str>>,
}

impl OperatorTarget {
    fn covers(&self, service: &str, action: &str) -> bool {
        (self.service == ANY_SERVICE || self.service == service)
            && self.actions.iter().any(|allowed| allowed == action)
    }
}

impl OperatorAccessPolicy {
    /// The document in its canonical form: without comments, conditions that hold nothing left out.
    pub fn document(&self) -> Json {
        self.canonical().document()
    }

    /// SHA-256 of the canonical form, in hexadecimal.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    fn sealed(mut self) -> Self {
        self.digest = self.canonical().digest();
        self
    }
}

/// The rules of all operator policies, by role.
#[derive(Clone, Debug, Default)]
pub(super) struct OperatorRules(BTreeMap<String, Vec<Arc<OperatorRule>>>);

impl OperatorRules {
    pub(super) fn of<'p>(policies: impl Iterator<Item = &'p Arc<OperatorAccessPolicy>>) -> Self {
        let mut by_role: BTreeMap<String, Vec<Arc<OperatorRule>>> = BTreeMap::new();
        for rule in policies.flat_map(|policy| &policy.rules) {
            by_role
                .entry(rule.role.clone())
                .or_default()
                .push(Arc::clone(rule));
        }
        Self(by_role)
    }

    /// The first rule that allows it; without one, the first that would, and what it lacks.
    pub(super) fn evaluate(&self, request: &OperatorRequest<'_>) -> OperatorDecision {
        let incident = request.incident.is_some_and(|incident| !incident.is_empty());
        let mut best: Option<(OperatorReason, &Arc<OperatorRule>)> = None;
        for rule in self.0.get(request.role).into_iter().flatten() {
            let covers = |target: &OperatorTarget| target.covers(request.service, request.action);
            if !rule.targets.iter().any(covers) {
                continue;
            }
            let lacks = if rule.require_mfa && !request.mfa {
                OperatorReason::MfaRequired
            } else if rule.require_incident && !incident {
                OperatorReason::IncidentRequired
            } else {
                return OperatorDecision {
                    allowed: true,
                    reason: OperatorReason::Rule,
                    rule: Some(Arc::clone(&rule.name)),
                };
            };
            best.get_or_insert((lacks, rule));
        }
        OperatorDecision {
            allowed: false,
            reason: best.map_or(OperatorReason::NoRule, |(reason, _)| reason),
            rule: best.map(|(_, rule)| Arc::clone(&rule.name)),
        }
    }
}
