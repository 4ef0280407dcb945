// SPDX-License-Identifier: Apache-2.0
//! Reads tests of policy.

use super::{Asked, Expectation, TEST_KIND};
use crate::policy::action::Protocol;
use crate::policy::cut::Outcome;
use crate::policy::envelope;
use crate::policy::named_party::NamedParty;
use crate::policy::ports::PortRange;
use crate::policy::walk::{Fields, Path, Patterns, Walk};
use crate::policy::{Document, Problem, Settings};
use crate::yaml::{self, Node, Value};

const FIELDS: [&str; 10] = [
    "name", "from", "to", "ports", "protocol", "operator", "service", "action", "expect", "rule",
];
/// Most cases of one test.
const MAX_CASES: usize = 100_000;
const OUTCOMES: [&str; 3] = ["ALLOW", "ALLOW_WITH_PROOF", "DENY"];

pub(super) fn all(documents: &[Document], settings: &Settings) -> Result<Vec<Expectation>, Vec<Problem>> {
    let (mut tests, mut problems) = (Vec::new(), Vec::new());
    for document in documents {
        let mut walk = Walk::new(&document.file, Patterns::new());
        match yaml::documents(&document.text) {
            Ok(nodes) => {
                let read = nodes.iter().filter_map(|node| one(&mut walk, node, settings));
                tests.extend(read.flatten());
            }
            Err(malformed) => walk.problems.push(Problem {
                file: document.file.clone(),
                line: malformed.line,
                column: malformed.column,
                field: String::new(),
                message: format!("malformed YAML: {}", malformed.message),
            }),
        }
        walk.problems
            .sort_by_key(|problem| (problem.line, problem.column));
        problems.append(&mut walk.problems);
    }
    if problems.is_empty() {
        Ok(tests)
    } else {
        Err(problems)
    }
}

fn one(walk: &mut Walk<'_>, node: &Node, settings: &Settings) -> Option<Vec<Expectation>> {
    envelope::kind_of(walk, node, &[TEST_KIND])?;
    let spec = |walk: &mut Walk<'_>, spec: &Node, path: &Path<'_>, document: &str| {
        let fields = walk.fields(spec, path, &["tests", "description"])?;
        let list = walk.required(&fields, spec, path, "tests")?;
        let path = path.field("tests");
        let list = walk.list(list, &path)?;
        let mut tests = Vec::with_capacity(list.len());
        for (index, node) in list.iter().enumerate() {
            let name = format!("{document}/test-{}", index + 1);
            tests.extend(test(walk, node, &path.index(index), name, settings));
        }
        Some(tests)
    };
    envelope::read(walk, node, spec).map(|(_, tests)| tests)
}

fn test(
    walk: &mut Walk<'_>,
    node: &Node,
    path: &Path<'_>,
    name: String,
    settings: &Settings,
) -> Option<Expectation> {
    let fields = walk.fields(node, path, &FIELDS)?;
    let given = fields
        .get("name")
        .and_then(|node| walk.text(node, &path.field("name")))
        .map(str::to_owned);
    let rule = fields
        .get("rule")
        .and_then(|node| walk.text(node, &path.field("rule")))
        .map(str::to_owned);
    let expect = walk
        .required(&fields, node, path, "expect")
        .and_then(|node| walk.word(node, &path.field("expect"), &OUTCOMES, outcome));
    let asked = match fields.get("operator") {
        Some(operator) => operate(walk, node, &fields, operator, path),
        None => connect(walk, node, &fields, path, settings),
    };
    Some(Expectation {
        name: given.unwrap_or(name),
        file: walk.file.to_owned(),
        line: node.line,
        asked: asked?,
        expect: expect?,
        rule,
    })
}

fn outcome(word: &str) -> Option<Outcome> {
    [Outcome::Allow, Outcome::AllowWithProof, Outcome::Deny]
        .into_iter()
        .find(|outcome| outcome.name() == word)
}

/// Reports fields that are there and have no meaning beside the others.
fn refuse(walk: &mut Walk<'_>, fields: &Fields<'_>, path: &Path<'_>, names: &[&str], beside: &str) {
    for name in names {
        if let Some(node) = fields.get(name) {
            walk.report(
                node,
                &path.field(name),
                format!("`{name}` has no meaning {beside}"),
            );
        }
    }
}

