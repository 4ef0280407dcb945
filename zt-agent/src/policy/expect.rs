// SPDX-License-Identifier: Apache-2.0
//! Expectations: tables of flows with what policy shall say about them, written beside the policies.

mod read;

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::Serialize;

use super::action::Protocol;
use super::compile::{CompileError, compile};
use super::cut::Outcome;
use super::named_party::NamedParty;
use super::operator::OperatorRequest;
use super::set::PolicySet;
use super::table::AllowTable;
use super::{Document, Problem, Settings};
use crate::spiffe_id::SpiffeId;

/// The `kind` of these documents.
pub const TEST_KIND: &str = "PolicyTest";

/// One item of `tests`: every combination of its sources, destinations and ports is a case.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// `name`, else where it stands: `<document>/test-<n>`.
    pub name: String,
    /// The file it came from.
    pub file: String,
    /// The line where it begins.
    pub line: u64,
    /// What is asked.
    pub asked: Asked,
    /// `expect`.
    pub expect: Outcome,
    /// `rule`: the rule that shall decide.
    pub rule: Option<String>,
}

/// What an expectation is about.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Flows.
    Connect {
        /// `from`.
        from: Vec<NamedParty>,
        /// `to`.
        to: Vec<NamedParty>,
        /// `ports`.
        ports: Vec<u16>,
        /// `protocol`.
        protocol: Protocol,
    },
    /// What an operator may do.
    Operate {
        /// `operator.role`.
        role: String,
        /// `operator.mfa`.
        mfa: bool,
        /// `operator.incident`.
        incident: Option<String>,
        /// `service`.
        service: String,
        /// `action`.
        action: String,
    },
}

/// One case, tried.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Of the expectation.
    pub name: String,
    /// The file of the expectation.
    pub file: String,
    /// Its line there.
    pub line: u64,
    /// What was asked, for people.
    pub asked: String,
    /// What policy shall say.
    pub expected: Outcome,
    /// The rule that shall decide, where one is named.
    pub expected_rule: Option<String>,
    /// What policy says; null where it cannot say anything, for the reason given.
    pub found: Option<Outcome>,
    /// The rule that decides.
    pub rule: Option<Arc<str>>,
    /// Why.
    pub reason: String,
    /// Whether it is as expected.
    pub passed: bool,
}

/// Reads tests. All problems of all files are returned.
pub fn parse_tests(documents: &[Document], settings: &Settings) -> Result<Vec<Expectation>, Vec<Problem>> {
    read::all(documents, settings)
}

/// Tries every case against a policy, in order.
pub fn try_tests(
    set: &PolicySet,
    tests: &[Expectation],
    settings: &Settings,
) -> Result<Vec<Case>, CompileError> {
    let mut named: BTreeSet<SpiffeId> = BTreeSet::new();
    for test in tests {
        if let Asked::Connect { from, to, .. } = &test.asked {
            named.extend(from.iter().chain(to).filter_map(NamedParty::spiffe).cloned());
        }
    }
    let table = compile(set, &named, settings, 1)?;
    Ok(tests.iter().flat_map(|test| cases(set, &table, test)).collect())
}

fn cases(set: &PolicySet, table: &AllowTable, test: &Expectation) -> Vec<Case> {
    match &test.asked {
        Asked::Connect {
            from,
            to,
            ports,
            protocol,
        } => {
            let mut cases = Vec::with_capacity(from.len() * to.len() * ports.len());
            for source in from {
                for destination in to {
                    cases.extend(
                        ports
                            .iter()
                            .map(|port| connect(table, test, (source, destination), *port, *protocol)),
                    );
                }
            }
            cases
        }
        Asked::Operate {
            role,
            mfa,
            incident,
            service,
            action,
        } => {
            let decision = set.evaluate_operator(&OperatorRequest {
                role,
                mfa: *mfa,
                incident: incident.as_deref(),
                service,
                action,
            });
            let found = if decision.allowed {
                Outcome::Allow
            } else {
                Outcome::Deny
            };
            let asked = format!("role {role}: {action} on {service}");
            let rule = decision.rule.clone();
            vec![test.case(asked, Some(found), rule, decision.reason.name().to_owned())]
        }
    }
}

fn connect(
    table: &AllowTable,
    test: &Expectation,
    (from, to): (&NamedParty, &NamedParty),
    port: u16,
    protocol: Protocol,
) -> Case {
    let asked = format!("{from} -> {to} {} {port}", protocol.name());
    let (source, destination) = match (from.of(table), to.of(table)) {
        (Some(source), Some(destination)) => (source, destination),
        (None, _) => return test.case(asked, None, None, format!("no rule names {from}")),
        (_, None) => return test.case(asked, None, None, format!("no rule names {to}")),
    };
    let decision = table.evaluate(source, destination, port, protocol);
    let found = Outcome::from(&decision);
    let reason = decision.reason.name().to_owned();
    test.case(asked, Some(found), decision.rule, reason)
}

impl Expectation {
    fn case(&self, asked: String, found: Option<Outcome>, rule: Option<Arc<str>>, reason: String) -> Case {
        let same_rule = self.rule.is_none() || self.rule.as_deref() == rule.as_deref();
        Case {
            name: self.name.clone(),
            file: self.file.clone(),
            line: self.line,
            asked,
            expected: self.expect,
            expected_rule: self.rule.clone(),
            passed: found == Some(self.expect) && same_rule,
            found,
            rule,
            reason,
        }
    }
}
