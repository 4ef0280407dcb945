// SPDX-License-Identifier: Apache-2.0
//! All policies of a node together, checked against each other.

mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;
use zt_common::verdict::{RULE_HOST, RULE_REQUIRE_POLICY, RULE_SELF};

use super::action::Action;
use super::any::AnyPolicy;
use super::document::{self, ServiceAccessPolicy};
use super::endpoint::Endpoint;
use super::envelope::hex_digest;
use super::hash::FastMap;
use super::network;
use super::operator::{OperatorDecision, OperatorRequest, OperatorRules};
use super::outside;
use super::problem::Problem;
use super::rollout::EnforcementRollout;
use super::rule_names::{RuleName, RuleNames};
use super::walk::{Patterns, Walk};
use super::{Document, Settings};
use crate::spiffe_id::{Pattern, SpiffeId};
use crate::yaml;

/// The rules that zt itself has, by number.
pub(super) const BUILTIN: [(u64, &str); 3] = [
    (RULE_SELF, "builtin/self"),
    (RULE_HOST, "builtin/host"),
    (RULE_REQUIRE_POLICY, "builtin/require-policy"),
];

/// A valid set of policies; by default none, which allows nothing.
#[derive(Clone, Debug)]
pub struct PolicySet {
    policies: Vec<Arc<ServiceAccessPolicy>>,
    /// Of all kinds, sorted by name.
    all: Vec<AnyPolicy>,
    operators: OperatorRules,
    rollout: Option<Arc<EnforcementRollout>>,
    /// The files that the policies came from, for [`reparse`].
    files: Vec<ParsedFile>,
    trust_domain: String,
    digest: String,
    rule_names: Arc<RuleNames>,
    /// The identities that rules name outright.
    identities: BTreeSet<SpiffeId>,
    /// The networks that rules name, with their numbers.
    networks: Vec<(IpNet, u64)>,
    /// For questions about anybody.
    outside: outside::Kept,
}

impl Default for PolicySet {
    fn default() -> Self {
        Self {
            policies: Vec::new(),
            all: Vec::new(),
            operators: OperatorRules::default(),
            rollout: None,
            files: Vec::new(),
            trust_domain: String::new(),
            digest: hex_digest(""),
            rule_names: Arc::default(),
            identities: BTreeSet::new(),
            networks: Vec::new(),
            outside: outside::Kept::default(),
        }
    }
}

impl PolicySet {
    /// The policies between workloads, sorted by name.
    pub fn policies(&self) -> &[Arc<ServiceAccessPolicy>] {
        &self.policies
    }

    /// The policies of all kinds, sorted by name.
    pub fn all(&self) -> &[AnyPolicy] {
        &self.all
    }

    /// The policy called `name`, of whichever kind.
    pub fn get(&self, name: &str) -> Option<&AnyPolicy> {
        let index = self.all.binary_search_by(|policy| policy.name().cmp(name)).ok()?;
        self.all.get(index)
    }

    /// What the policies for operators say to a request. What no rule allows is denied.
    pub fn evaluate_operator(&self, request: &OperatorRequest<'_>) -> OperatorDecision {
        self.operators.evaluate(request)
    }

    /// SHA-256, in hexadecimal, over the digests of the canonical documents, sorted by name, one a line: what nodes
    /// are compared by.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// What happens to a flow that no rule is about: ALLOW only where there are policies and every one says so.
    pub fn default_action(&self) -> Action {
        let all_allow = self
            .policies
            .iter()
            .all(|policy| policy.default_action == Action::Allow);
        if all_allow && !self.policies.is_empty() {
            Action::Allow
        } else {
            Action::Deny
        }
    }