fn operate(
    walk: &mut Walk<'_>,
    node: &Node,
    fields: &Fields<'_>,
    operator: &Node,
    path: &Path<'_>,
) -> Option<Asked> {
    refuse(
        walk,
        fields,
        path,
        &["from", "to", "ports", "protocol"],
        "beside `operator`",
    );
    let mut text = |name: &str| {
        let node = walk.required(fields, node, path, name)?;
        walk.text(node, &path.field(name)).map(str::to_owned)
    };
    let (service, action) = (text("service"), text("action"));
    let path = path.field("operator");
    let fields = walk.fields(operator, &path, &["role", "mfa", "incident"])?;
    let role = walk
        .required(&fields, operator, &path, "role")
        .and_then(|node| walk.text(node, &path.field("role")));
    let mfa = match fields.get("mfa") {
        Some(node) => walk.boolean(node, &path.field("mfa"))?,
        None => false,
    };
    let incident = match fields.get("incident") {
        Some(node) => Some(walk.text(node, &path.field("incident"))?.to_owned()),
        None => None,
    };
    Some(Asked::Operate {
        role: role?.to_owned(),
        mfa,
        incident,
        service: service?,
        action: action?,
    })
}

fn connect(
    walk: &mut Walk<'_>,
    node: &Node,
    fields: &Fields<'_>,
    path: &Path<'_>,
    settings: &Settings,
) -> Option<Asked> {
    refuse(walk, fields, path, &["service", "action"], "without `operator`");
    let from = parties(walk, node, fields, path, "from", settings);
    let to = parties(walk, node, fields, path, "to", settings);
    let ports = walk
        .required(fields, node, path, "ports")
        .and_then(|node| ports(walk, node, &path.field("ports")));
    let protocol = match fields.get("protocol") {
        Some(node) => walk.word(
            node,
            &path.field("protocol"),
            &Protocol::NAMES,
            Protocol::from_name,
        )?,
        None => Protocol::default(),
    };
    let (from, to, ports) = (from?, to?, ports?);
    // Counted before ranges are written out.
    let width = |range: &PortRange| usize::from(range.last - range.first) + 1;
    let wide = ports.iter().map(width).fold(0, usize::saturating_add);
    let cases = from.len().saturating_mul(to.len()).saturating_mul(wide);
    if cases > MAX_CASES {
        walk.report(
            node,
            path,
            format!("{cases} cases, more than the {MAX_CASES} that one test may have: split it"),
        );
        return None;
    }
    let each = |range: PortRange| range.first..=range.last;
    Some(Asked::Connect {
        from,
        to,
        ports: ports.into_iter().flat_map(each).collect(),
        protocol,
    })
}

/// One party, or a list of them.
fn parties(
    walk: &mut Walk<'_>,
    of: &Node,
    fields: &Fields<'_>,
    path: &Path<'_>,
    name: &str,
    settings: &Settings,
) -> Option<Vec<NamedParty>> {
    let node = walk.required(fields, of, path, name)?;
    let path = path.field(name);
    let Value::List(list) = &node.value else {
        return party(walk, node, &path, settings).map(|party| vec![party]);
    };
    if list.is_empty() {
        walk.report(node, &path, "an empty list tests nothing");
        return None;
    }
    let read: Vec<Option<NamedParty>> = list
        .iter()
        .enumerate()
        .map(|(index, node)| party(walk, node, &path.index(index), settings))
        .collect();
    read.into_iter().collect()
}

fn party(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>, settings: &Settings) -> Option<NamedParty> {
    let text = walk.text(node, path)?;
    let party: NamedParty = match text.parse() {
        Ok(party) => party,
        Err(message) => {
            walk.report(node, path, format!("`{text}`: {message}"));
            return None;
        }
    };
    if let Some(id) = party
        .spiffe()
        .filter(|id| id.trust_domain() != settings.trust_domain)
    {
        let (theirs, ours) = (id.trust_domain(), &settings.trust_domain);
        walk.report(
            node,
            path,
            format!("`{text}` is of trust domain `{theirs}`, policies are about `{ours}`"),
        );
        return None;
    }
    Some(party)
}

/// Ports and ranges of them.
fn ports(walk: &mut Walk<'_>, node: &Node, path: &Path<'_>) -> Option<Vec<PortRange>> {
    let list = walk.list(node, path)?;
    if list.is_empty() {
        walk.report(node, path, "an empty list tests nothing");
        return None;
    }
    let read: Vec<Option<PortRange>> = list
        .iter()
        .enumerate()
        .map(|(index, node)| {
            let range = PortRange::read(node);
            range
                .map_err(|message| walk.report(node, &path.index(index), message))
                .ok()
        })
        .collect();
    read.into_iter().collect()
}