    /// Number and name of every rule, those of zt itself first.
    pub fn rule_names(&self) -> impl Iterator<Item = (u64, String)> + '_ {
        let builtin = BUILTIN.iter().map(|(number, name)| (*number, (*name).to_owned()));
        let rules = self.policies.iter().flat_map(|policy| {
            let named = policy.rules.iter().enumerate();
            named.map(|(index, rule)| (rule.number, RuleName::at(&policy.head.name, index).to_string()))
        });
        builtin.chain(rules)
    }

    /// The name of one of its rules; empty for a number that none has.
    pub fn rule_name(&self, number: u64) -> Arc<str> {
        let name = self.rule_names.get(number);
        name.map_or_else(|| Arc::from(""), |name| Arc::from(name.to_string()))
    }

    /// The networks that rules name, with their numbers, sorted.
    pub fn networks(&self) -> &[(IpNet, u64)] {
        &self.networks
    }

    /// The identities that rules name outright, without those that patterns stand for.
    pub fn identities(&self) -> &BTreeSet<SpiffeId> {
        &self.identities
    }

    pub(super) fn kept(&self) -> &outside::Kept {
        &self.outside
    }

    pub(super) fn names_by_number(&self) -> &Arc<RuleNames> {
        &self.rule_names
    }

    fn new(files: Vec<ParsedFile>, trust_domain: &str, known: Option<&str>) -> Result<Self, Vec<Problem>> {
        let mut all: Vec<_> = files
            .iter()
            .flat_map(|file| file.policies.iter().cloned())
            .collect();
        all.sort_unstable_by(|a, b| a.name().cmp(b.name()));
        let (mut policies, mut operators) = (Vec::new(), Vec::new());
        let mut rollouts = Vec::new();
        for policy in &all {
            match policy {
                AnyPolicy::Service(policy) => policies.push(Arc::clone(policy)),
                AnyPolicy::Operator(policy) => operators.push(policy),
                AnyPolicy::Rollout(rollout) => rollouts.push(rollout),
            }
        }
        let (rollout, mut problems) = rollout::only(&rollouts, known);
        let operators = OperatorRules::of(operators.into_iter());
        let rules = policies.iter().map(|policy| policy.rules.len()).sum();
        let mut rule_names = RuleNames::with_capacity(rules);
        let mut networks: BTreeMap<u64, IpNet> = BTreeMap::new();
        let mut identities: FastMap<u64, SpiffeId> = FastMap::default();
        for policy in &policies {
            let numbers = policy.rules.iter().map(|rule| rule.number);
            for (index, other) in rule_names.add(&policy.head.name, numbers) {
                let name = RuleName::at(&policy.head.name, index).to_string();
                let number = policy.rules.get(index).map_or(0, |rule| rule.number);
                problems.push(collision(policy, &name, &other, number));
            }
            for rule in &policy.rules {
                for endpoint in
                    std::iter::once(&rule.from).chain(rule.to.iter().map(|target| &target.endpoint))
                {
                    match endpoint {
                        Endpoint::Spiffe(Pattern::Exact(id)) => {
                            let known = identities.entry(id.number()).or_insert_with(|| id.clone());
                            if known != id {
                                problems.push(collision(policy, id.as_str(), known.as_str(), id.number()));
                            }
                        }
                        Endpoint::Cidr(net) => {
                            let number = network::number(net);
                            let other = networks.insert(number, *net);
                            if let Some(other) = other.filter(|other| other != net) {
                                problems.push(collision(
                                    policy,
                                    &network::name(net),
                                    &network::name(&other),
                                    number,
                                ));
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        let mut networks: Vec<(IpNet, u64)> =
            networks.into_iter().map(|(number, net)| (net, number)).collect();
        networks.sort_unstable();
        let digests: String = all.iter().flat_map(|policy| [policy.digest(), "\n"]).collect();
        let digest = hex_digest(&digests);
        let trust_domain = trust_domain.to_owned();
        let identities = identities.into_values().collect();
        Ok(Self {
            policies,
            all,
            operators,
            rollout,
            files,
            trust_domain,
            digest,
            rule_names: Arc::new(rule_names),
            identities,
            networks,
            outside: outside::Kept::default(),
        })
    }
}

fn collision(policy: &ServiceAccessPolicy, one: &str, other: &str, number: u64) -> Problem {
    Problem {
        file: policy.head.file.clone(),
        line: policy.head.line,
        column: policy.head.column,
        field: String::new(),
        message: format!("`{one}` and `{other}` have the same kernel number {number}: change one of them"),
    }
}

/// A file as it was when its policies were read.
#[derive(Clone, Debug)]
struct ParsedFile {
    name: String,
    /// SHA-256 of its text.
    content: String,
    policies: Vec<AnyPolicy>,
}

/// Reads and checks documents. All problems of all files are returned, in order of file and line.
pub fn parse(docs: &[Document], settings: &Settings) -> Result<PolicySet, Vec<Problem>> {
    reparse(docs, settings, &PolicySet::default())
}

/// [`parse`], taking from `previous` what came from a file of the same name and text: after a change of one file,
/// the cost is that file's.
pub fn reparse(
    docs: &[Document],
    settings: &Settings,
    previous: &PolicySet,
) -> Result<PolicySet, Vec<Problem>> {
    let same_domain = previous.trust_domain == settings.trust_domain;
    let known: BTreeMap<(&str, &str), &ParsedFile> = previous
        .files
        .iter()
        .filter(|_| same_domain)
        .map(|file| ((file.name.as_str(), file.content.as_str()), file))
        .collect();
    let mut problems = Vec::new();
    let mut files = Vec::with_capacity(docs.len());
    let mut any = false;
    let mut patterns = Patterns::new();
    for doc in docs {
        let content = hex_digest(&doc.text);
        if let Some(file) = known.get(&(doc.file.as_str(), content.as_str())) {
            any |= !file.policies.is_empty();
            files.push((*file).clone());
            continue;
        }
        let mut walk = Walk::new(&doc.file, patterns);
        let mut policies = Vec::new();
        match yaml::documents(&doc.text) {
            Ok(nodes) => {
                any |= !nodes.is_empty();
                let read = nodes
                    .iter()
                    .filter_map(|node| document::read(&mut walk, node, &settings.trust_domain));
                policies.extend(read);
            }
            Err(malformed) => {
                any = true;
                walk.problems.push(Problem {
                    file: doc.file.clone(),
                    line: malformed.line,
                    column: malformed.column,
                    field: String::new(),
                    message: format!("malformed YAML: {}", malformed.message),
                });
            }
        }
        walk.problems
            .sort_by_key(|problem| (problem.line, problem.column));
        problems.append(&mut walk.problems);
        patterns = walk.patterns;
        files.push(ParsedFile {
            name: doc.file.clone(),
            content,
            policies,
        });
    }
    if !any {
        let files: Vec<&str> = docs.iter().map(|doc| doc.file.as_str()).collect();
        let place = if files.is_empty() {
            String::new()
        } else {
            format!(" in {}", files.join(", "))
        };
        problems.push(Problem {
            file: String::new(),
            line: 0,
            column: 0,
            field: String::new(),
            message: format!("no policy documents{place}"),
        });
    }
    problems.extend(duplicate_names(files.iter().flat_map(|file| &file.policies)));
    if problems.is_empty() {
        PolicySet::new(files, &settings.trust_domain, previous.rollout_name())
    } else {
        Err(problems)
    }
}

/// What stands of documents of which some may not be valid.
#[derive(Clone, Debug, Default)]
pub struct Standing {
    /// The policies of the others; none where there are no others.
    pub set: PolicySet,
    /// What is wrong with them.
    pub problems: Vec<Problem>,
    /// The files that are not part of it for that.
    pub invalid: BTreeSet<String>,
}

/// [`reparse`], leaving out what is not valid.
pub fn standing(docs: &[Document], settings: &Settings, previous: &PolicySet) -> Standing {
    let mut standing = Standing::default();
    let mut rest = docs.to_vec();
    while !rest.is_empty() {
        let problems = match reparse(&rest, settings, previous) {
            Ok(set) => {
                standing.set = set;
                break;
            }
            Err(problems) => problems,
        };
        let before = rest.len();
        standing
            .invalid
            .extend(problems.iter().map(|problem| problem.file.clone()));
        rest.retain(|document| !standing.invalid.contains(&document.file));
        if rest.len() == before {
            // There is nothing in them.
            break;
        }
        standing.problems.extend(problems);
    }
    standing
}

fn duplicate_names<'p>(policies: impl Iterator<Item = &'p AnyPolicy>) -> Vec<Problem> {
    let mut first: BTreeMap<&str, &AnyPolicy> = BTreeMap::new();
    let mut problems = Vec::new();
    for policy in policies {
        match first.entry(policy.name()) {
            std::collections::btree_map::Entry::Vacant(entry) => {
                entry.insert(policy);
            }
            std::collections::btree_map::Entry::Occupied(entry) => {
                let other = entry.get();
                let (line, column) = policy.place();
                problems.push(Problem {
                    file: policy.file().to_owned(),
                    line,
                    column,
                    field: "metadata.name".to_owned(),
                    message: format!(
                        "the name `{}` is taken by the policy in {}:{}",
                        policy.name(),
                        other.file(),
                        other.place().0
                    ),
                });
            }
        }
    }
    problems
}
